"""Opening models of any kind, and the books that have to balance."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kawara.data.preprocessing import Preprocessing
from kawara.errors import ModelFileError
from kawara.models import VisionTransformer, ViTConfig
from kawara.predict import Predictor
from kawara.weights import ModelCard, google, importing, load_model, save_model, timm
from kawara.weights.foreign import Fate, Foreign, Format, Hints
from kawara.weights.importing import import_checkpoint, open_model

CONFIG = ViTConfig(image_size=(8, 8), num_classes=3, patch_size=4, width=16, depth=1, heads=1, mlp_hidden=16)
CARD = ModelCard("mine", CONFIG, ("a", "b", "c"), Preprocessing((8, 8)), recipe={"data": {"split_seed": 1}})


@pytest.fixture
def model() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(CONFIG).eval()
    torch.nn.init.normal_(model.head.weight)
    return model


def same(found: torch.nn.Module, model: torch.nn.Module) -> bool:
    state, expected = found.state_dict(), model.state_dict()
    image = torch.randn(1, 3, 8, 8)
    alike = torch.allclose(found(image), model(image), atol=1e-6)
    return (
        alike and not found.training and state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)
    )


def test_kawaras_own_files_need_no_hints(tmp_path, model):
    save_model(tmp_path / "model.safetensors", model.state_dict(), CARD)
    for source in (tmp_path, tmp_path / "model.safetensors", str(tmp_path / "model.safetensors")):
        found, card, foreign = open_model(source)
        assert same(found, model)
        assert (card, foreign) == (CARD, None)
    imported = import_checkpoint(tmp_path / "model.safetensors")
    assert same(imported.model, model)
    assert (imported.card, imported.foreign.format) == (CARD, "kawara")
    assert {fate.source for fate in imported.foreign.fates} == set(model.state_dict())


def test_a_checkpoint_becomes_a_model_with_a_card_that_can_be_saved_and_used(tmp_path, model):
    path = tmp_path / "vit_x.safetensors"
    save_file(model.state_dict(), path)
    found, card, foreign = open_model(path)
    assert same(found, model)
    assert foreign is not None
    assert foreign.format == "timm"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert card.data == {"source": {"format": "timm", "name": "vit_x.safetensors", "sha256": digest}}
    assert (card.recipe, card.metrics, card.name) == ({}, {}, "vit_x")
    save_model(tmp_path / "model.safetensors", found.state_dict(), card)
    again, read = load_model(tmp_path / "model.safetensors")
    assert same(again, model)
    assert read == card
    prediction = Predictor(found, card).predict(np.zeros((20, 30, 3), np.uint8))[0]
    assert prediction.label in ("0", "1", "2")


def test_a_model_of_the_hub_is_fetched_when_it_is_asked_for(tmp_path, model, monkeypatch):
    (tmp_path / "fetched").mkdir()
    save_file(model.state_dict(), tmp_path / "fetched" / "model.safetensors")
    (tmp_path / "fetched" / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", "num_heads": 1}))
    asked = []
    hub = types.ModuleType("kawara.weights.hub")
    hub.fetch = lambda spec: asked.append(spec) or tmp_path / "fetched"
    monkeypatch.setitem(sys.modules, "kawara.weights.hub", hub)
    found, card, _ = open_model("hub:owner/name")
    assert same(found, model)
    assert (asked, card.name) == (["hub:owner/name"], "vit_tiny_patch16_224")


def test_what_was_left_aside_on_opening_is_told(tmp_path, model):
    torch.save({"model": model.state_dict(), "model_ema": model.state_dict()}, tmp_path / "x.pth")
    assert any("'model_ema'" in note for note in import_checkpoint(tmp_path / "x.pth").foreign.notes)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("layers.0.blocks.0.attn.relative_position_bias_table", "Swin"),
        ("text_model.encoder.layers.0.layer_norm1.weight", "CLIP"),
        ("bert.encoder.layer.0.attention.self.query.weight", "BERT"),
        ("model.layers.0.self_attn.q_proj.weight", "language model"),
        ("layer1.0.bn1.running_mean", "convolutional network"),
        ("something.else", "layout that kawara does not know"),
    ],
)
def test_other_families_are_called_by_their_name(tmp_path, monkeypatch, name, words):
    monkeypatch.setattr(importing, "FORMATS", (timm.FORMAT, google.FORMAT))
    save_file({name: torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelFileError, match=rf"{words}(.|\n)*tensors {name}(.|\n)*timm, google"):
        import_checkpoint(tmp_path / "x.safetensors")


def read_wrongly(monkeypatch, tmp_path, model, change) -> None:
    """Import with a format whose books `change` has falsified."""
    state = dict(model.state_dict())
    fates = [Fate("used", name, name, "as it is") for name in state]
    foreign = Foreign("test", "x", CONFIG, state, fates, Preprocessing((8, 8)), ("a", "b", "c"))
    change(foreign)
    layout = Format("test", lambda checkpoint: True, lambda checkpoint, hints: foreign)
    monkeypatch.setattr(importing, "FORMATS", (layout,))
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    import_checkpoint(tmp_path / "x.safetensors", Hints())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda foreign: foreign.fates.pop(), r"cannot explain"),
        (lambda foreign: foreign.fates.append(foreign.fates[0]), "counted twice"),
        (lambda foreign: foreign.fates.append(Fate("dropped", "invented", None, "why")), "invented"),
        (lambda foreign: foreign.fates.__setitem__(0, dataclasses.replace(foreign.fates[0], what="dropped", target=None)), "does not get"),
        (lambda foreign: foreign.state.pop("head.bias"), "head.bias is missing"),
        (lambda foreign: foreign.state.update(more=torch.zeros(1)), "more is unknown"),
        (lambda foreign: foreign.state.update({"head.bias": torch.zeros(4)}), r"head\.bias is \(4,\), not \(3,\)"),
    ],
)
def test_books_that_do_not_balance_are_an_error(tmp_path, model, monkeypatch, change, words):
    with pytest.raises(ModelFileError, match=words):
        read_wrongly(monkeypatch, tmp_path, model, change)


def test_what_is_missing_and_has_no_value_is_initialised_always_alike(tmp_path, model, monkeypatch):
    def change(foreign):
        index = next(i for i, fate in enumerate(foreign.fates) if fate.target == "cls_token")
        foreign.fates[index] = Fate("missing", None, "cls_token", "initialised")
        foreign.fates.append(Fate("dropped", "cls_token", None, "for the test"))
        del foreign.state["cls_token"]

    read_wrongly(monkeypatch, tmp_path, model, change)
    torch.manual_seed(5)
    first = import_checkpoint(tmp_path / "x.safetensors").model
    torch.manual_seed(6)
    second = import_checkpoint(tmp_path / "x.safetensors").model
    assert torch.equal(first.cls_token, second.cls_token)
    assert first.cls_token.abs().max() > 0


def test_errors_of_a_reader_on_strange_shapes_name_the_file(tmp_path, model, monkeypatch):
    def fail(checkpoint, hints):
        raise ZeroDivisionError("integer division")

    monkeypatch.setattr(importing, "FORMATS", (Format("test", lambda checkpoint: True, fail),))
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(ModelFileError, match=r"x\.safetensors looks like test(.|\n)*ZeroDivisionError"):
        import_checkpoint(tmp_path / "x.safetensors")
