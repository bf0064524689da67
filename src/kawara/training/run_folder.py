"""The folder of one run and what lies in it.

runs/<name>/
  config.yaml        the resolved configuration
  environment.json   versions, machine, threads
  journal.jsonl      what happened, one record a line
  quarantine.csv     files that are not used, with the reason; check.json: everything that was found in the data
  checkpoints/       last.safetensors (to resume), best.safetensors (weights that did best on validation)
  curves.png         loss, accuracy and learning rate over the run
  model.safetensors  the result, usable without anything else
  metrics.json       what it is worth
  report.html        a page to look at
"""

from __future__ import annotations

import re
from pathlib import Path

from kawara.errors import RunFolderError
from kawara.files import cannot_write
from kawara.training.journal import Journal


class RunFolder:
    """Paths of a run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.journal = Journal(self.path / "journal.jsonl")
        self.last = self.path / "checkpoints" / "last.safetensors"
        self.best = self.path / "checkpoints" / "best.safetensors"
        self.curves = self.path / "curves.png"
        self.model = self.path / "model.safetensors"
        self.metrics = self.path / "metrics.json"
        self.report = self.path / "report.html"

    @classmethod
    def unused(cls, path: str | Path) -> RunFolder:
        """Return the paths of a new run, nothing made yet. Raises RunFolderError if the folder has content."""
        folder = cls(path)
        if folder.path.is_file() or (folder.path.is_dir() and any(folder.path.iterdir())):
            remedy = f"--out {next_free(folder.path)}"
            if folder.last.exists():
                remedy += ", or --resume to go on with this run"
            raise RunFolderError(f"{folder.path} exists already.", remedy=remedy)
        return folder

    def make(self) -> None:
        """Make the folder. Raises RunFolderError if it cannot be made."""
        try:
            self.last.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from None

    @classmethod
    def reopen(cls, path: str | Path) -> RunFolder:
        """Open a run folder to go on with it. Raises RunFolderError if there is no run in it."""
        folder = cls(path)
        if not folder.config.exists():
            raise RunFolderError(f"There is no run to resume in {folder.path}.", remedy="the same command without --resume")
        return folder


def next_free(path: Path) -> Path:
    """Return `path` with the first number behind it that is not taken: runs/photos-2."""
    stem = re.sub(r"-\d+$", "", path.name)
    number = 1
    while (candidate := path.with_name(f"{stem}-{number}")).exists():
        number += 1
    return candidate


def latest_run(parent: Path, stem: str) -> Path | None:
    """Return the run folder `parent/stem-N` with the largest N, None if there is none."""
    numbered = [
        (int(match[1]), path) for path in parent.glob(f"{stem}-*") if (match := re.fullmatch(re.escape(stem) + r"-(\d+)", path.name))
    ]
    return max(numbered)[1] if numbered else None
