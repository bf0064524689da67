"""List a data set of the Hugging Face `datasets` library: `hf:name` or `hf:name:configuration` (extra `data`)."""

from __future__ import annotations

from typing import Any

from kawara.data.listing import Listing, Record, SkippedFile, sorted_classes, split_word
from kawara.errors import DataError

_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")


class HubSource:
    """Give the encoded bytes of the rows of one split."""

    def __init__(self, table: Any, image_column: str):
        self.table, self.image_column = table, image_column

    def read(self, member: str) -> bytes:
        """Return the bytes of the image in row `member`. Raises OSError."""
        image = self.table[int(member)][self.image_column]
        if image.get("bytes") is not None:
            return image["bytes"]
        with open(image["path"], "rb") as file:
            return file.read()


def list_hub(name: str) -> Listing:
    """List the data set `name`; image and label columns are found by their type.

    Raises DataError when `datasets` is not installed, the set cannot be had, or it has no such columns.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError(f"hf:{name} needs the package `datasets`.", remedy="pip install 'kawara[data]'") from None
    repository, _, configuration = name.partition(":")
    try:
        tables = datasets.load_dataset(repository, configuration or None)
    except Exception as error:  # network, unknown name, missing configuration: datasets raises many kinds
        raise DataError(f"The data set hf:{name} cannot be loaded.", got=f"{type(error).__name__}: {error}") from None
    records: list[Record] = []
    skipped: list[SkippedFile] = []
    notes: list[str] = []
    keys: tuple[str, ...] | None = None
    for split_name, table in tables.items():
        image_column, label_column = _columns(name, table.features, datasets)
        feature = table.features[label_column]
        names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
        labels = table[label_column]
        table = table.cast_column(image_column, datasets.Image(decode=False))
        source = HubSource(table, image_column)
        stamp = str(getattr(table, "_fingerprint", ""))
        split = split_word(split_name)
        if split is None and len(tables) > 1:
            notes.append(f"The split {split_name} of hf:{name} is not used.")
            continue
        for row, label in enumerate(labels):
            if label is None or label == -1:  # how `datasets` marks a row without a label
                skipped.append(SkippedFile(f"{split_name}[{row}]", "has no label", "no-label"))
                continue
            text = names[label] if names is not None else str(label)
            records.append(Record(f"{split_name}[{row}]", text, split, source, str(row), stamp))
        keys = keys or names
    if keys is None:
        keys = sorted_classes(record.label for record in records)
    return Listing(f"hf:{name}", "Hugging Face data set", keys, keys, records, skipped=skipped, notes=notes)


def _columns(name: str, features: Any, datasets: Any) -> tuple[str, str]:
    """Return the names of the image and the label column."""
    image = next((column for column, feature in features.items() if isinstance(feature, datasets.Image)), None)
    label = next((column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)), None)
    label = label or next((column for column in _LABEL_NAMES if column in features), None)
    if image is None or label is None:
        missing = "image" if image is None else "class label"
        raise DataError(f"hf:{name} has no column of the type {missing}.", got=", ".join(map(str, features)))
    return image, label
