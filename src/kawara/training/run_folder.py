"""The folder of one run and what lies in it.

runs/<name>/
  quarantine.csv     files that are not used, with the reason; check.json: everything that was found in the data
  environment.json   versions, machine, threads
  inputs.json        which images and models the run began with, by fingerprint
  config.yaml        the resolved configuration
  journal.jsonl      what happened, one record a line
  checkpoints/       last.safetensors (to go on), best.safetensors (weights that did best on validation)
  model.safetensors  the result, usable without anything else
  curves.png         loss, accuracy and learning rate over the run
  report.html        a page to look at
  metrics.json       what the model is worth

Each file is complete or absent (`files.replacing`), and they are written in this order, so that a process may die between any two:

- config.yaml says that the run has begun. Without it, what is there belongs to nobody and the next start takes the folder over.
- last.safetensors says how far it came. It keeps the length of the journal; whatever the journal holds beyond is written anew.
- At a validation best.safetensors is written first, last.safetensors after it. In the other order, a death between the two would leave a
  `last` that believes in a `best` that was never written, and the run would end with other weights. In this order the death leaves a
  `best` from a step that `last` has not reached. On a CPU the run comes to that step again, with the same score, and writes the same
  file. Where it may come to other numbers (a GPU, a length in minutes), the file still is what its header says, so the run takes step and
  score from there: only something better replaces it. Before the first `last`, `best` is deleted and the run starts from the beginning.
- metrics.json comes last and says that the run is finished. Whatever of the end is missing or old without it is made again.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from kawara.errors import RunFolderError
from kawara.files import cannot_write, claimed, is_partial
from kawara.training.journal import Journal

State = Literal["new", "unfinished", "finished", "other"]


class RunFolder:
    """Paths of a run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.environment = self.path / "environment.json"
        self.inputs = self.path / "inputs.json"
        self.quarantine = self.path / "quarantine.csv"
        self.check = self.path / "check.json"
        self.config = self.path / "config.yaml"
        self.journal = Journal(self.path / "journal.jsonl")
        self.last = self.path / "checkpoints" / "last.safetensors"
        self.best = self.path / "checkpoints" / "best.safetensors"
        self.model = self.path / "model.safetensors"
        self.curves = self.path / "curves.png"
        self.report = self.path / "report.html"
        self.metrics = self.path / "metrics.json"

    @property
    def state(self) -> State:
        """What is there: nothing but perhaps the remains of a start that was killed, a run, or something else."""
        if not self.path.exists():
            return "new"
        if not self.path.is_dir():
            return "other"
        if self.config.exists() and self.environment.exists():
            return "finished" if self.metrics.exists() else "unfinished"
        remains = {self.environment, self.inputs, self.quarantine, self.check, self.last.parent}
        content = [*self.path.iterdir(), *(self.last.parent.iterdir() if self.last.parent.is_dir() else ())]
        return "new" if all(path in remains or is_partial(path) for path in content) else "other"

    def make(self) -> None:
        """Make the folder. Raises RunFolderError if it cannot be made."""
        try:
            self.last.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def claimed(self) -> AbstractContextManager[None]:
        """Make the folder and keep other processes out of it; see `files.claimed`. A mistake found before the run began leaves nothing."""
        return claimed(self.path, self.last.parent)


@contextlib.contextmanager
def claimed_next(parent: Path, stem: str) -> Iterator[RunFolder]:
    """Claim the first folder `parent/stem-N` that holds nothing and in which nobody is at work."""
    number = 0
    while True:
        number += 1
        folder = RunFolder(parent / f"{stem}-{number}")
        if folder.state != "new":
            continue
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(folder.claimed())
            except RunFolderError:
                if not folder.path.is_dir():  # it could not be made, and neither could the next
                    raise
                continue
            if folder.state == "new":  # nobody has begun in the meantime
                yield folder
                return


def next_free(path: Path) -> Path:
    """Return `path` with the first number behind it that is not taken: runs/photos-2."""
    stem = re.sub(r"-\d+$", "", path.name)
    number = 1
    while (candidate := path.with_name(f"{stem}-{number}")).exists():
        number += 1
    return candidate


def numbered(parent: Path, stem: str) -> list[Path]:
    """Return the folders `parent/stem-N`, by N."""
    folders = parent.iterdir() if parent.is_dir() else ()
    found = [(int(match[1]), path) for path in folders if (match := re.fullmatch(re.escape(stem) + r"-(\d+)", path.name))]
    return [path for _, path in sorted(found)]
