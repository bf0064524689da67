from __future__ import annotations

import json
import pickle
import struct

import pytest
import safetensors.torch
import torch

from kawara.data.preprocessing import Preprocessing
from kawara.errors import ModelFileError, RunFolderError
from kawara.models import create_model
from kawara.weights import ModelCard, load_model, read_card, save_model
from kawara.weights.model_file import card_from_json, card_to_json


@pytest.fixture
def written(tmp_path):
    torch.manual_seed(0)
    model = create_model("vit_femto_conv_4", num_classes=3, image_size=(12, 20), channels=1, registers=2, position="sincos").eval()
    card = ModelCard(
        name="vit_femto_conv_4",
        config=model.config,
        class_names=("ねこ", "dog", "<b>bird</b>"),
        preprocessing=Preprocessing(image_size=(12, 20), color="grey", crop_fraction=1.0, mean=(0.3,), std=(0.2,)),
        recipe={"recipe": "small"},
        data={"fingerprint": "abc"},
        metrics={"top1": 0.5},
        environment={"python": "3"},
    )
    path = tmp_path / "model.safetensors"
    save_model(path, model.state_dict(), card)
    return model, card, path


def test_everything_comes_back(written):
    model, card, path = written
    loaded, found = load_model(path)
    assert found == card
    image = torch.randn(2, 1, 12, 20)
    assert torch.equal(loaded(image), model(image))
    assert not loaded.training
    assert loaded(torch.randn(1, 1, 16, 24)).shape == (1, 3)


def test_the_header_is_plain_json_that_others_can_read(written):
    _, _, path = written
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["kawara"])
    assert header["format_version"] == 1
    assert header["family"] == "vit"
    assert header["class_names"][0] == "ねこ"
    assert header["preprocessing"]["image_size"] == [12, 20]
    assert header["config"]["width"] == 64


def rewrite(path, change) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["kawara"])
    tensors = safetensors.torch.load_file(path)
    change(header, tensors)
    safetensors.torch.save_file(tensors, path, metadata={"kawara": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda header, tensors: header.update(format_version=99), "newer kawara"),
        (lambda header, tensors: header.pop("class_names"), "damaged"),
        (lambda header, tensors: header["config"].update(depth="deep"), "damaged"),
        (lambda header, tensors: header["config"].update(depth=4), "do not fit"),
        (lambda header, tensors: tensors.pop("head.weight"), "do not fit"),
        (lambda header, tensors: header.update(family="cnn"), "damaged"),
    ],
)
def test_a_header_that_does_not_fit_is_a_clear_error(written, change, words):
    _, _, path = written
    rewrite(path, change)
    with pytest.raises(ModelFileError, match=words):
        load_model(path)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read"),
        (b"GIF89a" + b"\0" * 100, "cannot be read"),
        (struct.pack("<Q", 10**12) + b"{}", "not a safetensors file"),
        (pickle.dumps(Evil()), "executes no code"),
        (b"PK\x03\x04" + b"\0" * 100, "executes no code"),
    ],
)
def test_what_is_no_model_file_is_refused_without_being_executed(tmp_path, content, words):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=words):
        read_card(path)


def test_a_truncated_file_and_a_foreign_one_are_told_apart(written, tmp_path):
    _, _, path = written
    (tmp_path / "short.safetensors").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match="incomplete or damaged"):
        load_model(tmp_path / "short.safetensors")
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelFileError, match="not a kawara model"):
        load_model(tmp_path / "other.safetensors")
    with pytest.raises(ModelFileError, match="no model file"):
        load_model(tmp_path / "none.safetensors")


def test_damage_is_not_taken_for_a_pickle_because_of_the_length_of_the_header(tmp_path):
    path = tmp_path / "short.safetensors"
    path.write_bytes(struct.pack("<Q", 0x180) + b'{"weight": ')  # begins with 0x80, as a pickle does
    with pytest.raises(ModelFileError, match="incomplete or damaged"):
        read_card(path)


def test_files_from_before_an_option_existed_have_its_default(written):
    model, card, path = written
    newer = ("mlp", "head_hidden", "resnet_blocks", "resnet_width")
    rewrite(path, lambda header, tensors: [header["config"].pop(name) for name in newer])
    loaded, found = load_model(path)
    assert found == card
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("blocks", [(), (1, 2)])
def test_a_hybrid_comes_back(tmp_path, blocks):
    model = create_model("vit_femto_8", num_classes=3, image_size=32, stem="resnet", resnet_width=32, resnet_blocks=blocks).eval()
    card = ModelCard("hybrid", model.config, ("a", "b", "c"), Preprocessing((32, 32)))
    save_model(tmp_path / "model.safetensors", model.state_dict(), card)
    loaded, found = load_model(tmp_path / "model.safetensors")
    assert found == card
    assert found.config.resnet_blocks == blocks
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(loaded(image), model(image))


def test_a_failed_write_leaves_the_old_file(written, monkeypatch):
    model, card, path = written
    before = path.read_bytes()

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kawara.weights.model_file.safetensors.torch.save_file", fail)
    with pytest.raises(RunFolderError, match="No space"):
        save_model(path, model.state_dict(), card)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_file_keeps_how_many_tokens_are_merged_and_older_files_merge_none(tmp_path):
    model = create_model("vit_femto_4", num_classes=2, merge=3, merge_inflection=0.5).eval()
    card = ModelCard("vit_femto_4", model.config, ("a", "b"), Preprocessing((32, 32)))
    save_model(tmp_path / "model.safetensors", model.state_dict(), card)
    opened, _ = load_model(tmp_path / "model.safetensors")
    assert (opened.config.merge, opened.config.merge_inflection) == (3, 0.5)
    header = json.loads(card_to_json(card))
    header["config"] = {name: value for name, value in header["config"].items() if not name.startswith("merge")}
    assert card_from_json(json.dumps(header), "old").config.merge == 0
