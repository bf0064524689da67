"""List image folders, zip archives of such folders, and folders of zip archives.

A tree of files becomes a data set by these rules:

- Folders around the whole (a single folder that holds everything) are passed through.
- If any of the top folders is called train, val, valid, validation or test and holds class folders, the top folders are the splits and
  the folders below are the classes; otherwise the top folders are the classes. Deeper files belong to the class above them.
- A zip stands for a folder of its name: `train.zip` for `train/`, whether or not its members repeat that name.
- Hidden files are passed over. Everything else that is not used is listed with its reason.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kawara.data.archives import FolderSource, ZipSource, file_stamp
from kawara.data.listing import (
    ByteSource,
    Listing,
    Record,
    SkippedFile,
    class_names_beside,
    display_names,
    has_image_suffix,
    is_hidden,
    parse_class_names,
    printable,
    sorted_classes,
    split_word,
)
from kawara.errors import DataError


@dataclass(frozen=True, slots=True)
class TreeFile:
    """A file at `parts` of a tree, `member` of its source."""

    parts: tuple[str, ...]
    source: ByteSource
    member: str
    stamp: str
    place: str


def list_folder(root: Path) -> Listing:
    """List an image folder. Raises DataError when it is no data set."""
    skipped: list[SkippedFile] = []
    hidden: list[str] = []
    files = list(_walk(root, skipped, hidden))
    empty = _empty_folders(root)
    names = class_names_beside(root)
    return _from_tree(files, skipped, spec=str(root), kind="image folder", names=names, empty=empty, hidden=hidden)


def list_zips(paths: list[Path], spec: Path) -> Listing:
    """List one zip archive of an image folder, or several that are the parts of one. Raises DataError."""
    sources = [ZipSource(path) for path in paths]
    skipped: list[SkippedFile] = []
    files: list[TreeFile] = []
    hidden: list[str] = []
    names = class_names_beside(spec if spec.is_dir() else spec.parent)
    for source in sources:
        members = [(tuple(name.replace("\\", "/").split("/")), name) for name in source.members if not _is_hidden_member(name)]
        if len(members) < len(source.members):
            hidden += [f"{source.path.name}/{name}" for name in source.members if _is_hidden_member(name)]
        top = _stem_folder(source.path.stem, [parts for parts, _ in members]) if len(sources) > 1 else None
        repeats_top = top is not None and all(len(parts) > 1 and parts[0].lower() == top.lower() for parts, _ in members)
        for parts, name in members:
            if top is not None:
                parts = (top, *(parts[1:] if repeats_top else parts))
            info = source.members[name]
            files.append(TreeFile(parts, source, name, f"{info.CRC:08x}:{info.file_size}", f"{source.path.name}/{name}"))
            if parts[-1] == "classes.json" and names is None:
                names = parse_class_names(source.read(name).decode("utf-8-sig"), f"{source.path}/{name}")
    kind = "zip of an image folder" if len(sources) == 1 else "folder of zips"
    return _from_tree(files, skipped, spec=str(spec), kind=kind, names=names, empty=[], hidden=hidden)


def _is_hidden_member(name: str) -> bool:
    suspicious = name[0] == "." or "/." in name or not has_image_suffix(name)  # the rest need not be taken apart
    return suspicious and any(is_hidden(part) for part in name.replace("\\", "/").split("/"))


def _stem_folder(stem: str, members: list[tuple[str, ...]]) -> str:
    """Return the top folder for a zip among several; a lone top folder with the zip's name or a split's name is that folder."""
    tops = {parts[0] for parts in members if len(parts) > 1}
    lone = tops.pop() if len(tops) == 1 else None
    if lone is not None and split_word(stem) is None and split_word(lone) is not None:
        return lone
    return stem


def _walk(root: Path, skipped: list[SkippedFile], hidden: list[str]) -> Iterator[TreeFile]:
    """Yield the files below `root`; links to folders are followed, each folder once. What is not yielded is added to the two lists."""
    source = FolderSource(str(root))
    seen: set[tuple[int, int]] = set()
    stack: list[tuple[str, ...]] = [()]
    while stack:
        parts = stack.pop()
        folder = os.path.join(root, *parts)
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                skipped.append(SkippedFile(printable("/".join(parts)), "a link to a folder that is listed already", "linked-twice"))
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            skipped.append(
                SkippedFile(printable("/".join(parts) or str(root)), f"the folder cannot be read ({error.strerror})", "unreadable")
            )
            continue
        for entry in entries:
            here = (*parts, entry.name)
            member = "/".join(here)
            name = printable(member)
            if is_hidden(entry.name):
                hidden.append(name)
                continue
            try:
                if entry.is_dir():  # raises for a link to itself
                    stack.append(here)
                    continue
                stamp = file_stamp(entry.stat())
            except OSError as error:
                reason = "a broken link" if entry.is_symlink() else f"cannot be read ({error.strerror})"
                skipped.append(SkippedFile(name, reason, "broken-link" if entry.is_symlink() else "unreadable"))
                continue
            yield TreeFile(tuple(name.split("/")), source, member, stamp, name)


def _empty_folders(root: Path) -> list[tuple[str, ...]]:
    """Return the folders of the first two levels (where classes lie) in which there is nothing."""
    found = []
    for level in ("*", "*/*"):
        for path in root.glob(level):
            if path.is_dir() and not is_hidden(path.name) and not any(path.iterdir()):
                found.append(path.relative_to(root).parts)
    return found


def _from_tree(
    files: list[TreeFile],
    skipped: list[SkippedFile],
    *,
    spec: str,
    kind: str,
    names: dict[str, str] | None,
    empty: list[tuple[str, ...]],
    hidden: list[str],
) -> Listing:
    images, others = [], []
    for file in files:
        (images if has_image_suffix(file.parts[-1]) else others).append(file)
    if not images:
        found = Counter(os.path.splitext(file.parts[-1])[1].lower() or "(no suffix)" for file in others)
        got = ", ".join(f"{count} × {suffix}" for suffix, count in found.most_common(6)) or "an empty folder"
        raise DataError(
            f"There are no images in {spec}.", got=got, allowed="JPEG, PNG, WebP, GIF, BMP, TIFF, PPM files in one folder a class"
        )
    depth = _depth_of_root(images)
    has_splits = _has_split_folders(images, depth)
    split_of = {top: split_word(top) for top in {file.parts[depth] for file in images}} if has_splits else {}
    records: list[Record] = []
    for file in sorted(images, key=lambda file: file.place):
        parts = file.parts[depth:]
        split = split_of.get(parts[0]) if len(parts) > 1 else None
        if has_splits and split is None:
            skipped.append(SkippedFile(file.place, "lies outside the folders train, val and test", "misplaced"))
        elif len(parts) < (3 if has_splits else 2):
            skipped.append(SkippedFile(file.place, "lies outside any class folder", "misplaced"))
        else:
            records.append(Record(file.place, parts[1 if has_splits else 0], split, file.source, file.member, file.stamp))
    if not records:
        raise DataError(
            f"The images in {spec} are not in class folders.",
            got=f"{len(images)} images, for instance {images[0].place}",
            allowed="<class>/<image>, train/<class>/<image> with val/ or test/, or a table (CSV) with the columns path and label",
        )
    for file in others:
        if len(file.parts) > depth + 1:
            skipped.append(SkippedFile(file.place, "not an image by its suffix", "other-file"))
    keys = sorted_classes(record.label for record in records)
    listing = Listing(spec, kind, keys, display_names(keys, names), records, skipped=skipped, hidden=sorted(hidden))
    level = depth + (1 if has_splits else 0)
    for parts in empty:
        if len(parts) == level + 1:
            listing.notes.append(f"The class folder {'/'.join(parts)} is empty.")
            listing.empty_classes.append("/".join(parts))
    return listing


def _depth_of_root(images: list[TreeFile]) -> int:
    """Return how many folders lie around the whole: single ones that hold folders, not the images themselves, and name no split."""
    depth = 0
    while True:
        tops = {file.parts[depth] for file in images}
        if len(tops) > 1 or any(len(file.parts) < depth + 3 for file in images) or split_word(next(iter(tops))) is not None:
            return depth
        depth += 1


def _has_split_folders(images: list[TreeFile], depth: int) -> bool:
    holding_folders = {file.parts[depth] for file in images if len(file.parts) >= depth + 3}
    return any(split_word(top) is not None for top in holding_folders)
