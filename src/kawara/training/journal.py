"""One JSON object a line: everything that happened in a run, in order, readable while it runs."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from kawara.files import cannot_write


class Journal:
    """Append-only records of a run; each has at least "event" and "step"."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append one record; numbers that are not finite are written as null."""
        record = {"event": event, "step": step} | {name: _json_number(value) for name, value in values.items()}
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def read(self) -> list[dict[str, Any]]:
        """Return all complete records; a last line cut by a crash is left out."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def sync(self) -> int:
        """Bring all records to the disk and return their length in bytes: a checkpoint keeps it."""
        if not self.path.exists():
            return 0
        try:
            with open(self.path, "rb+") as file:
                os.fsync(file.fileno())
                return file.seek(0, os.SEEK_END)
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def rewind(self, num_bytes: int) -> None:
        """Forget what was written after the first `num_bytes`: a resumed run will write it again. A half-written line goes, too."""
        if not self.path.exists():
            return
        try:
            with open(self.path, "rb+") as file:
                file.truncate(file.read(num_bytes).rfind(b"\n") + 1)
        except OSError as error:
            raise cannot_write(self.path, error) from None


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
