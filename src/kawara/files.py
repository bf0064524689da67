"""Write files so that a reader sees either the old content or the new one, never a part; and keep two processes out of one folder.

What is being written lies in `.<name>.<process>.partial` beside its place until it is whole. A process that is killed leaves that behind:
`remove_partials` clears it away.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kawara.errors import KawaraError, RunFolderError

try:
    import fcntl
except ImportError:  # Windows has no such locks: two processes in one folder are not noticed there
    fcntl = None

PARTIAL = ".partial"
HAS_LOCKS = fcntl is not None


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path near `path`; on success it takes the place of `path`, on failure nothing is left.

    Raises RunFolderError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    # In a folder of its own: some writers (safetensors) make temporary files beside the file that they are asked for.
    room = _partial(path)
    try:
        room.mkdir()
        temporary = room / path.name
        temporary.touch()
        mode = temporary.stat().st_mode & 0o777
        yield temporary
        _complete(temporary, mode)
        os.replace(temporary, path)
        _to_disk(path.parent)
    except Exception as error:
        raise _said_for_people(path, error) from None
    finally:
        shutil.rmtree(room, ignore_errors=True)


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path`, on failure nothing is left.

    Raises RunFolderError when there is something at `path` already, the disk is full or the place cannot be written.
    """
    path = Path(path)
    temporary = _partial(path)
    try:
        refuse_existing(path)
        temporary.mkdir()
        mode = temporary.stat().st_mode & 0o666
        yield temporary
        for file in (path for path in temporary.rglob("*") if path.is_file()):
            _complete(file, mode)
        os.rename(temporary, path)
        _to_disk(path.parent)
    except Exception as error:
        raise _said_for_people(path, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _partial(path: Path) -> Path:
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had the same number
    return partial


def _complete(file: Path, mode: int) -> None:
    """Bring a file to the disk, with the permissions that files here have: safetensors lets only the owner read what it writes."""
    with contextlib.suppress(OSError):  # a file system without permissions
        os.chmod(file, mode)
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())


def _to_disk(folder: Path) -> None:
    """Bring the names in a folder to the disk, so that a loss of power does not bring the old file back. Where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_partial(path: Path) -> bool:
    """Say whether this is the name of something that was never completed."""
    return path.name.startswith(".") and path.name.endswith(PARTIAL)


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left half-written in `folder`. Nobody else may be writing there: see `held`."""
    for path in folder.glob(f".*{PARTIAL}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other processes, if they ask in this way, out of a file or folder until the block ends or this process does, however it ends.

    Raises RunFolderError where another has it. Nothing is written; a file system without locks keeps nobody out.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        if not lock(handle):
            raise RunFolderError(f"Another process is at work in {path}.", remedy="wait for it to end, or another --out")
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def claimed(folder: Path, *rooms: Path) -> Iterator[None]:
    """Make `folder` and the `rooms` in it, keep other processes out, and clear away what killed ones left half-written.

    What was made and is still empty at the end goes again. Raises RunFolderError if it cannot be made, or another process has it.
    """
    made = [each for each in (*rooms, folder, *folder.parents) if not each.exists()]
    try:
        for each in (folder, *rooms):
            each.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    try:
        with held(folder):
            for each in (folder, *rooms):
                remove_partials(each)
            yield
    finally:
        for each in made:
            with contextlib.suppress(OSError):
                each.rmdir()


def lock(handle: int) -> bool:
    """Lock an open file or folder until it is closed; False where another process has it.

    Where there are no locks it is True: nobody is kept out.
    """
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
    return True


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
            f"No space is left to write {path}.", remedy="free some disk space; a training run then goes on with the same --out"
        )
    return RunFolderError(f"{path} cannot be written.", got=error.strerror or error, remedy="a folder that you may write to")


def os_error_in(error: BaseException) -> OSError | None:
    """Return the error of the operating system that `error` is or tells of, None where there is none.

    Libraries written in Rust (safetensors) raise errors of their own kind that end in "(os error 28)".
    """
    if isinstance(error, OSError):
        return error
    told = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(told[1]), os.strerror(int(told[1]))) if told else None


def _said_for_people(path: Path, error: Exception) -> Exception:
    found = None if isinstance(error, KawaraError) else os_error_in(error)
    return error if found is None else cannot_write(path, found)
