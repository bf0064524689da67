"""Every layout that goes by timm's names, made from a model whose answers are known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kawara.data.preprocessing import HALF, IMAGENET_MEAN, Preprocessing
from kawara.errors import ConfigError, ModelFileError
from kawara.models import VisionTransformer, ViTConfig
from kawara.weights import ModelCard
from kawara.weights.foreign import Hints
from kawara.weights.importing import Imported, import_checkpoint
from kawara.weights.timm import write

SMALL = ViTConfig(image_size=(16, 16), num_classes=5, patch_size=4, width=32, depth=2, heads=2, mlp_hidden=40)
IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(7))


def shaken(**options) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(dataclasses.replace(SMALL, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def renamed(state: dict[str, Tensor], *pairs: tuple[str, str]) -> dict[str, Tensor]:
    for old, new in pairs:
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    return state


def saved(path: Path, state: dict[str, Tensor], wrapper: str | None = None, **sidecar) -> Path:
    state = {name: tensor.detach().clone() for name, tensor in state.items()}
    if path.suffix == ".pth":
        torch.save({wrapper: state} if wrapper else state, path)
    else:
        save_file(state, path)
    if sidecar:
        path.with_suffix(".json").write_text(json.dumps(sidecar))
    return path


def answers_alike(imported: Imported, model: VisionTransformer) -> None:
    with torch.no_grad():
        expected = model(IMAGE)
        assert (imported.model(IMAGE) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not imported.model.training


HEADS = Hints(heads=2)


def test_plain_vit_and_its_note_on_colours(tmp_path):
    model = shaken()
    imported = import_checkpoint(saved(tmp_path / "x.safetensors", model.state_dict()), HEADS)
    answers_alike(imported, model)
    assert imported.card.config == model.config
    assert imported.card.preprocessing == Preprocessing((16, 16), crop_fraction=0.9, mean=HALF, std=HALF)
    assert imported.card.class_names == ("0", "1", "2", "3", "4")
    assert imported.card.name == "vit"
    assert len(imported.foreign.notes) == 1
    assert "--normalise" in imported.foreign.notes[0]
    assert {fate.what for fate in imported.foreign.fates} == {"used"}
    assert {fate.source for fate in imported.foreign.fates} == set(model.state_dict())


def test_hints_replace_what_would_be_assumed(tmp_path):
    path = saved(tmp_path / "x.safetensors", shaken().state_dict())
    guessed = import_checkpoint(path)
    assert guessed.card.config.heads == 1  # one head of 32
    assert any("1, each 32 wide, is assumed. kawara convert --heads N changes it" in note for note in guessed.foreign.notes)
    told = import_checkpoint(path, Hints(heads=2, normalisation="imagenet"))
    assert (told.card.config.heads, told.card.preprocessing.mean, told.foreign.notes) == (2, IMAGENET_MEAN, [])
    for heads in (0, 3, -2):
        with pytest.raises(ModelFileError, match="heads"):
            import_checkpoint(path, Hints(heads=heads))


def test_a_width_without_usual_heads_needs_the_hint(tmp_path):
    model = shaken(width=24, heads=3)
    path = saved(tmp_path / "x.safetensors", model.state_dict())
    with pytest.raises(ModelFileError, match=r"does not say how many heads(.|\n)*--heads N"):
        import_checkpoint(path)
    answers_alike(import_checkpoint(path, Hints(heads=3)), model)


def test_published_widths_have_their_heads_without_a_note(tmp_path):
    model = shaken(width=192, heads=3, depth=1)
    imported = import_checkpoint(saved(tmp_path / "deit_x.safetensors", model.state_dict()))
    answers_alike(imported, model)
    assert len(imported.foreign.notes) == 1  # on colours
    assert imported.card.name == "deit_x"


def test_the_sidecar_of_the_hub_says_everything(tmp_path):
    model = shaken(pool="mean", activation="gelu_tanh")
    pretrained = {"input_size": [3, 16, 16], "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "crop_pct": 0.8, "interpolation": "bilinear"}
    sidecar = {
        "architecture": "vit_tiny_patch16_224",
        "global_pool": "avg",
        "pretrained_cfg": pretrained,
        "label_names": list("abcde"),
        "model_args": {"num_heads": 2, "act_layer": "gelu_tanh"},
    }
    imported = import_checkpoint(saved(tmp_path / "x.safetensors", model.state_dict(), **sidecar))
    answers_alike(imported, model)
    prepared = Preprocessing((16, 16), crop_fraction=0.8, interpolation="bilinear", mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    assert imported.card.preprocessing == prepared
    assert (imported.card.class_names, imported.card.name, imported.foreign.notes) == (tuple("abcde"), "vit_tiny_patch16_224", [])


@pytest.mark.parametrize(
    ("sidecar", "words"),
    [
        ({"num_heads": "2"}, "num_heads that makes no sense"),
        ({"num_heads": 5}, "do not divide"),
        ({"num_heads": 2, "global_pool": "max"}, "pools its tokens"),
        ({"num_heads": 2, "act_layer": "silu"}, "activation"),
        ({"num_heads": 2, "img_size": [1, 2, 3]}, "img_size"),
        ({"num_heads": 2, "pretrained_cfg": {"mean": [1, 2]}}, "mean that makes no sense"),
        ({"num_heads": 2, "pretrained_cfg": {"mean": [0, 0, 0], "std": [0, 1, 1]}}, "impossible about images"),
        ({"num_heads": 2, "pretrained_cfg": {"crop_pct": 7}}, "impossible about images"),
        ({"num_heads": 2, "pretrained_cfg": {"input_size": [3, -4, 4]}}, "input_size that makes no sense"),
        ({"num_heads": 2, "pretrained_cfg": {"input_size": [3, 10**9, 10**9]}}, "input_size that makes no sense"),
        ({"num_heads": 2, "pretrained_cfg": {"input_size": 3}}, "input_size that makes no sense"),
    ],
)
def test_a_sidecar_that_makes_no_sense_says_where(tmp_path, sidecar, words):
    with pytest.raises(ModelFileError, match=words):
        import_checkpoint(saved(tmp_path / "x.safetensors", shaken().state_dict(), **sidecar))


def test_distilled_deit(tmp_path):
    model = shaken(distillation_token=True)
    imported = import_checkpoint(saved(tmp_path / "x.pth", model.state_dict(), "model"), HEADS)
    answers_alike(imported, model)
    assert imported.card.config.position_resize == "bicubic"
    assert imported.card.preprocessing.mean == IMAGENET_MEAN


def test_deit3_with_gammas(tmp_path):
    model = shaken(class_position=False, layer_scale=1e-4)
    state = renamed(model.state_dict(), (".ls1.gamma", ".gamma_1"), (".ls2.gamma", ".gamma_2"))
    imported = import_checkpoint(saved(tmp_path / "x.pth", state, "model"), HEADS)
    answers_alike(imported, model)
    assert not imported.card.config.class_position
    assert imported.card.preprocessing.mean == IMAGENET_MEAN


def test_timms_mean_pooling(tmp_path):
    model = shaken(pool="mean", final_norm="pooled", class_token=False, registers=3)
    state = {f"fc_{name}" if name.startswith("norm.") else name: tensor for name, tensor in model.state_dict().items()}
    answers_alike(import_checkpoint(saved(tmp_path / "x.safetensors", state), HEADS), model)
    unused = {f"norm.{part}": torch.randn(32) for part in ("weight", "bias")}
    imported = import_checkpoint(saved(tmp_path / "both.safetensors", state | unused), HEADS)
    answers_alike(imported, model)
    assert {fate.source for fate in imported.foreign.fates if fate.what == "dropped"} == set(unused)
    assert any("fc_norm" in note for note in imported.foreign.notes)


def test_attention_pooling_and_the_head_of_pre_training(tmp_path):
    model = shaken(pool="map", class_token=False, head_hidden=12)
    theirs = (
        ("attn_pool.attn.query", "attn_pool.q"),
        ("attn_pool.attn.key_value", "attn_pool.kv"),
        ("attn_pool.attn.proj", "attn_pool.proj"),
    )
    state = renamed(model.state_dict(), *theirs, ("pre_logits.", "pre_logits.fc."))
    answers_alike(import_checkpoint(saved(tmp_path / "x.safetensors", state), HEADS), model)
    backbone = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    imported = import_checkpoint(saved(tmp_path / "backbone.safetensors", backbone), HEADS)
    assert imported.card.config.head_hidden is None
    assert {fate.source for fate in imported.foreign.fates if fate.what == "dropped"} == {"pre_logits.fc.weight", "pre_logits.fc.bias"}


def test_original_dinov2_with_registers_chunks_and_swiglu(tmp_path):
    model = shaken(num_classes=0, registers=4, layer_scale=1e-5, mlp="swiglu")
    state = renamed(model.state_dict(), ("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3"), ("reg_token", "register_tokens"))
    chunked = renamed(state, ("blocks.0.", "blocks.0.0."), ("blocks.1.", "blocks.1.1.")) | {"mask_token": torch.zeros(1, 32)}
    imported = import_checkpoint(saved(tmp_path / "x.pth", chunked), HEADS)
    answers_alike(imported, model)
    config = imported.card.config
    assert (config.mlp, config.mlp_hidden, config.registers, config.num_classes) == ("swiglu", 40, 4, 0)
    assert config.class_position
    assert config.position_resize == "bicubic-antialias"
    assert imported.card.class_names == ()
    assert (imported.card.preprocessing.mean, imported.card.preprocessing.crop_fraction) == (IMAGENET_MEAN, 1.0)
    without = {name: tensor for name, tensor in chunked.items() if name != "register_tokens"}
    assert import_checkpoint(saved(tmp_path / "y.pth", without), HEADS).card.config.position_resize == "dinov2-offset"


def test_full_dino_checkpoint(tmp_path):
    model = shaken(num_classes=0)
    teacher = {f"module.backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    heads = {"head.mlp.0.weight": torch.ones(3, 3), "head.last_layer.weight_g": torch.ones(3, 1)}
    imported = import_checkpoint(
        saved(tmp_path / "x.pth", teacher | {f"module.{name}": value for name, value in heads.items()}, "teacher"), HEADS
    )
    answers_alike(imported, model)
    assert {fate.source: fate.what for fate in imported.foreign.fates if fate.what != "used"} == dict.fromkeys(heads, "dropped")
    assert imported.card.config.position_resize == "dinov2-offset"
    assert imported.card.preprocessing == Preprocessing((16, 16), crop_fraction=0.875)


def test_full_mae_checkpoint(tmp_path):
    model = shaken(num_classes=0)
    decoder = {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_pos_embed": torch.zeros(1, 17, 8),
        "decoder_blocks.0.norm1.weight": torch.ones(8),
    }
    imported = import_checkpoint(saved(tmp_path / "x.pth", dict(model.state_dict()) | decoder, "model"), HEADS)
    answers_alike(imported, model)
    assert {fate.source for fate in imported.foreign.fates if fate.what == "dropped"} == set(decoder)
    assert imported.card.preprocessing == Preprocessing((16, 16), crop_fraction=0.875)
    assert imported.card.config.position_resize == "bicubic"


def test_patches_of_a_linear_layer_and_missing_biases(tmp_path):
    model = shaken()
    with torch.no_grad():
        model.patch_embed.proj.bias.zero_()
        for block in model.blocks:
            block.attn.qkv.bias.zero_()
    state = dict(model.state_dict())
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)
    for name in ("patch_embed.proj.bias", "blocks.0.attn.qkv.bias", "blocks.1.attn.qkv.bias"):
        del state[name]
    imported = import_checkpoint(saved(tmp_path / "x.safetensors", state), HEADS)
    answers_alike(imported, model)
    assert [fate.what for fate in imported.foreign.fates].count("missing") == 3


def test_positions_of_registers_are_added_to_them(tmp_path):
    model = shaken(registers=2)
    state = dict(model.state_dict())
    of_registers = torch.randn(1, 2, 32)
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], of_registers, state["pos_embed"][:, 1:]], dim=1)
    state["reg_token"] = state["reg_token"] - of_registers
    answers_alike(import_checkpoint(saved(tmp_path / "x.safetensors", state), HEADS), model)


def test_grids_that_are_not_square_need_the_size(tmp_path):
    model = shaken(image_size=(8, 20))
    path = saved(tmp_path / "x.safetensors", model.state_dict())
    with pytest.raises(ModelFileError, match=r"no square image(.|\n)*img_size"):
        import_checkpoint(path, HEADS)
    imported = import_checkpoint(saved(path, model.state_dict(), img_size=[8, 20]), HEADS)
    assert imported.card.config.image_size == (8, 20)
    answers_alike(imported, model)


def test_half_precision_becomes_float32_and_says_so(tmp_path):
    model = shaken()
    state = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    imported = import_checkpoint(saved(tmp_path / "x.safetensors", state), HEADS)
    assert {parameter.dtype for parameter in imported.model.parameters()} == {torch.float32}
    assert all("bfloat16 to float32" in fate.how for fate in imported.foreign.fates)
    assert torch.equal(imported.model.head.weight, state["head.weight"].float())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.update({"adapter.weight": torch.ones(3)}), r"cannot explain(.|\n)*adapter\.weight"),
        (lambda state: state.pop("blocks.1.attn.qkv.bias"), r"blocks\.1\.attn\.qkv\.bias"),
        (lambda state: state.pop("blocks.1.mlp.fc2.bias"), r"blocks\.1\.mlp\.fc2\.bias"),
        (lambda state: state.update({"blocks.4.norm1.weight": torch.ones(32)}), "lacks some blocks"),
        (lambda state: state.update({"blocks.1.norm1.weight": torch.ones(31)}), r"blocks\.1\.norm1\.weight"),
        (lambda state: state.update({"head.weight": torch.ones(5)}), "unexpected shape"),
        (lambda state: state.update({"norm.weight": torch.ones(32, dtype=torch.int64)}), "floating-point"),
        (lambda state: state.update({"pos_embed": torch.ones(1, 13, 32)}), "no square image"),
        (lambda state: state.update({"patch_embed.proj.weight": torch.ones(32, 3, 4, 5)}), "not square"),
        (lambda state: state.update({"patch_embed.proj.weight": torch.ones(32, 2, 4, 4)}), "2 channels"),
        (lambda state: state.update({"norm_pre.weight": torch.ones(32)}), "CLIP"),
        (lambda state: state.update({"rope_embed.periods": torch.ones(4)}), "rotary"),
        (lambda state: state.update({"patch_embed.backbone.stem.conv.weight": torch.ones(4)}), "google-research"),
        (lambda state: state.update({"blocks.0.ls1.gamma": torch.ones(32)}), r"ls2\.gamma"),
        (lambda state: state.update({"blocks.0.gamma_1": torch.ones(32), "blocks.0.ls1.gamma": torch.ones(32)}), "one tensor twice"),
    ],
)
def test_what_cannot_be_explained_is_named(tmp_path, change, words):
    state = dict(shaken().state_dict())
    change(state)
    with pytest.raises(ModelFileError, match=words):
        import_checkpoint(saved(tmp_path / "x.safetensors", state), HEADS)


WRITTEN = {
    "class": {},
    "distilled": {"distillation_token": True, "layer_scale": 0.1},
    "timm's mean": {"pool": "mean", "final_norm": "pooled", "class_token": False, "class_position": False, "registers": 2},
    "mean": {"pool": "mean"},
    "class, norm after": {"final_norm": "pooled"},
    "map": {"pool": "map", "activation": "gelu_tanh"},
    "deit3": {"class_position": False, "layer_scale": 1e-3, "registers": 4},
    "no positions": {"position": "none", "class_position": False},
    "no biases": {"bias": False},
    "backbone": {"num_classes": 0},
    "swiglu": {"mlp": "swiglu", "mlp_hidden": 33},
    "odd": {"mlp_hidden": 37, "image_size": (8, 20), "position_resize": "bicubic", "norm_eps": 1e-6},
    "grey": {"channels": 1},
}


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize("options", WRITTEN.values(), ids=WRITTEN)
def test_what_is_written_comes_back_bit_for_bit(tmp_path, options, as_file):
    model = shaken(**options)
    config = model.config
    colors = {"color": "grey", "mean": (0.4,), "std": (0.3,)} if config.channels == 1 else {"mean": (0.1, 0.2, 0.3), "std": (0.3,) * 3}
    prepared = Preprocessing(config.image_size, crop_fraction=0.93, interpolation="bilinear", **colors)
    card = ModelCard("mine", config, tuple(f"class {index}" for index in range(config.num_classes)), prepared)
    paths = write(tmp_path / ("out.safetensors" if as_file else "out"), model, card)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == (
        ["out.safetensors", "out.json"] if as_file else ["out/model.safetensors", "out/config.json"]
    )
    imported = import_checkpoint(paths[0] if as_file else tmp_path / "out")
    assert (imported.card.config, imported.card.preprocessing) == (config, prepared)
    assert (imported.card.class_names, imported.card.name, imported.foreign.notes) == (card.class_names, "mine", [])
    found = imported.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def test_written_names_are_timms(tmp_path):
    model = shaken(pool="mean", final_norm="pooled", class_token=False)
    paths = write(tmp_path / "x.safetensors", model, ModelCard("x", model.config, tuple("abcde"), Preprocessing((16, 16))))
    names = set(load_file(paths[0]))
    assert {"fc_norm.weight", "fc_norm.bias", "blocks.0.attn.qkv.weight", "head.bias"} < names
    assert not any(name.startswith("norm.") for name in names)
    arguments = json.loads(paths[1].read_text())["model_args"]
    assert (arguments["num_heads"], arguments["global_pool"], arguments["class_token"]) == (2, "avg", False)
    assert int(arguments["embed_dim"] * arguments["mlp_ratio"]) == 40


def test_every_hidden_width_survives_timms_rounding():
    from kawara.weights.timm.writing import _mlp_ratio

    for width in (48, 192, 384, 1152):
        assert all(int(width * _mlp_ratio(width, hidden)) == hidden for hidden in range(1, 5 * width, 7))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stem": "conv"}, "stem"),
        ({"stem": "resnet", "resnet_width": 32, "resnet_blocks": (1,)}, "stem"),
        ({"head_hidden": 8}, "hidden layer"),
        ({"norm_eps": 1e-12}, "eps of 1e-12"),
        ({"distillation_token": True, "registers": 1}, "distillation token"),
        ({"distillation_token": True, "class_position": False}, "distillation token"),
        ({"pool": "map", "mlp": "swiglu"}, "SwiGLU"),
    ],
)
def test_what_timm_cannot_express_is_refused_before_anything_is_written(tmp_path, options, words):
    model = shaken(**options)
    with pytest.raises(ConfigError, match=f"timm has no ViT with .*{words}"):
        write(tmp_path / "out", model, ModelCard("x", model.config, tuple("abcde"), Preprocessing((16, 16))))
    assert list(tmp_path.iterdir()) == []
