"""What an inspection says about images: attention, and explanations of answers with their faithfulness. Records in, sections out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kawara import plots
from kawara.analysis.attention import AttentionMaps
from kawara.analysis.attention_statistics import AttentionStatistics
from kawara.analysis.faithfulness import Faithfulness
from kawara.analysis.observed_attention import Query
from kawara.analysis.robustness import Robustness
from kawara.plots.robustness import drop_name
from kawara.plots.style import Language
from kawara.report.exhibits import Exhibit, Section
from kawara.report.wording import Text

NO_ATTENTION = Text(
    "This model has no self-attention, so there are no attention maps, no rollout and no attention distances. "
    "Grad-CAM and occlusion below say what an answer rests on, and the receptive fields how far each depth sees.",
    "このモデルには自己アテンションがないため、アテンションマップ、ロールアウト、アテンション距離はありません。"
    "回答の根拠は下のGrad-CAMとオクルージョンで、各深さが見る範囲は受容野で確認できます。",
)
NO_HEAD = Text(
    "This model is a backbone without a head: it gives no answers that could be explained.",
    "このモデルは分類ヘッドのないバックボーンで、説明すべき回答がありません。",
)
NO_LABELS = Text(
    "These images have no labels that the model knows, so there is no accuracy that could fall. "
    "A data set with class folders gives the curves.",
    "モデルの知るラベルが画像に付いていないため、正解率の低下は測れません。クラス別フォルダのデータセットを渡すと曲線が描かれます。",
)


@dataclass(frozen=True)
class Photo:
    """One image as the model saw it, (H, W, C) uint8, and what to call it."""

    image: NDArray[np.uint8]
    title: Text


@dataclass(frozen=True)
class Explained:
    """A photo with the maps of several methods (h, w), and what each is worth: of this photo alone."""

    photo: Photo
    model: str
    maps: Mapping[str, NDArray[np.floating]]
    scores: Mapping[str, Faithfulness]


def attention_section(
    photos: Sequence[Photo], maps: Sequence[AttentionMaps], patch_maps: Sequence[AttentionMaps], blocks: Sequence[int], deviation: float
) -> Section:
    """Show attention maps: `maps` of each photo from the class token or the mean query, `patch_maps` of the first photos from a patch.

    `blocks` are counted from 1; `deviation` is the largest distance of A V from what the model did.
    """
    lead = Text(
        "Each row of A was recomputed beside the running model and checked before it was drawn: it sums to 1, and A·V gives what the layer "
        f"answered. The largest deviation was {deviation:.1e} of the layer's largest value.",
        "Aの各行は、実行中のモデルの横で計算し直し、描画前に検証しています：行の和は1で、A·Vは層の実際の出力と一致します。"
        f"最大のずれは、層の出力の最大値の{deviation:.1e}でした。",
    )
    exhibits = []
    for kind, every, open_count in (("attention", maps, 2), ("attention-patch", patch_maps, 1)):
        for number, (photo, found) in enumerate(zip(photos, every), start=1):
            who = _query_name(found.queries[0])
            title = Text(f"{photo.title.en}: what {who.en} attends to", f"{photo.title.ja}：{who.ja}のアテンション")
            exhibits.append(
                Exhibit(
                    f"{kind}-{number}",
                    partial(_attention_grid, photo, found, blocks, title),
                    alt=title,
                    caption=Text("", ""),
                    numbers={
                        "image": photo.title.en,
                        "query": str(found.queries[0]),
                        "blocks": list(blocks),
                        "heads": [head + 1 for head in found.heads],
                        "attention_to_patches": found.patches[0, :, :, 0],
                        "attention_to_prefix": found.prefix[0, :, :, 0],
                        "deviation": found.deviation,
                    },
                    has_photos=True,
                    folded=number > open_count,
                )
            )
    return Section("attention", Text("Attention maps, verified", "検証済みのアテンションマップ"), lead, exhibits)


def explanation_section(explained: Sequence[Explained], num_photos: int) -> Section:
    """Show what answers rest on, method beside method, each with its areas."""
    lead = Text(
        "Which cells does the answer rest on? Below each map: the area under the probability while its cells are painted over, most "
        "important first (deletion, less is better), and while only they are shown (insertion, more is better), against random orders. "
        "Plain rollout says which patches can have reached the answer; it knows nothing of the class and is no explanation of it. "
        f"Each scored photo costs hundreds of answers, so {num_photos} {'was' if num_photos == 1 else 'were'} scored.",
        "回答はどの部分に基づいているのでしょうか。各マップの下の数値は、重要な順に塗りつぶしたとき（削除：小さいほど良い）と、"
        "重要な順に表示したとき（挿入：大きいほど良い）の確率曲線の下の面積で、ランダムな順序と比べられます。"
        "ロールアウトは、どのパッチが回答に届き得たかを示すだけで、クラスとは無関係です。クラスの説明ではありません。"
        f"1枚の採点に数百回の推論が要るため、採点したのは{num_photos}枚です。",
    )
    exhibits = []
    for number, each in enumerate(explained, start=1):
        exhibits.append(
            Exhibit(
                f"explanation-{number}",
                partial(_saliency_row, each),
                alt=Text(f"Explanations of {each.photo.title.en} by {each.model}", f"{each.model}による{each.photo.title.ja}の説明"),
                caption=Text("", ""),
                numbers={
                    "image": each.photo.title.en,
                    "model": each.model,
                    "maps": dict(each.maps),
                    "scores": {
                        method: {
                            "deletion_area": score.deletion_area[0],
                            "insertion_area": score.insertion_area[0],
                            "random_areas": score.random_area[0],
                            "beats_random": bool(score.faithful[0]),
                        }
                        for method, score in each.scores.items()
                    },
                },
                has_photos=True,
            )
        )
    if explained:
        first = explained[0]
        exhibits.append(
            Exhibit(
                "deletion-insertion",
                partial(_deletion_insertion, first),
                alt=Text("Deletion and insertion curves", "削除曲線と挿入曲線"),
                caption=Text(
                    f"Curves of the first photo: {first.photo.title.en}, {first.model}.",
                    f"1枚目（{first.photo.title.ja}、{first.model}）の曲線。",
                ),
                numbers={
                    "shares": next(iter(first.scores.values())).shares,
                    "curves": {method: {"deletion": s.deletion[0], "insertion": s.insertion[0]} for method, s in first.scores.items()},
                    "random_deletion": next(iter(first.scores.values())).random_deletion[0],
                },
            )
        )
    return Section("explanations", Text("What an answer rests on", "回答の根拠"), lead, exhibits)


def reach_section(name: str, statistics: AttentionStatistics) -> Section:
    """Show attention distance, entropy, agreement of heads and the share of prefix tokens by depth."""
    n = statistics.num_images
    lead = Text(
        f"Over all patches of {n} images. In a ViT with enough data the lowest blocks mix local and global heads, the highest "
        "are all global; "
        "without local heads in the lowest blocks, data was scarce.",
        f"{n}枚の画像の全パッチにわたる平均です。十分なデータで学習したViTでは、浅いブロックに局所的なヘッドと大域的なヘッドが混在し、"
        "深いブロックはすべて大域的になります。浅いブロックに局所的なヘッドがなければ、データ不足の兆候です。",
    )
    distance = Exhibit(
        "attention-distance",
        lambda language: plots.attention_distance(
            {name: statistics.distance_px}, uniform_px=statistics.uniform_distance_px, language=language
        ),
        alt=Text("Mean attention distance of every head by depth", "各ヘッドの平均アテンション距離と深さ"),
        caption=Text(
            f"n = {n} images. Attention to prefix tokens counts as distance 0; rows are not scaled back to 1.",
            f"画像 n = {n}枚。先頭トークンへのアテンションは距離0とし、行の再正規化はしていません。",
        ),
        numbers={
            "places": list(statistics.places),
            "distance_px": statistics.distance_px,
            "uniform_distance_px": statistics.uniform_distance_px,
            "num_images": n,
            "deviation": statistics.deviation,
        },
    )
    prefix = statistics.prefix_share.sum(axis=2)
    uniform_nats = float(np.log(statistics.layout.num_tokens))
    profile = Exhibit(
        "attention-profile",
        lambda language: plots.attention_profile(
            {name: (statistics.entropy_nats, statistics.agreement, prefix)}, uniform_nats=uniform_nats, language=language
        ),
        alt=Text("Entropy, agreement of heads and share of prefix tokens by depth", "エントロピー、ヘッドの一致、先頭トークンの割合と深さ"),
        caption=Text(f"n = {n} images.", f"画像 n = {n}枚。"),
        numbers={
            "places": list(statistics.places),
            "entropy_nats": statistics.entropy_nats,
            "agreement": statistics.agreement,
            "prefix_share": statistics.prefix_share,
            "num_images": n,
        },
    )
    return Section("reach", Text("How far heads look", "ヘッドはどこまで見ているか"), lead, [distance, profile])


def robustness_section(measured: Mapping[str, Mapping[str, Robustness]], num_classes: int) -> Section:
    """Show what is left of the accuracy of each model (by name) when tiles are lost or shuffled."""
    n = next(iter(next(iter(measured.values())).values())).right.shape[2]
    lead = Text(
        f"Tiles of the image are painted black, or put in a random order; n = {n} images with labels. "
        "All models are shown the very same pixels. Salient is what the first model rests its answers on.",
        f"画像のタイルを黒く塗るか、ランダムに並べ替えます（ラベル付き画像 n = {n}枚）。"
        "どのモデルにもまったく同じ画素を見せています。「重要な」タイルは、最初のモデルの回答の根拠による順です。",
    )
    exhibits = []
    for name, results in measured.items():
        drops = {kind: result for kind, result in results.items() if kind.startswith("drop_")}
        exhibits.append(
            Exhibit(
                f"robustness-drop-{len(exhibits) + 1}",
                partial(_robustness, "drop", {name: drops}, 1 / num_classes),
                alt=Text(f"Accuracy of {name} when tiles are lost", f"タイルを失ったときの{name}の正解率"),
                caption=Text(
                    f"{name}, n = {n} images. The band is ± one deviation from draw to draw.",
                    f"{name}、画像 n = {n}枚。帯は試行間の標準偏差。",
                ),
                numbers={"model": name, "num_images": n, "curves": {kind: _curve(result) for kind, result in drops.items()}},
            )
        )
    shuffles = {name: {"shuffle": results["shuffle"]} for name, results in measured.items() if "shuffle" in results}
    if len(measured) > 1:
        together = {name: {"drop_random": results["drop_random"]} for name, results in measured.items()}
        exhibits.append(
            Exhibit(
                "robustness-drop-both",
                partial(_robustness, "drop", together, 1 / num_classes),
                alt=Text("Accuracy of both models when random tiles are lost", "ランダムなタイルを失ったときの両モデルの正解率"),
                caption=Text(f"Random tiles, both models, n = {n} images.", f"ランダムなタイル、両モデル、画像 n = {n}枚。"),
                numbers={name: _curve(results["drop_random"]) for name, results in together.items()},
            )
        )
    if shuffles:
        exhibits.append(
            Exhibit(
                "robustness-shuffle",
                partial(_robustness, "shuffle", shuffles, 1 / num_classes),
                alt=Text("Accuracy when tiles are shuffled", "タイルを並べ替えたときの正解率"),
                caption=Text(f"n = {n} images.", f"画像 n = {n}枚。"),
                numbers={name: _curve(results["shuffle"]) for name, results in shuffles.items()},
            )
        )
    return Section("robustness", Text("When parts of the image are lost", "画像の一部を失うと"), lead, exhibits)


def _attention_grid(photo: Photo, found: AttentionMaps, blocks: Sequence[int], title: Text, language: Language) -> Figure:
    return plots.attention_grid(
        photo.image, found.patches[0, :, :, 0], blocks, title=getattr(title, language), heads=[head + 1 for head in found.heads],
        query=found.queries[0] if isinstance(found.queries[0], tuple) else None, language=language,
    )  # fmt: skip


def _saliency_row(each: Explained, language: Language) -> Figure:
    rows = [
        plots.MapWithScore(
            method,
            values,
            float(each.scores[method].deletion_area[0]),
            float(each.scores[method].insertion_area[0]),
            bool(each.scores[method].beats_deletion[0]),
            bool(each.scores[method].beats_insertion[0]),
        )
        for method, values in each.maps.items()
    ]
    random_area = float(next(iter(each.scores.values())).random_area[0].mean())
    title = f"{getattr(each.photo.title, language)} – {each.model}"
    return plots.saliency_row(each.photo.image, rows, random_area, title=title, language=language)


def _deletion_insertion(each: Explained, language: Language) -> Figure:
    score = next(iter(each.scores.values()))
    curves = {method: (found.deletion[0], found.insertion[0]) for method, found in each.scores.items()}
    return plots.deletion_insertion(score.shares, curves, score.random_deletion[0], language=language)


def _robustness(corruption: str, measured: Mapping[str, Mapping[str, Robustness]], chance: float, language: Language) -> Figure:
    lines = []
    unit = ""
    for name, results in measured.items():
        for kind, result in results.items():
            label = name if len(measured) > 1 or kind == "shuffle" else drop_name(kind, language)
            lines.append(plots.Line(label, np.array(result.strengths), result.accuracy, result.spread))
            unit = result.unit
    return plots.robustness(corruption, unit, lines, chance=chance, language=language)


def _curve(result: Robustness) -> dict[str, object]:
    return {"strengths": list(result.strengths), "unit": result.unit, "accuracy": result.accuracy, "spread": result.spread}


def _query_name(query: Query) -> Text:
    if query == "mean":
        return Text("the mean of all patches", "全パッチ平均")
    if isinstance(query, tuple):
        return Text(f"the patch in row {query[0] + 1}, column {query[1] + 1}", f"{query[0] + 1}行{query[1] + 1}列のパッチ")
    return {"class": Text("the class token", "クラストークン")}.get(query, Text(f"the {query} token", f"{query}トークン"))
