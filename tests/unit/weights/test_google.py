"""The layouts of google-research, made from a model whose answers are known by undoing each transform with einsum in mind."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from kawara.data.preprocessing import HALF, IMAGENET_MEAN, Preprocessing
from kawara.errors import ConfigError, ModelFileError
from kawara.models import VisionTransformer, ViTConfig
from kawara.weights.foreign import Hints
from kawara.weights.google.reading import big_vision_sincos
from kawara.weights.importing import Imported, import_checkpoint

SMALL = ViTConfig(
    image_size=(16, 16), num_classes=5, patch_size=4, width=24, depth=3, heads=3, mlp_hidden=40,
    activation="gelu_tanh", position_resize="bilinear-corners",
)  # fmt: skip
IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(7))
NEWER = ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
RELEASED = ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")


def shaken(**options) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(dataclasses.replace(SMALL, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def dense(name: str, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, np.ndarray]:
    return {f"{name}/kernel": weight.T.numpy(), f"{name}/bias": bias.numpy()}


def norm(name: str, layer: torch.nn.Module, shape: tuple[int, ...] = (-1,)) -> dict[str, np.ndarray]:
    return {f"{name}/scale": layer.weight.numpy().reshape(shape), f"{name}/bias": layer.bias.numpy().reshape(shape)}


def attention(name: str, layers: dict[str, tuple[torch.Tensor, torch.Tensor]], proj: torch.nn.Linear, heads: int) -> dict[str, np.ndarray]:
    width = proj.weight.shape[0]
    arrays = {}
    for part, (weight, bias) in layers.items():
        arrays[f"{name}/{part}/kernel"] = weight.T.reshape(width, heads, -1).numpy()
        arrays[f"{name}/{part}/bias"] = bias.reshape(heads, -1).numpy()
    arrays[f"{name}/out/kernel"] = proj.weight.T.reshape(heads, -1, width).numpy()
    return arrays | {f"{name}/out/bias": proj.bias.numpy()}


@torch.no_grad()
def flax(model: VisionTransformer, names: tuple[str, str, str], positions: str) -> dict[str, np.ndarray]:
    """The arrays of a model under the names of Flax."""
    attention_name, second_norm, mlp_name = names
    heads = model.config.heads
    arrays = {
        "embedding/kernel": model.patch_embed.proj.weight.permute(2, 3, 1, 0).numpy(),
        "embedding/bias": model.patch_embed.proj.bias.numpy(),
        positions: model.pos_embed.numpy(),
        **norm("Transformer/encoder_norm", model.norm),
    }
    if model.cls_token is not None:
        arrays["cls"] = model.cls_token.numpy()
    if model.config.num_classes:
        arrays |= dense("head", model.head.weight, model.head.bias)
    for index, block in enumerate(model.blocks):
        name = f"Transformer/encoderblock_{index}"
        parts = dict(zip(("query", "key", "value"), zip(block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3))))
        arrays |= attention(f"{name}/{attention_name}", parts, block.attn.proj, heads)
        arrays |= norm(f"{name}/LayerNorm_0", block.norm1) | norm(f"{name}/{second_norm}", block.norm2)
        arrays |= dense(f"{name}/{mlp_name}/Dense_0", block.mlp.fc1.weight, block.mlp.fc1.bias)
        arrays |= dense(f"{name}/{mlp_name}/Dense_1", block.mlp.fc2.weight, block.mlp.fc2.bias)
    if model.attn_pool is not None:
        pool = model.attn_pool
        (key, value), (key_bias, value_bias) = pool.attn.key_value.weight.chunk(2), pool.attn.key_value.bias.chunk(2)
        parts = {"query": (pool.attn.query.weight, pool.attn.query.bias), "key": (key, key_bias), "value": (value, value_bias)}
        arrays |= {"MAPHead_0/probe": pool.latent.numpy()} | norm("MAPHead_0/LayerNorm_0", pool.norm)
        arrays |= attention("MAPHead_0/MultiHeadDotProductAttention_0", parts, pool.attn.proj, heads)
        arrays |= dense("MAPHead_0/MlpBlock_0/Dense_0", pool.mlp.fc1.weight, pool.mlp.fc1.bias)
        arrays |= dense("MAPHead_0/MlpBlock_0/Dense_1", pool.mlp.fc2.weight, pool.mlp.fc2.bias)
    return arrays


def scanned(arrays: dict[str, np.ndarray], depth: int) -> dict[str, np.ndarray]:
    """Put the blocks on a leading axis."""
    first = "Transformer/encoderblock_0/"
    stacked = {
        name.replace(first, "Transformer/encoderblock/"): np.stack([arrays[name.replace("_0/", f"_{i}/", 1)] for i in range(depth)])
        for name in arrays
        if name.startswith(first)
    }
    return {name: array for name, array in arrays.items() if "encoderblock_" not in name} | stacked


def saved(path: Path, arrays: dict[str, np.ndarray], prefix: str = "") -> Path:
    np.savez(path, **{prefix + name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return path


def answers_alike(imported: Imported, model: VisionTransformer, image: torch.Tensor = IMAGE) -> None:
    with torch.no_grad():
        expected = model(image)
        assert (imported.model(image) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert imported.card.config == model.config


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/"])
@pytest.mark.parametrize(("names", "positions"), [(RELEASED, "Transformer/posembed_input/pos_embedding"), (NEWER, "pos_embedding")])
def test_names_and_prefixes(tmp_path, prefix, names, positions):
    model = shaken(class_position=names is RELEASED)
    imported = import_checkpoint(saved(tmp_path / "x.npz", flax(model, names, positions), prefix))
    answers_alike(imported, model)
    assert imported.card.preprocessing == Preprocessing((16, 16), "rgb", "squash", 1.0, "bilinear", HALF, HALF)
    assert imported.foreign.notes == []
    assert imported.card.class_names == ("0", "1", "2", "3", "4")


def test_mean_pooling_is_after_the_norm_and_over_all_tokens(tmp_path):
    model = shaken(class_token=False, pool="mean", class_position=False)
    arrays = flax(model, NEWER, "pos_embedding")
    imported = import_checkpoint(saved(tmp_path / "x.npz", arrays))
    with torch.no_grad():
        assert torch.allclose(imported.model(IMAGE), model(IMAGE), atol=1e-5)
    assert (imported.card.config.pool, imported.card.config.final_norm) == ("mean", "tokens")


@pytest.mark.parametrize("inlined", [False, True])
def test_scanned_blocks_attention_pooling_and_the_state_of_the_optimiser(tmp_path, inlined):
    model = shaken(class_token=False, pool="map", class_position=False)
    arrays = scanned(flax(model, NEWER, "pos_embedding"), 3)
    if inlined:
        arrays = {name.removeprefix("MAPHead_0/"): array for name, array in arrays.items()}
    arrays = {f"params/{name}": array for name, array in arrays.items()} | {"opt/0/mu/head/bias": np.zeros(5), "chrono/step": np.array(3)}
    imported = import_checkpoint(saved(tmp_path / "x.npz", arrays))
    answers_alike(imported, model)
    dropped = {fate.source for fate in imported.foreign.fates if fate.what == "dropped"}
    assert dropped == {"opt/0/mu/head/bias", "chrono/step"}
    sources = [fate.source for fate in imported.foreign.fates if fate.target == "blocks.2.norm1.weight"]
    assert sources == ["params/Transformer/encoderblock/LayerNorm_0/scale[2]"]


def test_the_image_tower_of_a_pair_in_bfloat16(tmp_path):
    model = shaken(class_token=False, pool="map", class_position=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    arrays = {}
    for name, array in flax(model, NEWER, "pos_embedding").items():
        arrays[f"params/img/{name}"] = torch.tensor(array).bfloat16().view(torch.int16).numpy().view("V2")
    arrays |= {"params/txt/Embed_0/embedding": np.zeros((4, 2)), "params/t": np.zeros(1), "params/b": np.zeros(1)}
    imported = import_checkpoint(saved(tmp_path / "x.npz", arrays))
    model.reset_head(0)
    answers_alike(imported, model)
    assert "image tower" in imported.foreign.notes[0]
    dropped = {fate.source for fate in imported.foreign.fates if fate.what == "dropped"}
    assert dropped == {"params/txt/Embed_0/embedding", "params/t", "params/b", "params/img/head/kernel", "params/img/head/bias"}


@pytest.mark.parametrize("blocks", [(), (2, 1)])
def test_hybrids(tmp_path, blocks):
    model = shaken(stem="resnet", resnet_width=32, resnet_blocks=blocks, patch_size=8, class_position=True)
    embedding = model.patch_embed
    arrays = flax(model, RELEASED, "Transformer/posembed_input/pos_embedding")

    def conv(name: str, layer: torch.nn.Module) -> dict[str, np.ndarray]:
        return {f"{name}/kernel": layer.weight.detach().permute(2, 3, 1, 0).numpy()}

    with torch.no_grad():
        arrays |= conv("conv_root", embedding.backbone.conv) | norm("gn_root", embedding.backbone.norm, (1, 1, 1, -1))
        for stage, units in enumerate(embedding.backbone.stages, 1):
            for number, unit in enumerate(units, 1):
                name = f"block{stage}/unit{number}"
                for layer in (1, 2, 3):
                    arrays |= conv(f"{name}/conv{layer}", getattr(unit, f"conv{layer}"))
                    arrays |= norm(f"{name}/gn{layer}", getattr(unit, f"norm{layer}"))
                if number == 1:
                    arrays |= conv(f"{name}/conv_proj", unit.shortcut[0]) | norm(f"{name}/gn_proj", unit.shortcut[1])
    answers_alike(import_checkpoint(saved(tmp_path / "x.npz", arrays)), model)
    if blocks:
        missing = {name: array for name, array in arrays.items() if "block1/unit1" not in name}
        with pytest.raises(ModelFileError, match="lacks blocks of its ResNet"):
            import_checkpoint(saved(tmp_path / "part.npz", missing))


def test_without_positions_they_are_big_visions_sincos(tmp_path):
    model = shaken(image_size=(224, 224), class_token=False, pool="mean", class_position=False, patch_size=32, depth=1)
    with torch.no_grad():
        model.pos_embed.copy_(big_vision_sincos((7, 7), 24))
    arrays = flax(model, NEWER, "pos_embedding")
    del arrays["pos_embedding"]
    imported = import_checkpoint(saved(tmp_path / "x.npz", arrays))
    answers_alike(imported, model, torch.randn(1, 3, 224, 224))
    assert "224 px" in imported.foreign.notes[0]
    assert [fate.target for fate in imported.foreign.fates if fate.what == "missing"] == ["pos_embed"]


def test_big_visions_sincos_entry_by_entry():
    table = big_vision_sincos((2, 3), 16)
    assert table.shape == (1, 6, 16)
    for row in range(2):
        for column in range(3):
            for k in range(4):
                frequency = 10_000 ** (-k / 3)
                expected = (np.sin(column * frequency), np.cos(column * frequency), np.sin(row * frequency), np.cos(row * frequency))
                assert table[0, 3 * row + column, k::4].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda arrays: arrays.update({"adapter/kernel": np.zeros(3)}), r"cannot explain(.|\n)*adapter/kernel"),
        (lambda arrays: arrays.pop("Transformer/encoder_norm/scale"), "encoder_norm/scale"),
        (lambda arrays: arrays.update({"Transformer/encoderblock_9/LayerNorm_0/scale": np.zeros(24)}), "lacks some blocks"),
        (lambda arrays: arrays.update({"head/kernel": np.zeros((23, 5))}), r"do not go together(.|\n)*head"),
        (
            lambda arrays: arrays.update({"Transformer/encoderblock_1/MultiHeadDotProductAttention_0/query/kernel": np.zeros((24, 24))}),
            "unexpected shape",
        ),
        (
            lambda arrays: arrays.update({"Transformer/encoderblock_1/MultiHeadDotProductAttention_0/key/kernel": np.zeros((24, 2, 12))}),
            "not alike",
        ),
        (
            lambda arrays: arrays.update({"Transformer/encoderblock_1/MultiHeadDotProductAttention_0/out/kernel": np.zeros(24)}),
            "go together",
        ),
        (lambda arrays: arrays.update({"embedding/kernel": np.zeros((4, 4, 2, 24))}), "2 channels"),
        (lambda arrays: arrays.update({"embedding/kernel": np.zeros((0, 0, 3, 24))}), "kawara cannot build|go together"),
        (lambda arrays: arrays.update({"pos_embedding": np.zeros((1, 14, 24))}), "no square image"),
    ],
)
def test_what_cannot_be_explained_is_named(tmp_path, change, words):
    arrays = flax(shaken(class_position=False), NEWER, "pos_embedding")
    change(arrays)
    with pytest.raises(ModelFileError, match=words):
        import_checkpoint(saved(tmp_path / "x.npz", arrays))


def test_hints_on_heads_contradict_and_those_on_colours_count(tmp_path):
    path = saved(tmp_path / "x.npz", flax(shaken(class_position=False), NEWER, "pos_embedding"))
    with pytest.raises(ConfigError, match="says itself how many heads"):
        import_checkpoint(path, Hints(heads=4))
    assert import_checkpoint(path, Hints(heads=3, normalisation="imagenet")).card.preprocessing.mean == IMAGENET_MEAN
