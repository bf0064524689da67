"""Say what is at a path or under a name, whatever it is.

digits                              scikit-learn's 1,797 handwritten digits
hf:NAME                             a data set of the Hugging Face hub (extra `data`)
a folder                            of class folders, under train/val/test or not; of idx files; of zips; with one table or npz
a .zip, .npz, .csv, .tsv, .jsonl    an image folder in a zip; arrays; a table of image files
an idx file                         and those beside it
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from kawara.data import manifest
from kawara.data.arrays import idx_prefix, is_idx_file, list_digits, list_idx, list_npz
from kawara.data.folders import list_folder, list_zips
from kawara.data.hub import list_hub
from kawara.data.listing import Listing, has_image_suffix, is_hidden
from kawara.errors import DataError


def open_data(spec: str | Path) -> Listing:
    """Say what is at `spec`, without decoding anything. Raises DataError when it is no data set."""
    text = str(spec)
    if text.startswith("hf:"):
        return list_hub(text[3:])
    path = Path(text).expanduser()
    if text == "digits" and not path.exists():
        return list_digits()
    if not path.exists():
        raise _not_found(path)
    listing = _open_folder(path) if path.is_dir() else _open_file(path)
    if listing.num_images == 0:
        raise DataError(f"There are no images in {spec}.", got=listing.description)
    return listing


def _open_folder(path: Path) -> Listing:
    names = sorted(entry.name for entry in path.iterdir() if not is_hidden(entry.name))
    files = [name for name in names if (path / name).is_file()]
    has_folders = len(files) < len(names)
    if any(is_idx_file(name) for name in files):
        return list_idx(path)
    tables = [name for name in files if Path(name).suffix.lower() in manifest.SUFFIXES]
    named_tables = [name for name in tables if Path(name).stem.lower() in ("manifest", "labels")]
    if len(named_tables) == 1:
        return manifest.list_manifest(path / named_tables[0])
    if not has_folders and not any(has_image_suffix(name) for name in files):
        zips = [name for name in files if name.lower().endswith(".zip")]
        arrays = [name for name in files if name.lower().endswith(".npz")]
        if zips:
            return list_zips([path / name for name in zips], path / zips[0] if len(zips) == 1 else path)
        if len(arrays) == 1:
            return list_npz(path / arrays[0])
        if len(tables) == 1:
            return manifest.list_manifest(path / tables[0])
    return list_folder(path)


def _open_file(path: Path) -> Listing:
    suffix = path.suffix.lower()
    if suffix == ".zip":
        return list_zips([path], path)
    if suffix == ".npz":
        return list_npz(path)
    if suffix in manifest.SUFFIXES:
        return manifest.list_manifest(path)
    if is_idx_file(path.name):
        return list_idx(path.parent, prefix=idx_prefix(path.name))
    what = "a single image" if has_image_suffix(path.name) else f"a file ending in {suffix or 'nothing'}"
    raise DataError(
        f"{path} is {what}, not a data set.",
        allowed="a folder of class folders, a .zip of one, .npz, idx files, or a table (.csv, .tsv, .jsonl)",
        remedy=str(path.parent) if has_image_suffix(path.name) else None,
    )


def _not_found(path: Path) -> DataError:
    """Return the error for a path that does not exist, with the nearest name that does."""
    parent = path.absolute().parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    names = sorted(entry.name for entry in parent.iterdir() if not is_hidden(entry.name))
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    there = enumerate_names(names) if names else "nothing"
    return DataError(f"{path} does not exist.", allowed=f"in {parent} there is: {there}", remedy=str(parent / near[0]) if near else None)


def enumerate_names(names: Sequence[str], limit: int = 12) -> str:
    """Return the names for a message, the first few of many."""
    return ", ".join(names) if len(names) <= limit else f"{', '.join(names[:limit])}, … ({len(names)} in all)"
