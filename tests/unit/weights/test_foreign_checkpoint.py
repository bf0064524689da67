"""What files of others may be, and what hostile or damaged ones must not do."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kawara.errors import ModelFileError
from kawara.weights.checkpoint import read_checkpoint

TENSORS = {f"blocks.{index}.weight": torch.randn(3, 5, generator=torch.Generator().manual_seed(index)) for index in range(4)}


def write(path: Path, kind: str) -> Path:
    if kind == "safetensors":
        save_file(TENSORS, path)
    elif kind == "npz":
        with open(path, "wb") as file:
            np.savez(file, **{name: tensor.numpy() for name, tensor in TENSORS.items()})
    elif kind == "compressed npz":
        with open(path, "wb") as file:
            np.savez_compressed(file, **{name: tensor.numpy() for name, tensor in TENSORS.items()})
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=kind == "pth")
    return path


KINDS = ["safetensors", "pth", "old pth", "npz", "compressed npz"]


def assert_tensors(found: dict) -> None:
    assert set(found) == set(TENSORS)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_what_its_content_says(tmp_path, kind):
    checkpoint = read_checkpoint(write(tmp_path / "weights.whatever", kind))
    assert_tensors(checkpoint.tensors)
    assert (checkpoint.wrapper, checkpoint.config, checkpoint.notes) == (None, {}, ())
    assert [path.name for path in checkpoint.files] == ["weights.whatever"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_part_of_a_file_is_taken_for_the_whole(tmp_path, kind):
    whole = write(tmp_path / "whole", kind).read_bytes()
    for length in {0, 1, 7, 8, 9, 30, 64, len(whole) // 3, len(whole) // 2, len(whole) - 30, len(whole) - 1}:
        (tmp_path / "part").write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match="part cannot be read as a checkpoint"):
            read_checkpoint(tmp_path / "part")


@pytest.mark.parametrize("kind", KINDS)
def test_changed_bytes_give_an_error_or_tensors_never_anything_else(tmp_path, kind):
    whole = write(tmp_path / "whole", kind).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(40):
        changed = bytearray(whole)
        for place in rng.integers(0, len(whole), 12):
            changed[place] = rng.integers(256)
        (tmp_path / "changed").write_bytes(changed)
        try:
            read_checkpoint(tmp_path / "changed")
        except ModelFileError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"GIF89a" + b"\0" * 100, "content is not that of"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "Git LFS"),
        (struct.pack("<Q", 10**15) + b'{"a":1}', "content is not that of"),
        (pickle.dumps(torch.zeros), "wants to run code"),
        (pickle.dumps([1, 2], protocol=2), "cannot be read"),
    ],
)
def test_other_content_says_what_it_is(tmp_path, content, words):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ModelFileError, match=words):
        read_checkpoint(tmp_path / "x.pth")


class Evil:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("kind", ["pth", "old pth", "bare pickle"])
def test_a_pickle_that_wants_to_run_code_is_refused_by_name(tmp_path, kind):
    content = {"model": TENSORS, "more": Evil(tmp_path / "executed")}
    if kind == "bare pickle":
        (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(tmp_path / "executed")))
    else:
        torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=kind == "pth")
    with pytest.raises(ModelFileError, match=r"executes no code(.|\n)*posix\.mkdir"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()


def test_a_whole_module_is_refused_with_a_way_out(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ModelFileError, match=r"Linear(.|\n)*state dict"):
        read_checkpoint(tmp_path / "module.pth")


def test_the_arguments_of_a_training_run_may_lie_beside_the_weights(tmp_path):
    content = {"model": TENSORS, "args": argparse.Namespace(lr=0.1, output_dir="x"), "epoch": 3, "model_ema": TENSORS}
    torch.save(content, tmp_path / "run.pth")
    checkpoint = read_checkpoint(tmp_path / "run.pth")
    assert_tensors(checkpoint.tensors)
    assert checkpoint.wrapper == "model"
    assert len(checkpoint.notes) == 1
    assert "'model_ema'" in checkpoint.notes[0]


def test_dino_prefers_the_teacher_and_its_prefixes_are_taken_off(tmp_path):
    teacher = {f"module.backbone.{name}": tensor for name, tensor in (TENSORS | {f"x{i}": torch.zeros(1) for i in range(20)}).items()}
    teacher |= {"module.head.last_layer.weight_g": torch.ones(2)}
    torch.save({"student": {}, "teacher": teacher, "epoch": 1}, tmp_path / "dino.pth")
    checkpoint = read_checkpoint(tmp_path / "dino.pth")
    assert checkpoint.wrapper == "teacher"
    assert "'student'" in checkpoint.notes[0]
    assert set(TENSORS) < set(checkpoint.tensors)
    assert "head.last_layer.weight_g" in checkpoint.tensors


def test_a_prefix_of_a_part_only_is_kept(tmp_path):
    names = {f"backbone.{name}": tensor for name, tensor in TENSORS.items()} | {"neck.weight": torch.ones(1)}
    save_file(names, tmp_path / "depth.safetensors")
    assert set(read_checkpoint(tmp_path / "depth.safetensors").tensors) == set(names)


def test_wrappers_inside_wrappers_are_opened(tmp_path):
    torch.save({"state_dict": {"model": {f"_orig_mod.module.{name}": tensor for name, tensor in TENSORS.items()}}}, tmp_path / "x.pth")
    assert_tensors(read_checkpoint(tmp_path / "x.pth").tensors)


def test_a_folder_and_its_sidecars(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "preprocessor_config.json").write_text('{"size": 224}')
    for path in (tmp_path, tmp_path / "model.safetensors"):
        checkpoint = read_checkpoint(path)
        assert_tensors(checkpoint.tensors)
        assert (checkpoint.config, checkpoint.preprocessor) == ({"model_type": "vit"}, {"size": 224})
    (tmp_path / "model.json").write_text('{"architecture": "own"}')
    assert read_checkpoint(tmp_path / "model.safetensors").config == {"architecture": "own"}


def test_parts_of_one_model_are_put_together(tmp_path):
    first, second = dict(list(TENSORS.items())[:2]), dict(list(TENSORS.items())[2:])
    save_file(first, tmp_path / "model-1-of-2.safetensors")
    save_file(second, tmp_path / "model-2-of-2.safetensors")
    index = dict.fromkeys(first, "model-1-of-2.safetensors") | dict.fromkeys(second, "model-2-of-2.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    checkpoint = read_checkpoint(tmp_path)
    assert_tensors(checkpoint.tensors)
    assert len(checkpoint.files) == 2


def test_an_index_cannot_reach_out_of_its_folder(tmp_path):
    write(tmp_path / "outside.safetensors", "safetensors")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../outside.safetensors"}}')
    with pytest.raises(ModelFileError, match="not beside it"):
        read_checkpoint(tmp_path / "inside")


def test_folders_that_leave_a_choice_or_none_say_so(tmp_path):
    with pytest.raises(ModelFileError, match="no checkpoint"):
        read_checkpoint(tmp_path)
    write(tmp_path / "a.npz", "npz")
    assert_tensors(read_checkpoint(tmp_path).tensors)
    write(tmp_path / "b.pth", "pth")
    with pytest.raises(ModelFileError, match=r"several checkpoints(.|\n)*a.npz, b.pth"):
        read_checkpoint(tmp_path)
    with pytest.raises(ModelFileError, match="There is no checkpoint at"):
        read_checkpoint(tmp_path / "none")


@pytest.mark.parametrize("text", ["{", "[1]", "\xff", "[" * 100_000])
def test_a_broken_sidecar_is_named(tmp_path, text):
    write(tmp_path / "x.npz", "npz")
    (tmp_path / "x.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelFileError, match=r"x\.json beside the checkpoint cannot be read"):
        read_checkpoint(tmp_path / "x.npz")


def test_bfloat16_without_a_type_is_recognised(tmp_path):
    values = torch.randn(4, 3).bfloat16()
    np.savez(tmp_path / "x.npz", a=values.view(torch.int16).numpy().view("V2"), b=np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    tensors = read_checkpoint(tmp_path / "x.npz").tensors
    assert torch.equal(tensors["a"], values)
    assert torch.equal(tensors["b"], torch.arange(6.0).reshape(2, 3))


def npy(shape: tuple[int, ...], content: bytes, descr: str = "<f4") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + content


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (npy((10**12,), b"\0" * 8), "8 bytes, and 4,000,000,000,000 by its header"),
        (npy((2,), b"\0" * 80), "80 bytes, and 8 by its header"),
        (npy((-1,), b"\0" * 4), "by its header"),
        (npy((1,), pickle.dumps([1]), "|O"), "executes no code"),
        (npy((1,), b"\0" * 16, "<U4"), "no number"),
        (b"no numpy", "cannot be read"),
    ],
)
def test_arrays_that_lie_are_refused_before_memory_is_taken(tmp_path, member, words):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", member)
    with pytest.raises(ModelFileError, match=words):
        read_checkpoint(tmp_path / "x.npz")


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy((25 * 2**20,), bytes(100 * 2**20)))
    assert (tmp_path / "bomb.npz").stat().st_size < 2**20
    with pytest.raises(ModelFileError, match="claims to unpack to"):
        read_checkpoint(tmp_path / "bomb.npz")


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(1).expand(10**9), "larger than what is stored"),
        (torch.zeros(10**9, device="meta"), "not stored as plain numbers"),
        (torch.zeros(3, 3).to_sparse(), "not stored as plain numbers"),
    ],
)
def test_tensors_that_are_not_what_they_seem_are_refused(tmp_path, tensor, words):
    torch.save({"a": tensor}, tmp_path / "x.pth")
    with pytest.raises(ModelFileError, match=words):
        read_checkpoint(tmp_path / "x.pth")


def test_a_dictionary_without_tensors_says_what_it_holds(tmp_path):
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "x.pth")
    with pytest.raises(ModelFileError, match=r"no tensors(.|\n)*epoch, optimizer"):
        read_checkpoint(tmp_path / "x.pth")
