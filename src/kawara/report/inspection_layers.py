"""What an inspection says about layers: positions and filters, similarity, skips, location, fields of view, frequencies, norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.figure import Figure

from kawara import plots
from kawara.analysis.filters import Filters
from kawara.analysis.localisation import Localisation
from kawara.analysis.outliers import TokenNorms
from kawara.analysis.positions import PositionSimilarity
from kawara.analysis.receptive_field import ReceptiveFields
from kawara.analysis.similarity import Similarity
from kawara.analysis.skip import SkipRatios, SkipRemoval
from kawara.analysis.spectrum import Spectra
from kawara.plots.style import Language
from kawara.report.exhibits import Exhibit, Section
from kawara.report.wording import Text

STABLE_LOCALISATION = 200
"""Images from which on the place of single tokens is told apart from noise."""

NO_POSITIONS = Text("This model has no table of positions.", "このモデルには位置埋め込みの表がありません。")
NO_SKIPS = Text(
    "The skip connections of this model are no places that can be read or taken away.",
    "このモデルのスキップ接続は、読み取りや取り外しができる形になっていません。",
)
TOO_FEW_FOR_CKA = Text("CKA and localisation need at least four images.", "CKAと位置特定には4枚以上の画像が必要です。")


def structure_section(positions: PositionSimilarity | None, filters: Mapping[str, Filters]) -> Section:
    """Show what the weights alone say: the position table, and the first filters of each model (by name)."""
    lead = Text(
        "Read from the weights, without any image. In a trained position table a cell resembles its own surroundings, row and column.",
        "画像を使わず、重みだけから読み取った結果です。学習済みの位置埋め込みでは、各位置が周囲や同じ行・列の位置と似ます。",
    )
    exhibits = []
    if positions is not None:
        means = (positions.same_row, positions.same_column, positions.elsewhere)
        exhibits.append(
            Exhibit(
                "positions",
                lambda language: plots.position_mosaic(positions.cosine, language=language),
                alt=Text("Similarity of position embeddings", "位置埋め込みの類似度"),
                caption=Text(
                    "Mean cosine: {:.2f} in one row, {:.2f} in one column, {:.2f} elsewhere.".format(*means),
                    "平均コサイン類似度：同じ行 {:.2f}、同じ列 {:.2f}、その他 {:.2f}。".format(*means),
                ),
                numbers={
                    "cosine": positions.cosine,
                    "same_row": positions.same_row,
                    "same_column": positions.same_column,
                    "elsewhere": positions.elsewhere,
                },
            )
        )
    for number, (name, found) in enumerate(filters.items(), start=1):
        what = (
            Text("principal components of the patch embedding", "パッチ埋め込みの主成分")
            if found.kind == "components"
            else Text("kernels of the first convolution", "最初の畳み込みのカーネル")
        )
        exhibits.append(
            Exhibit(
                f"filters-{number}",
                partial(_filters, found),
                alt=Text(f"First filters of {name}", f"{name}の最初のフィルター"),
                caption=Text(f"{name}: {what.en}, each on its own scale.", f"{name}：{what.ja}（尺度は個別）。"),
                numbers={
                    "model": name,
                    "kind": found.kind,
                    "tiles": found.tiles,
                    "explained": found.explained,
                    "num_filters": found.num_filters,
                },
            )
        )
    absent = [] if positions is not None else [NO_POSITIONS]
    return Section("structure", Text("Positions and first filters", "位置埋め込みと最初のフィルター"), lead, exhibits, absent)


def cka_exhibits(similarities: Sequence[tuple[str, str | None, Similarity]]) -> list[Exhibit]:
    """Show CKA maps: (model of the rows, model of the columns or None for the same, record)."""
    exhibits = []
    for number, (rows, columns, found) in enumerate(similarities, start=1):
        caption = Text(f"{rows}, n = {found.num_images} images.", f"{rows}、画像 n = {found.num_images}枚。")
        if columns is None:
            mean = found.lower_with_upper
            caption = Text(
                f"{rows}, n = {found.num_images} images. Mean of lower with upper half: {mean:.2f}.",
                f"{rows}、画像 n = {found.num_images}枚。前半と後半の層の平均 {mean:.2f}。",
            )
        exhibits.append(
            Exhibit(
                f"cka-{number}",
                partial(_cka, rows, columns, found),
                alt=Text(f"CKA of the layers of {rows} with those of {columns or rows}", f"{rows}と{columns or rows}の層のCKA"),
                caption=caption,
                numbers={
                    "rows": list(found.rows),
                    "columns": list(found.columns),
                    "cka": found.cka,
                    "num_images": found.num_images,
                },
            )
        )
    return exhibits


def skip_exhibits(ratios: SkipRatios, removal: SkipRemoval | None) -> list[Exhibit]:
    """Show what the skip connections carry, and what is left without one of them."""
    n = ratios.num_images
    exhibits = [
        Exhibit(
            "skip-ratios",
            lambda language: plots.skip_ratio_map(ratios.tokens, ratios.places, num_prefix=ratios.num_prefix, language=language),
            alt=Text("Ratio of skip and branch at every token", "各トークンでのスキップと分岐の比"),
            caption=Text(f"n = {n} images.", f"画像 n = {n}枚。"),
            numbers={
                "places": list(ratios.places),
                "num_prefix": ratios.num_prefix,
                "num_images": n,
                **{f"ratio_{place}": values for place, values in zip(ratios.places, ratios.tokens)},
            },
        )
    ]
    if removal is not None:
        exhibits.append(
            Exhibit(
                "skip-removal",
                lambda language: plots.skip_removal_bars(
                    removal.places, removal.agreement, removal.cka, accuracy=removal.accuracy, accuracy_intact=removal.accuracy_intact,
                    language=language,
                ),
                alt=Text("What is left without one skip connection", "スキップ接続を1つ外したときに残るもの"),
                caption=Text(
                    f"n = {removal.num_images} images; taken away from the trained model, one at a time.",
                    f"画像 n = {removal.num_images}枚。学習済みモデルから1つずつ外しています。",
                ),
                numbers={
                    "places": list(removal.places),
                    "agreement": removal.agreement,
                    "cka": removal.cka,
                    "accuracy": removal.accuracy,
                    "accuracy_intact": removal.accuracy_intact,
                    "num_images": removal.num_images,
                },
            )
        )  # fmt: skip
    return exhibits


def localisation_exhibits(found: Sequence[Localisation]) -> list[Exhibit]:
    """Show where tokens resemble the pixels, at several depths and for the last of them place by place."""
    last = found[-1]
    n = last.num_images
    caution = Text("", "")
    if n < STABLE_LOCALISATION:
        caution = Text(
            f" Below {STABLE_LOCALISATION} images single tokens are mostly noise.",
            f"{STABLE_LOCALISATION}枚未満では、個々のトークンの値はほとんど雑音です。",
        )
    shares = [each.share_at_home for each in found]
    caption = Text(f"n = {n} images.{caution.en}", f"画像 n = {n}枚。{caution.ja}")
    return [
        Exhibit(
            "localisation",
            lambda language: plots.localisation_by_depth(
                [each.by_distance() for each in found], [each.layer for each in found], shares, language=language
            ),
            alt=Text("CKA of tokens and pixels by distance", "トークンと画素のCKAと距離"),
            caption=caption,
            numbers={
                "layers": [each.layer for each in found],
                "share_at_home": shares,
                "by_distance": [each.by_distance() for each in found],
                "num_images": n,
            },
        ),
        Exhibit(
            "localisation-grid",
            lambda language: plots.localisation_grid(last.tokens, language=language),
            alt=Text(
                f"CKA of nine tokens of {last.layer} with the pixels at every place", f"{last.layer}の9つのトークンと各位置の画素のCKA"
            ),
            caption=Text(f"{last.layer}, {caption.en}", f"{last.layer}、{caption.ja}"),
            numbers={"layer": last.layer, "cka": last.cka, "num_prefix": last.num_prefix, "num_images": n},
            folded=True,
        ),
    ]


def field_exhibits(fields: Mapping[str, tuple[ReceptiveFields, ReceptiveFields | None]]) -> list[Exhibit]:
    """Show effective receptive fields of each model (by name), after the residual and, where there is one, before it."""
    exhibits = []
    for number, (name, (after, before)) in enumerate(fields.items(), start=1):
        exhibits.append(
            Exhibit(
                f"receptive-field-{number}",
                partial(_fields, after, before),
                alt=Text(f"Effective receptive fields of {name}", f"{name}の実効受容野"),
                caption=Text(f"{name}, n = {after.num_images} images.", f"{name}、画像 n = {after.num_images}枚。"),
                numbers={
                    "model": name,
                    "places": list(after.places),
                    "mean_distance_px": after.mean_distance_px,
                    "before_residual_mean_distance_px": None if before is None else before.mean_distance_px,
                    "gradient": after.gradient,
                    "num_images": after.num_images,
                },
            )
        )
    return exhibits


def spectrum_exhibits(found: Spectra) -> list[Exhibit]:
    """Show which frequencies the stream keeps, and how much its maps vary."""
    n = Text(f"n = {found.num_images} images.", f"画像 n = {found.num_images}枚。")
    numbers = {
        "places": list(found.places),
        "kinds": list(found.kinds),
        "frequency_in_pi": found.frequency,
        "delta_log_amplitude": found.log_amplitude,
        "variance": found.variance,
        "num_images": found.num_images,
    }
    return [
        Exhibit(
            "frequencies",
            lambda language: plots.fourier_curves(found.frequency, found.log_amplitude, language=language),
            alt=Text("Amplitude of each spatial frequency, by depth", "空間周波数ごとの振幅と深さ"),
            caption=n,
            numbers=numbers,
        ),
        Exhibit(
            "high-frequencies",
            lambda language: plots.high_frequencies(found.at_highest, found.kinds, language=language),
            alt=Text("Amplitude at the highest frequency by depth", "最高周波数の振幅と深さ"),
            caption=n,
            numbers={"at_highest": found.at_highest, "kinds": list(found.kinds), "num_images": found.num_images},
        ),
        Exhibit(
            "variance",
            lambda language: plots.variance_by_depth(found.variance, found.kinds, language=language),
            alt=Text("Variance of the maps by depth", "特徴マップの分散と深さ"),
            caption=n,
            numbers={"variance": found.variance, "kinds": list(found.kinds), "num_images": found.num_images},
        ),
    ]


def norm_exhibits(found: TokenNorms) -> list[Exhibit]:
    """Show the norms of the tokens, and where the last block has outliers."""
    n = len(found.norms[0])
    return [
        Exhibit(
            "token-norms",
            lambda language: plots.norm_histograms(found.norms, found.places, thresholds=found.thresholds, language=language),
            alt=Text("Distribution of the norms of the tokens in every block", "各ブロックのトークンのノルム分布"),
            caption=Text(
                f"n = {n} images. Tokens above the mark: at most {100 * found.shares.max():.1f} % in a block.",
                f"画像 n = {n}枚。しきい値を超えるトークンは、1ブロックあたり最大{100 * found.shares.max():.1f}%です。",
            ),
            numbers={
                "places": list(found.places),
                "thresholds": found.thresholds,
                "shares_above": found.shares,
                "bimodality": found.bimodality,
                "num_images": n,
            },
        ),
        Exhibit(
            "high-norm-places",
            lambda language: plots.outlier_places(found.where(), language=language),
            alt=Text("Where high-norm tokens lie", "高ノルムトークンの位置"),
            caption=Text(f"Last block, n = {n} images.", f"最後のブロック、画像 n = {n}枚。"),
            numbers={"share": found.where(), "num_images": n},
            folded=True,
        ),
    ]


def layers_section(exhibits: list[Exhibit], absent: list[Text]) -> Section:
    """Put what was measured of the layers into one section."""
    lead = Text(
        "How alike layers are (CKA), what the skip connections carry, whether tokens keep their place, which pixels each depth depends on, "
        "and which frequencies it keeps. Layers carry the names of their modules, which count from 0.",
        "層同士の類似（CKA）、スキップ接続が運ぶもの、トークンが位置を保つか、各深さが依存する画素、保たれる周波数を示します。層の名前はモジュール名で、0から数えます。",
    )
    return Section("layers", Text("From layer to layer", "層から層へ"), lead, exhibits, absent)


def _filters(found: Filters, language: Language) -> Figure:
    return plots.filter_tiles(
        found.tiles, kind=found.kind, explained=found.explained, num_filters=found.num_filters, language=language
    )  # fmt: skip


def _cka(rows: str, columns: str | None, found: Similarity, language: Language) -> Figure:
    return plots.cka_map(found.cka, found.rows, found.columns, row_model=rows, column_model=columns, language=language)


def _fields(after: ReceptiveFields, before: ReceptiveFields | None, language: Language) -> Figure:
    return plots.receptive_field_rows(
        after.gradient,
        after.places,
        after.mean_distance_px,
        before=None if before is None else before.gradient,
        before_distance_px=None if before is None else before.mean_distance_px,
        language=language,
    )
