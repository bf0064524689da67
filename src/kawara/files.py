"""Write files so that a reader sees either the old content or the new one, never a part."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kawara.errors import RunFolderError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the place of `path`, on failure nothing is left.

    Raises RunFolderError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path`, on failure nothing is left.

    Raises RunFolderError when there is something at `path` already, the disk is full or the place cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        refuse_existing(path)
        temporary.mkdir()
        yield temporary
        for file in (path for path in temporary.rglob("*") if path.is_file()):
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
        os.rename(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_existing(path: Path) -> None:
    """Raise RunFolderError if there is a file, or a folder with content, at `path`."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise RunFolderError(f"{path} exists already.", remedy="another name, or delete it first")


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def cannot_write(path: Path, error: OSError) -> RunFolderError:
    """Return the error that says why `path` cannot be written and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunFolderError(
            f"No space is left to write {path}.", remedy="free some disk space; a training run then goes on with --resume"
        )
    return RunFolderError(f"{path} cannot be written.", got=error.strerror or error, remedy="a folder that you may write to")
