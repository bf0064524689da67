"""List a table of images: CSV, TSV or JSONL with the columns path, label and perhaps split."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

from kawara.data.archives import FolderSource, file_stamp
from kawara.data.listing import Listing, Record, SkippedFile, class_names_beside, display_names, sorted_classes, split_word
from kawara.errors import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
_PATH_COLUMNS = ("path", "file", "image", "filename", "file_name", "filepath", "image_path", "img")
_LABEL_COLUMNS = ("label", "class", "class_name", "category", "target")
_SPLIT_COLUMNS = ("split", "set", "subset", "partition")


def list_manifest(path: Path) -> Listing:
    """List the images that the table names; their paths are relative to the table.

    A row whose file is missing is listed as skipped. Raises DataError for missing columns, values or unknown splits.
    """
    rows = _read_rows(path)
    if not rows:
        raise DataError(f"{path} has no rows.", allowed="a header with path and label, then one row an image")
    columns = {str(name).strip().lower(): name for name in rows[0][1]}
    path_column = _column(path, columns, _PATH_COLUMNS, "image file")
    label_column = _column(path, columns, _LABEL_COLUMNS, "class")
    split_column = next((columns[name] for name in _SPLIT_COLUMNS if name in columns), None)
    source = FolderSource(str(path.parent))
    records: list[Record] = []
    skipped: list[SkippedFile] = []
    without_split: list[int] = []
    for line, row in rows:
        member, label = _text(row.get(path_column)), _text(row.get(label_column))
        if not member or not label:
            raise DataError(f"{path}, line {line}: a row without {'a class' if member else 'an image file'}.", got=row)
        split_text = _text(row.get(split_column)) if split_column is not None else ""
        split = split_word(split_text) if split_text else None
        if split_text and split is None:
            raise DataError(f"{path}, line {line}: an unknown split.", got=split_text, allowed="train, val, test")
        if split is None:
            without_split.append(line)
        try:
            stamp = file_stamp(os.stat(os.path.join(path.parent, member)))
        except OSError as error:
            skipped.append(SkippedFile(member, f"named in {path.name}, line {line}, but cannot be read ({error.strerror})", "missing"))
            continue
        records.append(Record(member, label, split, source, member, stamp))
    if without_split and len(without_split) < len(rows):
        raise DataError(f"{path}: some rows name a split and some do not.", got=f"none in line {without_split[0]}", allowed="all or none")
    if not records:
        raise DataError(
            f"None of the {len(rows)} files that {path} names is there.", got=skipped[0].path, remedy="paths are relative to the table"
        )
    keys = sorted_classes(record.label for record in records)
    return Listing(str(path), "table of images", keys, display_names(keys, class_names_beside(path.parent)), records, skipped=skipped)


def _read_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return (line number, row) pairs."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8.", got=error) from None
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        rows = []
        for line, content in enumerate(text.splitlines(), start=1):
            if not content.strip():
                continue
            try:
                row = json.loads(content)
            except ValueError as error:
                raise DataError(f"{path}, line {line}: not valid JSON.", got=error) from None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {line}: not an object.", got=type(row).__name__, allowed='{"path": …, "label": …}')
            rows.append((line, row))
        return rows
    first = text.partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter)
    return [(reader.line_num, row) for row in reader]


def _column(path: Path, columns: dict[str, str], wanted: tuple[str, ...], what: str) -> str:
    for name in wanted:
        if name in columns:
            return columns[name]
    raise DataError(f"{path} has no column for the {what}.", got=", ".join(columns), allowed=" or ".join(wanted))


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()
