"""`kawara check`: what is wrong with a data set, before anything is trained on it; and the same before every training."""

from __future__ import annotations

import csv
import io
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kawara.analysis.features import extract
from kawara.analysis.label_suspects import find_label_suspects
from kawara.analysis.look_alikes import find_look_alikes
from kawara.data.decode import ImageU8, decode
from kawara.data.gate import Copies, Finding, Gate, Item, Member, inspect_data
from kawara.data.listing import Listing
from kawara.data.loading import EvalLoader
from kawara.data.preprocessing import Preprocessing
from kawara.data.sources import ImageData, load_data, open_data
from kawara.data.survey import survey
from kawara.errors import ConfigError, DataError, DecodeError
from kawara.files import new_folder, refuse_existing, write_json, write_text
from kawara.models import ImageModel
from kawara.predict import ExportedPredictor, Predictor, load
from kawara.recipes import choice
from kawara.report.check_page import CheckSummary, Picture, write_check_page
from kawara.report.check_wording import WORDS
from kawara.report.page import LARGEST_IMAGE_PX
from kawara.report.tables import finding_example
from kawara.runtime import autocast_dtype
from kawara.training.progress import Reporter

# Enough to find every fault and every copy; nothing of it is kept but signatures.
_LOOK = Preprocessing((128, 128), "rgb", crop_fraction=1.0, mean=(0.5,) * 3, std=(0.5,) * 3)
_BATCH = 64


@dataclass(frozen=True)
class Check:
    """What was found in a data set. `splits` gives the images of each part, as training would make them."""

    data: str
    description: str
    class_names: tuple[str, ...]
    splits: dict[str, int]
    gate: Gate
    report: Path | None
    seconds: float

    @property
    def is_clean(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return not self.gate.of("error", "warning")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "data": self.data,
            "description": self.description,
            "num_classes": len(self.class_names),
            "splits": self.splits,
            **gate_to_dict(self.gate),
            "report": None if self.report is None else str(self.report),
            "seconds": self.seconds,
        }


def check(
    data: str | Path,
    *,
    model: str | Path | None = None,
    out: str | Path | None = None,
    device: str | None = None,
    reporter: Reporter | None = None,
) -> Check:
    """Look at every file of a data set and at its classes, parts and copies. Nothing is changed.

    Args:
        data: anything that `train` takes.
        model: a model file or a checkpoint of others; from its features images are told whose label is probably wrong, and crops and
            other copies that no hash finds.
        out: a new folder for report.html, check.json and quarantine.csv; without it nothing is written but signatures in the cache.

    Raises:
        DataError: there is no data set at `data`.
        ConfigError: `model` is an exported file, which gives no features.
    """
    started = time.monotonic()
    if out is not None:
        refuse_existing(Path(out))
    reporter = reporter or Reporter(quiet=True)
    predictor = None if model is None else _backbone(model, device)
    listing = open_data(data)
    images = load_data(
        listing,
        _LOOK if predictor is None else predictor.card.preprocessing,
        val_fraction=choice.val_fraction(survey(listing)),
        progress=reporter.progress_of("checking images"),
        only_examine=True,
    )
    gate = inspect_data(images)
    if predictor is not None and any(map(len, images.splits.values())):
        features = _features(predictor, images, reporter)
        gate = gate.with_items("label-suspect", _label_suspects(features, images))
        for kind, copies in _look_alikes(features, images, gate, reporter).items():
            gate = gate.with_copies(kind, copies)
    sizes = {name: len(split) for name, split in images.splits.items()}
    report = None if out is None else Path(out) / "report.html"
    found = Check(str(data), images.description, images.class_names, sizes, gate, report, round(time.monotonic() - started, 2))
    if out is not None:
        with new_folder(out) as folder:
            write_gate(gate, folder)
            summary = CheckSummary(found.data, found.description, sizes, gate, found.seconds)
            write_check_page(folder / "report.html", summary, _pictures(listing))
    return found


def _backbone(model: str | Path, device: str | None) -> Predictor:
    predictor = load(model, device=device)
    if isinstance(predictor, ExportedPredictor):
        raise ConfigError("An exported file has answers, but no features.", got=f"--model {model}", remedy="the model file")
    return predictor


def _features(predictor: Predictor, images: ImageData, reporter: Reporter) -> np.ndarray:
    """Send every image through the backbone: (n, D), part after part."""
    assert isinstance(predictor.model, ImageModel)
    features = []
    for split in images.splits.values():
        if not len(split):
            continue
        loader = EvalLoader(split, predictor.card.preprocessing, batch_size=_BATCH, device=predictor.device)
        progress = reporter.progress_of(f"features of {split.name}")
        features.append(extract(predictor.model, loader, autocast_dtype("auto", predictor.device), progress=progress).pooled.numpy())
    return np.concatenate(features)


def _members(images: ImageData) -> list[Member]:
    """Name every image, part after part."""
    names = images.class_names
    return [
        Member(key, names[label], split.name) for split in images.splits.values() for key, label in zip(split.keys, split.labels.tolist())
    ]


def _label_suspects(features: np.ndarray, images: ImageData) -> list[Item]:
    """Return the images that look like another class than the one they have."""
    members, labels = _members(images), np.concatenate([split.labels for split in images.splits.values()])
    found = find_label_suspects(features, labels)
    return [
        Item(members[position].path, f"{members[position].class_name}; looks like {images.class_names[suggested]} ({-margin:.2f})")
        for position, suggested, margin in zip(found.positions.tolist(), found.suggested.tolist(), found.margins.tolist())
    ]


def _look_alikes(features: np.ndarray, images: ImageData, gate: Gate, reporter: Reporter) -> dict[str, list[Copies]]:
    """Return the pairs in two parts or two classes that the model takes for the same, without the copies that are known already."""
    found = find_look_alikes(features)
    if found is None:
        reporter.say("To this model too many images look alike to tell copies by it: no list of them is made.")
        return {}
    members = _members(images)
    known = {
        frozenset(pair)
        for finding in gate.findings
        for copies in finding.copies
        for pair in itertools.combinations([m.path for m in copies.members], 2)
    }
    kinds: dict[str, list[Copies]] = {"alike-two-splits": [], "alike-two-classes": []}
    for one, other, cosine in zip(found.first.tolist(), found.second.tolist(), found.cosine.tolist()):
        pair = members[one], members[other]
        if frozenset(member.path for member in pair) in known:
            continue
        copies = Copies(pair, round(cosine, 4))
        if pair[0].split != pair[1].split:
            kinds["alike-two-splits"].append(copies)
        if pair[0].class_name != pair[1].class_name:
            kinds["alike-two-classes"].append(copies)
    return kinds


def gate_to_dict(gate: Gate) -> dict[str, Any]:
    """Return JSON values, with what each kind means in English."""
    values = gate.to_dict()
    for finding in values["findings"]:
        words = WORDS[finding["kind"]]
        finding |= {"what": words.title.en, "treatment": words.treatment.en}
    return values


def write_gate(gate: Gate, folder: Path) -> None:
    """Write check.json, everything that was found, and quarantine.csv, the files that are not used."""
    write_json(folder / "check.json", gate_to_dict(gate))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "kind", "reason", "class", "split"])
    writer.writerows([file.path, file.kind, file.reason, file.class_name or "", file.split or ""] for file in gate.quarantined)
    write_text(folder / "quarantine.csv", text.getvalue())


def announce_findings(gate: Gate, reporter: Reporter) -> None:
    """Say before a training what its result should be read with; a clean data set is passed over in silence."""
    for finding in gate.of("warning"):
        words = WORDS[finding.kind]
        reporter.say(f"warning: {words.title.en}: {finding.count:,} ({words.treatment.en}), for instance {finding_example(finding)}")
    if gate.quarantined:
        reporter.say(f"{gate.num_files:,} files: {gate.num_images:,} images are used, {len(gate.quarantined):,} are quarantined")


def stop_at_findings(gate: Gate, data: str) -> None:
    """Raise DataError if there is an error or a warning: what --strict asks for."""
    serious: list[Finding] = gate.of("error", "warning")
    if serious:
        counts = gate.counts()
        first = WORDS[serious[0].kind].title.en
        raise DataError(
            f"{data} has {counts['error']:,} errors and {counts['warning']:,} warnings, and --strict allows none.",
            got=f"{first}: {finding_example(serious[0])}",
            remedy=f"kawara check {data}, which lists them; without --strict the files with errors are left out",
        )


def _pictures(listing: Listing) -> Picture:
    """Return a function that decodes the image with a path anew, None where it cannot."""
    records = {record.key: record for record in listing.records}
    arrays = {part.name: part.images_u8 for part in listing.arrays}

    def picture(path: str) -> ImageU8 | None:
        if path in records:
            try:
                return decode(records[path].read(), path, min_side=LARGEST_IMAGE_PX)
            except (DecodeError, OSError):
                return None
        name, _, row = path.rpartition("[")
        return np.ascontiguousarray(arrays[name][int(row.rstrip("]"))]) if name in arrays else None

    return picture
