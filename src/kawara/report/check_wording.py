"""What every kind of finding is called, and what is done about it or can be done, in English and in Japanese."""

from __future__ import annotations

from typing import NamedTuple

from kawara.report.wording import Text


class Words(NamedTuple):
    """A kind of finding: its name, and what happens with it."""

    title: Text
    treatment: Text


_NOT_USED = Text("not used", "使いません")
_REPLACE = Text("not used: replace or remove it", "使いません。差し替えるか削除してください")
_USED = Text("used as it is", "そのまま使います")
_LEAK = Text(
    "used; the result on the held-out part is too good: keep one side",
    "そのまま使いますが、評価側の結果が良すぎる値になります。片方だけを残してください",
)
_LABEL = Text("used under both names: one of the labels is wrong", "両方のクラスで使いますが、どちらかのラベルが誤りです")

WORDS: dict[str, Words] = {
    "empty": Words(Text("Empty file (0 bytes)", "空のファイル（0バイト）"), _REPLACE),
    "truncated": Words(Text("Truncated", "途中で切れている"), _REPLACE),
    "damaged": Words(Text("Damaged", "壊れている"), _REPLACE),
    "not-an-image": Words(Text("Not an image inside", "中身が画像でない"), _REPLACE),
    "unsupported": Words(
        Text("Kind of image that is not supported", "対応していない画像形式"), Text("not used: convert it", "使いません。変換してください")
    ),
    "too-large": Words(
        Text("Too many pixels, or a decompression bomb", "画素数が多すぎる、または伸長爆弾"),
        Text("not used: scale it down", "使いません。縮小してください"),
    ),
    "unreadable": Words(
        Text("Cannot be read", "読み取れない"), Text("not used: mend its permissions", "使いません。読み取り権限を直してください")
    ),
    "broken-link": Words(Text("Broken link", "リンク切れ"), _REPLACE),
    "missing": Words(Text("Named in the table, not there", "表にあるが、ファイルがない"), _NOT_USED),
    "no-label": Words(Text("Without a label", "ラベルがない"), _NOT_USED),
    "misplaced": Words(
        Text("Outside any class folder", "クラスのフォルダの外にある"),
        Text("not used: move it into a class folder", "使いません。クラスのフォルダに移してください"),
    ),
    "left-out": Words(Text("Left out", "除外"), _NOT_USED),
    "other-file": Words(
        Text("Not an image by its suffix", "拡張子が画像でない"),
        Text("not used; rename it if it is an image", "使いません。画像であれば拡張子を直してください"),
    ),
    "linked-twice": Words(
        Text("Link to a folder that is listed already", "すでに一覧にあるフォルダへのリンク"), Text("listed once", "一度だけ数えます")
    ),
    "class-unusable": Words(
        Text("Class without a usable image", "使える画像が1枚もないクラス"),
        Text("training stops: replace the files or remove the class", "学習できません。画像を差し替えるか、クラスを削除してください"),
    ),
    "class-not-in-train": Words(
        Text("Class that train does not have", "学習用にないクラス"),
        Text("training stops: give the parts the same classes", "学習できません。各部分のクラスをそろえてください"),
    ),
    "one-class": Words(
        Text("Only one class", "クラスが1つしかない"), Text("training stops: two are needed", "学習できません。2クラス以上が必要です")
    ),
    "class-empty": Words(Text("Empty class folder", "空のクラスフォルダ"), Text("no class is made of it", "クラスとして数えません")),
    "class-small": Words(
        Text("Class of fewer than five images", "5枚未満のクラス"),
        Text("used; little can be learnt or measured of it", "そのまま使いますが、学習も評価もほとんどできません"),
    ),
    "class-only-in-train": Words(
        Text("Class that a held-out part does not have", "評価用にないクラス"),
        Text("used; how well it is recognised is not measured", "そのまま使いますが、このクラスは評価されません"),
    ),
    "class-names-collide": Words(
        Text("Class names that hardly differ", "ほとんど同じクラス名"),
        Text("two classes; merge them if they are one", "別々のクラスとして扱います。同じものなら1つにまとめてください"),
    ),
    "imbalance": Words(
        Text("More than ten times fewer images than another class", "枚数が他のクラスの10分の1未満"),
        Text("used; try --set sampler.balanced=true", "そのまま使います。--set sampler.balanced=true を試してください"),
    ),
    "label-suspect": Words(
        Text("Label that is probably wrong, says the model", "モデルから見て、ラベルが誤りらしい画像"),
        Text("used as labelled: look at it", "付いているラベルのまま使います。目で確かめてください"),
    ),
    "same-two-splits": Words(Text("Same file in two parts of the data", "同じファイルが複数の分割にある"), _LEAK),
    "same-two-classes": Words(Text("Same file in two classes", "同じファイルが複数のクラスにある"), _LABEL),
    "near-two-splits": Words(Text("Near-duplicates in two parts of the data", "ほぼ同じ画像が複数の分割にある"), _LEAK),
    "near-two-classes": Words(Text("Near-duplicates in two classes", "ほぼ同じ画像が複数のクラスにある"), _LABEL),
    "alike-two-splits": Words(
        Text("Alike to the model, in two parts of the data", "モデルから見てほぼ同じ画像が複数の分割にある"),
        Text("both used: look whether one was cut from the other", "両方使います。一方が他方の切り抜きでないか確かめてください"),
    ),
    "alike-two-classes": Words(
        Text("Alike to the model, in two classes", "モデルから見てほぼ同じ画像が複数のクラスにある"),
        Text("both used: look whether both labels are right", "両方使います。どちらのラベルも正しいか確かめてください"),
    ),
    "same-in-class": Words(
        Text("Same file more than once in a class", "同じファイルが同じクラスに重複"),
        Text("all of them used: it counts more than others", "すべて使います（その分だけ重く数えます）"),
    ),
    "near-in-class": Words(
        Text("Near-duplicates in one class and part", "同じクラス・同じ分割の中のほぼ同じ画像"),
        Text("all of them used: they count more than others", "すべて使います（その分だけ重く数えます）"),
    ),
    "tiny": Words(
        Text("Smaller than 16 px", "16 px 未満"),
        Text("used, enlarged: a thumbnail by mistake?", "拡大して使います。サムネイルの混入ではありませんか"),
    ),
    "blank": Words(
        Text("Blank: all pixels alike", "無地の画像（全画素がほぼ同じ）"),
        Text("used: is it meant?", "そのまま使います。意図したものですか"),
    ),
    "paths-collide": Words(
        Text("Names that differ only by case", "大文字・小文字だけが違う名前"),
        Text("both used; Windows and macOS keep only one of them", "両方使います。WindowsやmacOSでは片方しか残りません"),
    ),
    "rotated": Words(
        Text("Turned by its EXIF orientation", "EXIFで回転が指定されている"), Text("used upright", "正しい向きに直して使います")
    ),
    "cmyk": Words(
        Text("CMYK", "CMYK"), Text("converted to RGB, colour profile not applied", "RGBに変換します（カラープロファイルは適用しません）")
    ),
    "more-than-8-bits": Words(
        Text("More than 8 bits a channel", "1チャンネルが8ビットを超える"), Text("reduced to 8 bits", "8ビットに変換します")
    ),
    "palette": Words(Text("Palette", "パレット形式"), Text("expanded to RGB", "RGBに展開します")),
    "transparent": Words(Text("Transparent", "透明度つき"), Text("laid on white", "白の上に重ねます")),
    "grey": Words(
        Text("Grey among colour images", "カラー画像に混じったグレー画像"),
        Text("used as RGB of equal channels", "3チャンネルが等しいRGBとして使います"),
    ),
    "animated": Words(Text("Animation", "アニメーション"), Text("first picture used", "最初の1枚を使います")),
    "several-pages": Words(Text("Several pages or pictures", "複数のページ・画像を含む"), Text("first one used", "最初の1枚を使います")),
    "wrong-suffix": Words(Text("Suffix of another format", "拡張子と形式が違う"), Text("read as what it is", "実際の形式で読みます")),
    "nested": Words(
        Text("Folder inside a class folder", "クラスの中のサブフォルダ"),
        Text("its images belong to the class above", "画像は上のクラスに属します"),
    ),
    "not-ascii": Words(Text("Path with letters beyond ASCII", "ASCII以外の文字を含むパス"), _USED),
    "hidden": Words(Text("Hidden or system file", "隠しファイル・システムファイル"), Text("passed over", "無視します")),
}

SEVERITIES: dict[str, Text] = {
    "error": Text("error", "エラー"),
    "warning": Text("warning", "警告"),
    "note": Text("note", "参考"),
}
NEAR_SEARCH: dict[str, Text] = {
    "done": Text(
        "Near-duplicates were looked for: re-encoded, resized, mirrored or slightly brighter copies.",
        "再圧縮・拡大縮小・左右反転・わずかな明るさの違いだけの、ほぼ同じ画像も探しました。",
    ),
    "images too small": Text(
        "Images under 32 px were compared byte by byte only: small pictures look alike without being copies.",
        "32 px 未満の画像は完全一致だけを調べました（小さな画像は、別物でもよく似て見えるためです）。",
    ),
    "images too alike": Text(
        "The images are so alike (a fixed camera? scans of one form?) that near-duplicates cannot be told from others.",
        "画像どうしが似すぎているため（固定カメラ、同じ書式のスキャンなど）、ほぼ同じ画像を見分けられません。",
    ),
}
