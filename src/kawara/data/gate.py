"""What is wrong with a data set, file by file: decided from what the one pass over its files has found; nothing is decoded here.

    error      the file is not used, or training is impossible
    warning    it is used, and the result may mean less than it seems: copies on both sides of a split, a class of three images
    note       it is used, and this is what was done about it: turned upright, converted, first picture taken

Every file is either used or quarantined, never replaced and never dropped without a line: num_files = num_images + len(quarantined).
What an accuracy is counted over is num_images of its split.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kawara.data.duplicates import NearPairs, find_near_pairs, sign_array
from kawara.data.listing import SPLITS
from kawara.data.sources import Examined, ImageData
from kawara.data.traits import Trait

Severity = Literal["error", "warning", "note"]
NearSearch = Literal["done", "images too small", "images too alike"]

KINDS: dict[str, Severity] = {
    # files that are not used
    "empty": "error",
    "truncated": "error",
    "damaged": "error",
    "not-an-image": "error",
    "unsupported": "error",
    "too-large": "error",
    "unreadable": "error",
    "broken-link": "error",
    "missing": "error",
    "no-label": "error",
    "misplaced": "error",
    "left-out": "error",
    "other-file": "note",
    "linked-twice": "note",
    # classes
    "class-unusable": "error",
    "class-not-in-train": "error",
    "one-class": "error",
    "class-empty": "warning",
    "class-small": "warning",
    "class-only-in-train": "warning",
    "class-names-collide": "warning",
    "imbalance": "warning",
    "label-suspect": "warning",
    # copies
    "same-two-splits": "warning",
    "same-two-classes": "warning",
    "near-two-splits": "warning",
    "near-two-classes": "warning",
    "alike-two-splits": "note",
    "alike-two-classes": "note",
    "same-in-class": "note",
    "near-in-class": "note",
    # files that are used
    "tiny": "warning",
    "blank": "warning",
    "paths-collide": "warning",
    "rotated": "note",
    "cmyk": "note",
    "more-than-8-bits": "note",
    "palette": "note",
    "transparent": "note",
    "grey": "note",
    "animated": "note",
    "several-pages": "note",
    "wrong-suffix": "note",
    "nested": "note",
    "not-ascii": "note",
    "hidden": "note",
}
"""Every kind of finding with its severity; the most serious are shown first, those of one severity in this order."""

_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

SMALL_CLASS_NUM_IMAGES = 5
HEAVY_IMBALANCE = 10
TINY_PX = 16
SMALLEST_NEAR_PX = 32
_TRAIT_KINDS = {
    Trait.ROTATED: "rotated",
    Trait.CMYK: "cmyk",
    Trait.MORE_THAN_8_BITS: "more-than-8-bits",
    Trait.PALETTE: "palette",
    Trait.TRANSPARENT: "transparent",
    Trait.ANIMATED: "animated",
    Trait.SEVERAL_PAGES: "several-pages",
    Trait.WRONG_SUFFIX: "wrong-suffix",
    Trait.BLANK: "blank",
}


@dataclass(frozen=True)
class Item:
    """A file or a class, with what there is to say beyond its kind."""

    path: str
    detail: str = ""


@dataclass(frozen=True)
class Member:
    """An image among copies of it; `split` is "all" where there are no splits."""

    path: str
    class_name: str
    split: str


@dataclass(frozen=True)
class Copies:
    """Images that show the same: a near-duplicate pair with its correlation (of features, where a model found it), or identical bytes."""

    members: tuple[Member, ...]
    correlation: float | None = None
    is_mirrored: bool = False


@dataclass(frozen=True)
class Finding:
    """Everything of one kind: items, or copies."""

    kind: str
    items: tuple[Item, ...] = ()
    copies: tuple[Copies, ...] = ()

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind]

    @property
    def count(self) -> int:
        return len(self.items) + len(self.copies)


@dataclass(frozen=True)
class Quarantined:
    """A file that is not used. `class_name` and `split` are None where it has none."""

    path: str
    kind: str
    reason: str
    class_name: str | None
    split: str | None


@dataclass(frozen=True)
class Gate:
    """What was found in a data set, the most serious first."""

    findings: tuple[Finding, ...]
    quarantined: tuple[Quarantined, ...]
    num_images: int
    near_search: NearSearch

    @property
    def num_files(self) -> int:
        return self.num_images + len(self.quarantined)

    def with_items(self, kind: str, items: Iterable[Item]) -> Gate:
        """Return this with one more finding, if there are items."""
        found = tuple(items)
        return dataclasses.replace(self, findings=_in_order_of_severity([*self.findings, Finding(kind, found)])) if found else self

    def with_copies(self, kind: str, copies: Iterable[Copies]) -> Gate:
        """Return this with one more finding, if there are copies."""
        found = tuple(copies)
        return dataclasses.replace(self, findings=_in_order_of_severity([*self.findings, Finding(kind, (), found)])) if found else self

    def of(self, *severities: Severity) -> list[Finding]:
        """Return the findings of these severities."""
        return [finding for finding in self.findings if finding.severity in severities]

    def counts(self) -> dict[str, int]:
        """Return the number of things found, by severity."""
        return {severity: sum(finding.count for finding in self.of(severity)) for severity in _SEVERITIES}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "num_files": self.num_files,
            "num_images": self.num_images,
            "num_quarantined": len(self.quarantined),
            "counts": self.counts(),
            "near_search": self.near_search,
            "findings": [_finding_to_dict(finding) for finding in self.findings],
            "quarantined": [dataclasses.asdict(file) for file in self.quarantined],
        }


def inspect_data(images: ImageData) -> Gate:
    """Return what is wrong with `images`."""
    listing, examined = images.listing, images.examined
    found: dict[str, list[Item]] = defaultdict(list)
    for file in images.skipped:
        found[file.kind].append(Item(file.path, "" if file.kind == "other-file" else file.reason))
    found["hidden"] += [Item(path) for path in listing.hidden]
    for kind, item in (*_about_classes(images), *_about_files(examined), *_about_paths(images)):
        found[kind].append(item)
    copies, near_search = _copies(images)
    kinds = [kind for kind in KINDS if found.get(kind) or copies.get(kind)]
    findings = [Finding(kind, tuple(found.get(kind, ())), tuple(copies.get(kind, ()))) for kind in kinds]
    return Gate(_in_order_of_severity(findings), tuple(_quarantine(images)), len(examined.labels), near_search)


def _in_order_of_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    place = {kind: (_SEVERITIES.index(severity), row) for row, (kind, severity) in enumerate(KINDS.items())}
    return tuple(sorted(findings, key=lambda finding: place[finding.kind]))


def _quarantine(images: ImageData) -> Iterator[Quarantined]:
    listing = images.listing
    records = {record.key: record for record in listing.records} if images.skipped else {}
    shown = dict(zip(listing.class_keys, listing.class_names))
    for file in images.skipped:
        record = records.get(file.path)
        yield Quarantined(file.path, file.kind, file.reason, shown[record.label] if record else None, record.split if record else None)


def _about_classes(images: ImageData) -> Iterator[tuple[str, Item]]:
    listing, examined = images.listing, images.examined
    names = images.class_names
    for folder in listing.empty_classes:
        yield "class-empty", Item(folder)
    counts = {split: np.bincount(examined.labels[examined.splits == split], minlength=len(names)) for split in np.unique(examined.splits)}
    total = np.bincount(examined.labels, minlength=len(names))
    trained = counts.get("train", total)
    if listing.records:
        for position in np.flatnonzero(total == 0).tolist():
            yield "class-unusable", Item(names[position])
    if np.count_nonzero(total) == 1 and len(names) == 1:
        yield "one-class", Item(names[0])
    for split in SPLITS[1:]:
        if split in examined.named_splits and "train" in examined.named_splits:
            for position in np.flatnonzero((counts[split] > 0) & (trained == 0)).tolist() if split in counts else ():
                yield "class-not-in-train", Item(names[position], f"{counts[split][position]} images in {split} only")
            for position in np.flatnonzero((trained > 0) & (counts.get(split, 0 * trained) == 0)).tolist():
                yield "class-only-in-train", Item(names[position], f"none in {split}")
    for position in np.flatnonzero((total > 0) & (total < SMALL_CLASS_NUM_IMAGES)).tolist():
        yield "class-small", Item(names[position], f"{total[position]} {'image' if total[position] == 1 else 'images'}")
    present = np.flatnonzero(trained)
    if len(present) > 1:
        most, least = present[trained[present].argmax()], present[trained[present].argmin()]
        if trained[most] > HEAVY_IMBALANCE * trained[least]:
            detail = f"{trained[least]:,} images; {names[most]} has {trained[most]:,}"
            yield "imbalance", Item(names[least], detail)
    yield from _collisions("class-names-collide", listing.class_names, _plain_name)


def _about_files(examined: Examined) -> Iterator[tuple[str, Item]]:
    keys, traits = examined.keys, examined.traits
    for trait, kind in _TRAIT_KINDS.items():
        for position in np.flatnonzero(traits & trait).tolist():
            yield kind, Item(keys[position])
    is_grey = (traits & Trait.GREY) > 0
    if not is_grey.all():  # one grey file among colour; a grey data set is no remark
        for position in np.flatnonzero(is_grey).tolist():
            yield "grey", Item(keys[position])
    shorter = examined.sizes.min(axis=1) if len(examined.sizes) else examined.sizes[:, 0]
    if len(shorter) and np.median(shorter) >= 2 * TINY_PX:
        for position in np.flatnonzero((shorter > 0) & (shorter < TINY_PX)).tolist():
            height, width = examined.sizes[position]
            yield "tiny", Item(keys[position], f"{width} × {height} px")


def _about_paths(images: ImageData) -> Iterator[tuple[str, Item]]:
    records = images.listing.records
    if not records:
        return
    nested: Counter[str] = Counter()
    for record in records:
        if not record.member.isascii():
            yield "not-ascii", Item(record.key)
        parts = record.key.split("/")
        if record.label in parts[:-2]:
            level = parts.index(record.label)
            nested["/".join(parts[: level + 2])] += 1
    for folder, count in nested.items():
        yield "nested", Item(folder, f"{count} {'image' if count == 1 else 'images'}")
    yield from _collisions("paths-collide", (record.key for record in records), lambda path: unicodedata.normalize("NFC", path).casefold())


def _collisions(kind: str, names: Iterable[str], simplify: Callable[[str], Hashable]) -> Iterator[tuple[str, Item]]:
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for name in names:
        groups[simplify(name)].append(name)
    for first, *others in groups.values():
        for other in others:
            yield kind, Item(other, f"beside {first}")


def _plain_name(name: str) -> str:
    """Return a class name without what people and file systems overlook."""
    return "".join(letter for letter in unicodedata.normalize("NFKC", name).casefold() if letter not in " _-\t")


def _copies(images: ImageData) -> tuple[dict[str, list[Copies]], NearSearch]:
    examined = images.examined
    found: dict[str, list[Copies]] = defaultdict(list)

    def add(prefix: str, positions: list[int], correlation: float | None = None, is_mirrored: bool = False) -> None:
        members = tuple(Member(examined.keys[i], images.class_names[examined.labels[i]], str(examined.splits[i])) for i in positions)
        copies = Copies(members, correlation, is_mirrored)
        two_splits, two_classes = (len({getattr(member, side) for member in members}) > 1 for side in ("split", "class_name"))
        if two_splits:
            found[f"{prefix}-two-splits"].append(copies)
        if two_classes:
            found[f"{prefix}-two-classes"].append(copies)
        if not (two_splits or two_classes):
            found[f"{prefix}-in-class"].append(copies)

    rows = np.ascontiguousarray(examined.digests).view(np.dtype((np.void, 32)))[:, 0] if len(examined.digests) else np.zeros(0, "V32")
    _, first, content, count = np.unique(rows, return_index=True, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(count[content] > 1)
    groups: dict[int, list[int]] = defaultdict(list)
    for position in repeated.tolist():
        groups[int(content[position])].append(position)
    for positions in groups.values():
        add("same", positions)
    shorter = examined.sizes.min(axis=1)
    distinct = np.union1d(first, _one_of_each(groups.values(), examined))
    usable = distinct[(shorter[distinct] >= SMALLEST_NEAR_PX) | (shorter[distinct] == 0)]
    if len(usable) < 2:
        return found, "images too small"
    pairs = find_near_pairs(_signatures(images)[usable])
    if not pairs.is_complete:
        return found, "images too alike"
    for i, j, correlation, is_mirrored in _in_order(pairs):
        one, other = int(usable[i]), int(usable[j])
        if content[one] != content[other]:
            add("near", [one, other], correlation, is_mirrored)
    return found, "done"


def _one_of_each(groups: Iterable[list[int]], examined: Examined) -> npt.NDArray[np.int64]:
    """Return for identical images one of each class and split: its near-duplicates may be a matter where those of another are not."""
    kept = [{(int(examined.labels[i]), str(examined.splits[i])): i for i in reversed(group)}.values() for group in groups]
    return np.array([position for positions in kept for position in positions], np.int64)


def _signatures(images: ImageData) -> npt.NDArray[np.uint8]:
    if images.examined.signatures is not None:
        return images.examined.signatures
    return np.concatenate([sign_array(part.images_u8) for part in images.listing.arrays])


def _in_order(pairs: NearPairs) -> Iterator[tuple[int, int, float, bool]]:
    """Yield the pairs, the most alike first."""
    for row in np.argsort(-pairs.correlation, kind="stable").tolist():
        yield int(pairs.first[row]), int(pairs.second[row]), round(float(pairs.correlation[row]), 4), bool(pairs.is_mirrored[row])


def _finding_to_dict(finding: Finding) -> dict[str, Any]:
    values: dict[str, Any] = {"kind": finding.kind, "severity": finding.severity, "count": finding.count}
    if finding.items:
        values["items"] = [dataclasses.asdict(item) for item in finding.items]
    if finding.copies:
        values["copies"] = [dataclasses.asdict(copies) for copies in finding.copies]
    return values
