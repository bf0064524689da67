"""The errors a user can meet, each said from the user's point of view.

    KawaraError                 exit code 1
    ├── UserError               exit code 2: something to mend on the user's side
    │   ├── ConfigError         an option or setting that does not exist or does not fit
    │   │   └── UnknownNameError    a model, recipe or option name; near names are offered
    │   ├── DataError           a data set that cannot be used
    │   │   └── DecodeError     one image file that cannot be decoded (path and reason)
    │   ├── ModelFileError      a model file or checkpoint that cannot be read
    │   ├── RunFolderError      a run folder that exists, is busy or cannot be written
    │   ├── OutOfMemoryError    a batch that does not fit; says which would
    │   ├── DivergedError       the loss is not finite; names step, files and layer
    │   ├── HopelessError       a run that learns nothing; names the reason and the command that mends it
    │   └── ProcessLostError    another process of the same training has gone
    └── InternalError           our mistake

A message has up to four parts: what is wrong, what was got, what is allowed, and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KawaraError(Exception):
    """Say what is wrong, what was got, what is allowed and how to mend it."""

    exit_code = 1

    def __init__(self, what: str, *, got: object = None, allowed: object = None, remedy: str | None = None):
        self.what, self.got, self.allowed, self.remedy = what, got, allowed, remedy
        lines = [what]
        if got is not None:
            lines.append(f"  got:     {got}")
        if allowed is not None:
            lines.append(f"  allowed: {allowed}")
        if remedy is not None:
            lines.append(f"  try:     {remedy}")
        super().__init__("\n".join(lines))


class InternalError(KawaraError):
    """Our mistake."""


class UserError(KawaraError):
    """Something to mend on the user's side."""

    exit_code = 2


class ConfigError(UserError):
    """An option or setting that does not exist or does not fit."""


class UnknownNameError(ConfigError):
    """A name that is not known; near names are offered."""

    def __init__(self, kind: str, name: str, choices: Iterable[str], *, remedy: str | None = None):
        choices = list(choices)
        near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
        if remedy is None and near:
            remedy = " or ".join(near)
        shown = ", ".join(choices) if len(choices) <= 12 else f"{', '.join(choices[:8])}, … ({len(choices)} in all)"
        super().__init__(f"There is no {kind} named {name!r}.", allowed=shown, remedy=remedy)


class DataError(UserError):
    """A data set that cannot be used."""


class DecodeError(DataError):
    """One image file that cannot be decoded. `kind` is the reason in one word: empty, truncated, damaged, not-an-image, …"""

    def __init__(self, path: str, reason: str, *, kind: str = "damaged", remedy: str | None = None):
        self.path, self.reason, self.kind = path, reason, kind
        super().__init__(f"{path}: {reason}", remedy=remedy)


class ModelFileError(UserError):
    """A model file or checkpoint that cannot be read."""


class RunFolderError(UserError):
    """A run folder that exists, is busy or cannot be written."""


class OutOfMemoryError(UserError):
    """A batch that does not fit into memory."""


class DivergedError(UserError):
    """The loss is not finite."""


class HopelessError(UserError):
    """A run that learns nothing and was stopped."""


class ProcessLostError(UserError):
    """Another process of the same training has gone; what ended that one is the reason."""

    exit_code = 75

    def __init__(self, reason: object):
        super().__init__(
            "Another process of this training has gone.",
            got=reason,
            remedy="the same command with --resume, on as many processes as you like",
        )
