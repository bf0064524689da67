"""`kawara inspect`: what a model looks at, layer by layer, on one page."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kawara.analysis import evidence
from kawara.analysis.attention import AttentionMaps, attention_maps
from kawara.analysis.attention_statistics import AttentionStatistics, attention_statistics
from kawara.analysis.attribution import saliency_methods
from kawara.analysis.filters import first_filters
from kawara.analysis.localisation import localisation
from kawara.analysis.outliers import token_norms
from kawara.analysis.places import skip_places
from kawara.analysis.positions import position_similarity
from kawara.analysis.similarity import MIN_IMAGES, cka_between, cka_within
from kawara.analysis.skip import skip_ratios
from kawara.analysis.spectrum import spectra
from kawara.errors import ConfigError
from kawara.files import new_folder, refuse_existing, write_json
from kawara.models import ImageModel
from kawara.plots.saliency import method_name
from kawara.plots.style import Language, has_japanese_font
from kawara.predict import Predictor, load
from kawara.report import inspection_layers as layers
from kawara.report import inspection_sections as sections
from kawara.report.exhibits import Section, as_json
from kawara.report.inspection_page import Answer, AnswerGroup, InspectionSummary, write_inspection
from kawara.report.verdicts import Evidence, Verdict, judge
from kawara.report.wording import Text
from kawara.runtime import peak_memory_bytes
from kawara.training.progress import Reporter
from kawara.training.run_folder import next_free
from kawara.verbs import inspection_measures as measures
from kawara.verbs.inspection_facts import chosen_attention, distinct, facts, groups_to_look_at, images_text, labels_of, shown_class_names
from kawara.verbs.inspection_images import ImageSet, gather
from kawara.verbs.inspection_measures import CKA_BATCH, Subject

DEFAULT_PHOTOS = 16
NUM_PATCH_PHOTOS = 3
NUM_GUESSES = 3


@dataclass(frozen=True)
class Inspection:
    """Where the page lies and what it says in short."""

    folder: Path
    model: str
    other: str | None
    num_images: int
    num_statistics: int
    """Images behind means over images."""
    num_photos: int
    """Images with maps."""
    part: str | None
    deviation: float | None
    """The largest distance of A V from what an attention layer answered, as a share of its largest value."""
    verdicts: list[Verdict]
    figures: list[str]
    skipped: list[tuple[str, str]]
    seconds: float
    peak_memory_bytes: int

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "folder": str(self.folder),
            "report": str(self.report),
            "model": self.model,
            "other": self.other,
            "num_images": self.num_images,
            "num_statistics": self.num_statistics,
            "num_photos": self.num_photos,
            "part": self.part,
            "attention_deviation": self.deviation,
            "verdicts": as_json([verdict.to_dict() for verdict in self.verdicts]),
            "figures": self.figures,
            "skipped": len(self.skipped),
            "skipped_files": [{"path": path, "reason": reason} for path, reason in self.skipped],
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
        }


def inspect(
    model: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    other: str | Path | None = None,
    out: str | Path | None = None,
    photos: int = DEFAULT_PHOTOS,
    blocks: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    language: Language | None = None,
    device: str | None = None,
    reporter: Reporter | None = None,
) -> Inspection:
    """Look into a model and write a page about it.

    Args:
        model: anything that `load` takes, ViT or CNN.
        images: files, folders or globs, without labels; or one data set as for `train`, of which the test part is used, else val, else all.
        other: a second model to compare with, on the same images.
        out: a new folder; by default runs/inspect-<model>-<number>.
        photos: for how many images maps are drawn; statistics use up to 256.
        blocks, heads: whose attention is drawn, counted from 1; by default four depths and up to six heads.
        language: of the PNG files, and the one the page opens in; None is English files and the language of the reader.

    Raises:
        ConfigError: blocks or heads that do not exist, or attention asked of a model without any.
        DataError: there is no image that can be read.
        ModelFileError: a model cannot be read.
        RunFolderError: there is something at `out`.
    """
    started = time.monotonic()
    reporter = reporter or Reporter(quiet=True)
    if photos < 1:
        raise ConfigError("At least one photo is needed.", got=photos, allowed="1 or more")
    if out is not None:
        refuse_existing(Path(out))
    spoken = [str(each) for each in ([images] if isinstance(images, str | Path) else images)]
    paths = [str(model)] + ([] if other is None else [str(other)])
    predictors = [_unmerged(load(_not_exported(path), device=device), reporter) for path in paths]
    cards = distinct([predictor.card for predictor in predictors])
    first_model = predictors[0].model
    assert isinstance(first_model, ImageModel)
    chosen_blocks, chosen_heads = chosen_attention(first_model, blocks, heads)
    most = max(photos, measures.MAX_IMAGES)
    found = gather(spoken, cards, most, reporter)
    subjects = []
    for predictor, card, placed in zip(predictors, cards, found.placed):
        assert isinstance(predictor.model, ImageModel)
        labels = labels_of(found.labels, cards[0], card)
        subjects.append(Subject(predictor.model, card, placed, labels, predictor.device))
    looked = _Look(subjects, found, photos, chosen_blocks, chosen_heads, reporter)
    looked.run()

    if language == "ja" and not has_japanese_font():
        reporter.say("No Japanese font was found: the PNG files show boxes. The page uses the fonts of its reader and is not concerned.")
    folder = Path(out) if out is not None else next_free(Path("runs") / f"inspect-{_file_name(cards[0].name)}")
    command = shlex.join(["kawara", "inspect", *(str(each) for each in (model, *spoken))])
    command += f" --with {shlex.quote(str(other))}" if other is not None else ""
    summary = InspectionSummary(
        models=[facts(subject, path) for subject, path in zip(subjects, paths)],
        images=images_text(found),
        groups=looked.groups,
        map_method=looked.map_method,
        sections=looked.sections,
        verdicts=judge(looked.evidence),
        skipped=[(file.path, file.reason) for file in found.skipped],
        seconds=time.monotonic() - started,
        command=command,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as temporary:
        figures = write_inspection(temporary, summary, language=language, progress=reporter.progress_of("drawing"))
        inspection = Inspection(
            folder=folder,
            model=cards[0].name,
            other=cards[1].name if other is not None else None,
            num_images=len(found),
            num_statistics=looked.num_statistics,
            num_photos=len(looked.photos),
            part=found.part if found.labels is not None else None,
            deviation=looked.deviation,
            verdicts=summary.verdicts,
            figures=figures,
            skipped=summary.skipped,
            seconds=time.monotonic() - started,
            peak_memory_bytes=peak_memory_bytes(subjects[0].device),
        )
        write_json(temporary / "inspection.json", inspection.to_dict())
    return inspection


class _Look:
    """One pass through all analyses: `run` fills groups, sections and evidence."""

    def __init__(
        self, subjects: list[Subject], found: ImageSet, photos: int, blocks: list[int] | None, heads: list[int] | None, reporter: Reporter
    ):
        self.subjects, self.found, self.blocks, self.heads, self.reporter = subjects, found, blocks, heads, reporter
        self.first, self.num_classes = subjects[0], subjects[0].model.config.num_classes
        self.wanted = min(photos, len(found))
        self.num_statistics = min(measures.num_for_statistics(subject) for subject in subjects)
        self.photos: list[int] = []
        self.groups: list[AnswerGroup] = []
        self.sections: list[Section] = []
        self.evidence: dict[str, Evidence] = {}
        self.map_method: Text | None = None
        self.maps: np.ndarray | None = None
        self.statistics: AttentionStatistics | None = None
        self.deviation: float | None = None

    def run(self) -> None:
        """Measure everything, in the order of the page."""
        steps: list[tuple[str, Callable[[], None]]] = [
            ("answers", self.answer),
            ("attention", self.attend),
            ("explanations", self.explain),
            ("positions and filters", self.structure),
            ("similarity of layers", self.compare),
            ("robustness", self.lose),
        ]
        for number, (name, step) in enumerate(steps):
            self.reporter.progress("inspecting", number / len(steps), name)
            step()
        self.reporter.progress("inspecting", 1.0)

    @torch.no_grad()
    def answer(self) -> None:
        """Find the photos to look at first, with the answers to them."""
        first = self.first
        if not first.has_head:
            self.photos = list(range(self.wanted))
            title = Text("The photos", "画像")
            answers = [Answer(first.picture(index), self.found.keys[index], (), None, None) for index in self.photos]
            self.groups = [AnswerGroup(title, sections.NO_HEAD, answers)]
            return
        parts = [first.model(batch).float().softmax(dim=1).cpu() for batch in first.batches(len(self.found))]
        probabilities = torch.cat(parts)
        groups = groups_to_look_at(probabilities, first.labels, self.wanted)
        self.photos = [index for _, _, chosen in groups for index in chosen]
        method, self.maps = measures.cheap_maps(first, self.photos)
        if method is not None:
            name = Text(method_name(method, "en"), method_name(method, "ja"))
            self.map_method = Text(
                f"Beside each photo: {name.en}, what the first answer rests on; darker cells count more.",
                f"各画像の右は{name.ja}による回答の根拠です。色の濃い部分ほど重要です。",
            )
        place = {index: number for number, index in enumerate(self.photos)}
        names = shown_class_names(first.card)
        for title, note, chosen in groups:
            answers = []
            for index in chosen:
                scores, classes = probabilities[index].topk(min(NUM_GUESSES, self.num_classes))
                guesses = tuple((names[int(which)], float(score)) for which, score in zip(classes, scores))
                label = None if first.labels is None else names[int(first.labels[index])]
                shown = None if self.maps is None else self.maps[place[index]]
                answers.append(Answer(first.picture(index), self.found.keys[index], guesses, label, shown))
            self.groups.append(AnswerGroup(title, note, answers))

    def attend(self) -> None:
        """Draw attention of the photos, and measure how far heads look."""
        first = self.first
        if not first.has_attention:
            title = Text("Attention maps", "アテンションマップ")
            self.sections.append(Section("attention", title, sections.NO_ATTENTION, absent=[sections.NO_ATTENTION]))
            return
        maps, patch_maps = [], []
        for number, index in enumerate(self.photos):
            image = first.normalised([index])
            maps.append(attention_maps(first.model, image, blocks=self.blocks, heads=self.heads))
            if number < NUM_PATCH_PHOTOS:
                query = self._patch_of(number, maps[-1])
                patch_maps.append(attention_maps(first.model, image, blocks=self.blocks, heads=self.heads, queries=[query]))
        batches = _reported(first.batches(self.num_statistics), self.num_statistics, self.reporter, "attention")
        statistics = attention_statistics(first.model, batches)
        self.deviation = max(statistics.deviation, *(max(found.deviation) for found in (*maps, *patch_maps)))
        blocks = [block + 1 for block in self.blocks or range(len(statistics.places))]
        photos = [self._photo(index) for index in self.photos]
        self.sections.append(sections.attention_section(photos, maps, patch_maps, blocks, self.deviation))
        self.statistics = statistics
        n = statistics.num_images
        self.evidence["local_heads_below"] = Evidence(evidence.nearest_head_below(statistics), n)
        self.evidence["global_heads_above"] = Evidence(evidence.nearest_head_above(statistics), n)

    def explain(self) -> None:
        """Put methods beside each other for a few photos, each with its faithfulness; then add the section on how far heads look."""
        if self.first.has_head:
            subjects = [subject for subject in self.subjects if subject.has_head]
            count = measures.num_scored(subjects, len(self.photos))
            explained = []
            for number, index in enumerate(self.photos[:count]):
                for subject in subjects:
                    self.reporter.progress("explaining", number / count, f"{number} of {count} photos")
                    maps, scores = measures.scored_maps(subject, index)
                    photo = sections.Photo(subject.picture(index), self._title(index))
                    explained.append(sections.Explained(photo, subject.card.name, maps, scores))
            section = sections.explanation_section(explained, count)
            if "rollout" not in saliency_methods(self.first.model):
                section.absent.append(
                    Text("Rollout needs attention, which this model has not.", "ロールアウトにはアテンションが必要です。")
                )
            self.sections.append(section)
        else:
            title = Text("What an answer rests on", "回答の根拠")
            self.sections.append(Section("explanations", title, sections.NO_HEAD, absent=[sections.NO_HEAD]))
        if self.statistics is not None:
            self.sections.append(sections.reach_section(self.first.card.name, self.statistics))

    def structure(self) -> None:
        """Read positions and filters from the weights."""
        positions = None
        with suppress(ConfigError):
            positions = position_similarity(self.first.model)
        filters = {}
        for subject in self.subjects:
            with suppress(ConfigError):
                filters[subject.card.name] = first_filters(subject.model)
        self.sections.append(layers.structure_section(positions, filters))

    def compare(self) -> None:
        """Compare layers, take skips away, look for places, fields of view, frequencies and norms."""
        n, first, name = self.num_statistics, self.first, self.first.card.name
        exhibits, absent = [], []

        def batches(subject: Subject, what: str, size: int = CKA_BATCH) -> Iterator[Tensor]:
            return _reported(subject.batches(n, size), n, self.reporter, what)

        if n >= MIN_IMAGES:
            similarities = []
            for subject in self.subjects:
                similarities.append((subject.card.name, None, cka_within(subject.model, batches(subject, "similarity"))))
            within = similarities[0][2]
            self.evidence["halves_differ"] = Evidence(within.lower_with_upper, within.num_images)
            for other in self.subjects[1:]:
                between = cka_between(first.model, batches(first, "similarity"), other.model, other.batches(n, CKA_BATCH))
                similarities.append((name, other.card.name, between))
                self.evidence["top_unlike_other"] = Evidence(evidence.best_match_of_top(between), between.num_images)
            exhibits += layers.cka_exhibits(similarities)
        else:
            absent.append(layers.TOO_FEW_FOR_CKA)
        try:
            places = skip_places(first.model)
        except ConfigError:
            absent.append(layers.NO_SKIPS)
        else:
            ratios = skip_ratios(first.model, batches(first, "skip connections"))
            missing = Text("The model has no class token.", "このモデルにはクラストークンがありません。")
            if first.has_attention:
                self.evidence["skip_carries_class_token_early"] = self._class_token(ratios, late=False, missing=missing)
                self.evidence["class_token_rewritten_late"] = self._class_token(ratios, late=True, missing=missing)
            removal = measures.removal(first, places) if first.has_head and n >= MIN_IMAGES else None
            if removal is not None:
                self.evidence["one_skip_is_missed"] = Evidence(evidence.kept_without_worst_skip(removal), removal.num_images)
            exhibits += layers.skip_exhibits(ratios, removal)
        if n >= MIN_IMAGES:
            located = localisation(first.model, batches(first, "localisation"))
            self.evidence["place_is_kept"] = Evidence(located[-1].share_at_home, located[-1].num_images)
            exhibits += layers.localisation_exhibits(located)
        self.reporter.progress("receptive fields", 0.0)
        fields = {subject.card.name: measures.fields(subject) for subject in self.subjects}
        exhibits += layers.field_exhibits(fields)
        after = fields[name][0]
        self.evidence["sees_far_at_once"] = Evidence(evidence.view_of_first(after), after.num_images)
        self.evidence["sees_everything_in_the_end"] = Evidence(evidence.view_of_last(after), after.num_images)
        spectrum = spectra(first.model, batches(first, "frequencies"))
        exhibits += layers.spectrum_exhibits(spectrum)
        if first.has_attention:
            self.evidence["attention_smooths"] = Evidence(evidence.sharpening(spectrum, ["attention"]), spectrum.num_images)
            norms = token_norms(first.model, batches(first, "norms"))
            self.evidence["loud_tokens"] = Evidence(evidence.largest_share_of_outliers(norms), len(norms.norms[0]))
            exhibits += layers.norm_exhibits(norms)
        self.sections.append(layers.layers_section(exhibits, absent))

    def lose(self) -> None:
        """Measure what is left of the accuracy when parts of the image are lost."""
        title = Text("When parts of the image are lost", "画像の一部を失うと")
        if self.first.labels is None or not self.first.has_head:
            self.sections.append(Section("robustness", title, sections.NO_LABELS, absent=[sections.NO_LABELS]))
            self.evidence["survives_lost_tiles"] = Evidence(None, 0, Text("It needs images with labels.", "ラベル付きの画像が必要です。"))
            return
        subjects = [subject for subject in self.subjects if subject.labels is not None and subject.has_head]
        count = measures.num_for_robustness(subjects)
        measured = {}
        for number, subject in enumerate(subjects):
            self.reporter.progress("robustness", number / len(subjects), subject.card.name)
            measured[subject.card.name] = measures.robust_to_loss(subject, self.first, count)
        self.sections.append(sections.robustness_section(measured, self.num_classes))
        random = measured[self.first.card.name]["drop_random"]
        useless = Text(
            "Even whole images are answered hardly better than by chance.", "欠けのない画像でも、正解率が当て推量とほとんど変わりません。"
        )
        kept = evidence.kept_with_half_lost(random, 1 / self.num_classes)
        self.evidence["survives_lost_tiles"] = Evidence(kept, count, useless)

    def _class_token(self, ratios: Any, *, late: bool, missing: Text) -> Evidence:
        if not getattr(self.first.model.config, "class_token", False):
            return Evidence(None, ratios.num_images, missing)
        return Evidence(evidence.class_token_carried(ratios, late=late), ratios.num_images)

    def _patch_of(self, number: int, maps: AttentionMaps) -> tuple[int, int]:
        """Return the patch that the answer rests on most, or the one in the middle."""
        if self.maps is None:
            return maps.layout.grid[0] // 2, maps.layout.grid[1] // 2
        row, column = np.unravel_index(int(self.maps[number].argmax()), self.maps.shape[1:])
        return int(row), int(column)

    def _photo(self, index: int) -> sections.Photo:
        return sections.Photo(self.first.picture(index), self._title(index))

    def _title(self, index: int) -> Text:
        name = Path(self.found.keys[index]).name
        return Text(name, name)


def _reported(batches: Iterator[Tensor], total: int, reporter: Reporter, title: str) -> Iterator[Tensor]:
    done = 0
    for batch in batches:
        reporter.progress(title, done / total, f"{done} of {total} images")
        yield batch
        done += len(batch)
    reporter.progress(title, 1.0, f"{total} images")


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def _unmerged(predictor: Predictor, reporter: Reporter) -> Predictor:
    """Return a model as it is without token merging: what is merged stands for no one place in the image."""
    if not getattr(predictor.card.config, "merge", 0):
        return predictor
    reporter.say(f"{predictor.card.name} merges tokens; it is inspected without that.")
    return predictor.with_merging(0)


def _not_exported(path: str) -> str:
    """Return `path`. Raises ConfigError for an exported model, whose inside cannot be watched."""
    if path.lower().endswith((".onnx", ".xml", ".ort")):
        raise ConfigError(
            "An exported model cannot be watched at work.", got=path, remedy="the model.safetensors that it was exported from"
        )
    return path
