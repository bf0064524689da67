"""What a person sees while waiting: a live line in a terminal, a plain line now and then elsewhere. Always on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

PLAIN_INTERVAL_S = 15.0


class Reporter(AbstractContextManager["Reporter"]):
    """Show messages and the progress of long work on stderr; `quiet` shows nothing."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        self.quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._title = ""
        self._plain_at = 0.0

    def say(self, message: str) -> None:
        """Print one message."""
        self.console.print(message, markup=False)

    def progress(self, title: str, share: float, detail: str = "") -> None:
        """Show that `share` in [0, 1] of the work called `title` is done."""
        if self.quiet:
            return
        if not self.console.is_terminal:
            now = time.monotonic()
            if title != self._title or now - self._plain_at >= PLAIN_INTERVAL_S or share >= 1:
                self.console.print(f"{title} {share:4.0%}  {detail}".rstrip(), markup=False)
                self._title, self._plain_at = title, now
            return
        if self._bar is None or title != self._title:
            self._stop()
            columns: list[Any] = [TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:3.0f}%")]
            columns += [TextColumn("{task.fields[detail]}"), TimeElapsedColumn()]
            self._bar = Progress(*columns, console=self.console, transient=True, refresh_per_second=4)
            self._bar.start()
            self._task, self._title = self._bar.add_task(title, total=1.0, detail=detail), title
        assert self._task is not None
        self._bar.update(self._task, completed=share, detail=detail)
        if share >= 1:
            self._stop()

    def progress_of(self, title: str) -> Callable[[int, int, str], None]:
        """Return a function (done, total, detail) that reports the progress of the work called `title`."""
        return lambda done, total, detail: self.progress(title, done / max(total, 1), detail)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()


def format_seconds(seconds: float | None) -> str:
    """Return "4:05", "1:02:03" or "–"."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
