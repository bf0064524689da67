"""Read the tensors of a checkpoint that others wrote, whatever the file is, without executing anything in it.

    .safetensors            also in several parts, with model.safetensors.index.json
    .pth, .pt, .bin         torch.save: a pickle, read by torch's restricted reader (numbers, tensors, dictionaries, argparse.Namespace)
    .npz                    NumPy: google-research's ViTs; bfloat16 there is two bytes of no type

What a file is, its content says, not its name. Around the tensors there may be dictionaries ("model", "state_dict", "teacher") and in
their names prefixes of the wrapper that trained them; both are taken off. Such a file is believed only as far as it has been checked: an
archive that claims to unpack to far more than its size is refused before it is unpacked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kawara.errors import ModelFileError
from kawara.weights.foreign import RawCheckpoint

WRAPPERS = ("teacher", "model", "state_dict")
"""Keys that tensors lie under, the one to prefer first: DINO evaluates its teacher."""
PREFIXES = ("module.", "_orig_mod.", "backbone.")

_ASIDE = ("student", "model_ema", "state_dict_ema", "ema")
_FOLDER_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
_MOSTLY = 0.9
"""Share of tensors that must carry a prefix for it to be taken off: the projection head of DINO has none."""
_MAX_JSON_BYTES = 64 * 2**20
_MAX_HEADER_BYTES = 100_000_000
"""A limit of the safetensors format."""
_MAX_RATIO, _MAX_SMALL_BYTES = 100, 64 * 2**20
"""How many times its size an archive may unpack to; what may be unpacked in any case."""
_COMPLETE_COPY = "a complete copy of the file"


def read_checkpoint(path: str | Path) -> RawCheckpoint:
    """Read a checkpoint file, or a folder with one. Raises ModelFileError naming the file and what is wrong with it."""
    path = Path(path)
    if not path.exists():
        raise ModelFileError(
            f"There is no checkpoint at {path}.", remedy="the path of a .safetensors, .pth, .bin or .npz file, or a folder"
        )
    files = _files_of(path) if path.is_dir() else [path]
    content: dict[str, Any] = {}
    for file in files:
        content.update(_read_file(file))
    tensors, wrapper, notes = _open(content, path)
    if not tensors:
        raise ModelFileError(f"{path} holds no tensors.", got=", ".join(map(str, list(content)[:5])) or "nothing")
    home = files[0].parent
    sidecars = ("config.json",) if path.is_dir() else (f"{path.stem}.json", "config.json")
    config = next((found for name in sidecars if (found := _read_json(home / name))), {})
    return RawCheckpoint(
        path=str(path),
        tensors=_without_prefixes(tensors),
        config=config,
        preprocessor=_read_json(home / "preprocessor_config.json"),
        wrapper=wrapper,
        files=tuple(files),
        notes=tuple(notes),
    )


def _files_of(folder: Path) -> list[Path]:
    """Return the files of weights in a folder."""
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return _parts_of(folder / name) if name.endswith(".json") else [folder / name]
    found = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES and file.is_file())
    if len(found) == 1:
        return found
    raise ModelFileError(
        f"The folder {folder} holds {'several checkpoints' if found else 'no checkpoint'}.",
        got=", ".join(file.name for file in found[:6]) or None,
        allowed=f"{', '.join(_FOLDER_FILES)}, or one file {'/'.join(_SUFFIXES)}",
        remedy="the path of one of the files" if found else None,
    )


def _parts_of(index: Path) -> list[Path]:
    """Return the files that an index names, which lie beside it."""
    names = _read_json(index).get("weight_map")
    names = sorted({str(name) for name in names.values()}) if isinstance(names, dict) else []
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise ModelFileError(
                f"{index} names a file that is not beside it.", got=name, remedy="all parts of the checkpoint in one folder"
            )
    if not names:
        raise ModelFileError(f"{index} names no files.")
    return [index.parent / name for name in names]


def _read_file(path: Path) -> Mapping[str, Any]:
    """Return what lies in one file: tensors by name, or the dictionary of a pickle."""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
        if not start:
            raise _unreadable(path, "it is empty", _COMPLETE_COPY)
        if start.startswith(b"version https://git-lfs"):
            raise _unreadable(path, "it is a pointer of Git LFS, not the file itself", "git lfs pull")
        if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= _MAX_HEADER_BYTES:
            return safetensors.torch.load_file(path)
        if start.startswith(b"PK\x03\x04"):
            return _read_archive(path)
        if start[:1] == b"\x80":
            return _read_pickle(path, mmap=False)
    except ModelFileError:
        raise
    except MemoryError:
        raise _unreadable(path, "it asks for more memory than there is", None) from None
    except Exception as error:  # a damaged archive or pickle can fail in any way
        raise _unreadable(path, error, _COMPLETE_COPY) from None
    raise _unreadable(path, "its content is not that of a .safetensors, .pth, .bin or .npz file", None)


def _read_archive(path: Path) -> Mapping[str, Any]:
    """Read a zip archive: torch's own, or NumPy's."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        packed, unpacked = path.stat().st_size, sum(member.file_size for member in members)
        if unpacked > max(_MAX_RATIO * packed, _MAX_SMALL_BYTES):
            raise _unreadable(path, f"it has {packed:,} bytes and claims to unpack to {unpacked:,}", None)
        if any(member.filename.endswith("data.pkl") for member in members):
            return _read_pickle(path, mmap=all(member.compress_type == zipfile.ZIP_STORED for member in members))
        if members and all(member.filename.endswith(".npy") for member in members):
            return {member.filename.removesuffix(".npy"): _read_array(archive, member) for member in members}
    raise _unreadable(path, "it is a zip archive, but neither of torch nor of NumPy", None)


def _read_pickle(path: Path, mmap: bool) -> Mapping[str, Any]:
    try:
        # DeiT, MAE and DINO keep the arguments of the run beside the weights: a Namespace is a dictionary of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        wanted = match[1] if match else _first_name_asked_for(path)
        if wanted is None:  # torch's advice to load it with weights_only=False is left out
            raise _unreadable(path, str(error).rpartition("error: ")[2], _COMPLETE_COPY) from None
        raise ModelFileError(
            f"{path} wants to run code, and kawara executes no code from files.",
            got=f"it asks for {wanted}",
            remedy="a .safetensors file, or a .pth that holds tensors alone (the state dict)",
        ) from None
    if not isinstance(content, Mapping):
        raise _unreadable(path, f"it holds a {type(content).__name__}, not a dictionary of tensors", "torch.save(model.state_dict(), …)")
    return content


def _first_name_asked_for(path: Path) -> str | None:
    """Return the first class or function that a bare pickle would import, without running it; None where it asks for none."""
    texts: list[str] = []
    with open(path, "rb") as file, contextlib.suppress(Exception):  # damaged: as far as it can be read
        for operation, argument, _ in pickletools.genops(file):
            if operation.name == "GLOBAL":
                return str(argument).replace(" ", ".")
            if operation.name == "STACK_GLOBAL" and len(texts) >= 2:
                return ".".join(texts[-2:])
            if isinstance(argument, str):
                texts.append(argument)
    return None


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Tensor:
    """Read one .npy member. The header is checked before memory is taken; objects, which are pickles, are refused."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, column_order, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError(f"the array {member.filename} holds Python objects, and kawara executes no code from files")
        content = file.read()
        expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if min(shape, default=0) < 0 or len(content) != expected:
        raise ValueError(f"the array {member.filename} has {len(content):,} bytes, and {expected:,} by its header")
    bfloat16 = dtype.kind == "V" and dtype.itemsize == 2  # big_vision: NumPy has no bfloat16
    array = np.frombuffer(bytearray(content), dtype=np.int16 if bfloat16 else dtype)
    array = np.ascontiguousarray(array.reshape(shape, order="F" if column_order else "C"))
    try:
        tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except TypeError:
        raise ValueError(f"the array {member.filename} holds {dtype}, which is no number") from None
    return tensor.view(torch.bfloat16) if bfloat16 else tensor


def _open(content: Mapping[str, Any], path: Path) -> tuple[dict[str, Tensor], str | None, list[str]]:
    """Return the tensors, the last key that they lay under, and what was left aside on the way."""
    wrapper, notes = None, []
    for _ in range(len(WRAPPERS)):
        key = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        beside = [other for other in (*WRAPPERS, *_ASIDE) if other != key and isinstance(content.get(other), Mapping)]
        if beside:
            notes.append(f"The weights are those under {key!r}; {', '.join(map(repr, beside))} beside them are left aside.")
        content, wrapper = content[key], key
    tensors = {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise _unreadable(path, f"the tensor {name} is not stored as plain numbers", None)
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise _unreadable(path, f"the tensor {name} is larger than what is stored of it", None)
    return tensors, wrapper, notes


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off the prefixes of wrappers, in whatever order they stand, where nearly all tensors carry them."""
    for _ in range(2 * len(PREFIXES)):
        for prefix in PREFIXES:
            carrying = sum(name.startswith(prefix) for name in tensors)
            bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            if carrying >= _MOSTLY * len(tensors) and len(bare) == len(tensors):
                tensors = bare
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    """Return the dictionary in a JSON file; empty where there is no file. Raises ModelFileError for any other content."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"it is larger than {_MAX_JSON_BYTES // 2**20} MB")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is not a table of names and values")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(
            f"{path} beside the checkpoint cannot be read.", got=_one_line(error), remedy="mend it, or move it away"
        ) from None
    return content


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _unreadable(path: Path, reason: object, remedy: str | None) -> ModelFileError:
    return ModelFileError(f"{path} cannot be read as a checkpoint.", got=_one_line(reason), remedy=remedy)
