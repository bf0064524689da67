"""Run `kawara` many times without starting Python and torch each time: every command gets a fork of this process, which may be told to die.

`fork_server.py COMMAND …` first runs that command itself, so that all is imported that it imports.
One JSON object a line on stdin: {"arguments": […], "output": FILE, "stop": null | {"at": NAME, "count": N, …}}.
The answer is one line, when the child has ended: its exit status, negative for a signal.

A child gets its signals at the N-th call of a function: before it, or "half"-way through what it was about to write. With a "delay" it
dies that many seconds of computing later, wherever it is then; SIGPROF, of which nothing knows, ends it as SIGKILL does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

import kawara.terminal
import kawara.training.distributed
from kawara import files
from kawara.cli import main
from kawara.data.pixel_file import NewPixelFile
from kawara.training.journal import Journal

torch.set_num_threads(1)  # threads would not survive the fork


def stop_at(at: str, count: int, half: bool = False, delay: float = 0.0, signals: Sequence[int] = (signal.SIGKILL,)) -> None:
    """Let this process send itself `signals` at the `count`-th event called `at`; "any" is any of them."""
    seen = 0

    def event(name: str, halve: Callable[[], None]) -> None:
        nonlocal seen
        if at not in ("any", name):
            return
        seen += 1
        if seen == count:
            if delay:
                signal.setitimer(signal.ITIMER_PROF, delay)
                return
            if half:
                halve()
            for number in signals:
                os.kill(os.getpid(), number)

    def before(owner: Any, attribute: str, name: Callable[..., str], halve: Callable[..., None] = lambda *_: None) -> None:
        real = getattr(owner, attribute)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            event(name(*arguments), lambda: halve(*arguments))
            return real(*arguments, **options)

        setattr(owner, attribute, wrapped)

    def halve_journal(journal: Journal, *_: Any) -> None:
        with open(journal.path, "a", encoding="utf-8") as file:
            file.write('{"event": "train", "st')

    def halve_pixels(file: NewPixelFile, *_: Any) -> None:
        assert file._file is not None
        file._file.write(b"half")
        file._file.flush()

    before(
        files.os, "replace", lambda _, path: os.path.basename(path), lambda partial, _: os.truncate(partial, os.path.getsize(partial) // 2)
    )
    before(files, "_to_disk", lambda folder: "after a file")
    before(Journal, "write", lambda journal, what, *_: f"journal: {what}", halve_journal)
    before(NewPixelFile, "append", lambda *_: "decoding", halve_pixels)
    before(kawara.training.distributed, "classify", lambda *_: "evaluation" if _in_finish() else "validation")


def _in_finish() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "_finish":
            return True
        frame = frame.f_back
    return False


def child(command: dict[str, Any]) -> None:
    """Run one command to its end; never returns."""
    handle = os.open(command["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    code = 99
    try:
        if command["stop"]:
            stop_at(**command["stop"])
        code = main(command["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        assert main(sys.argv[1:]) == 0
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            child(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
