"""The ViT's equations, its configuration and what training asks of it."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from kawara.errors import ConfigError, UnknownNameError
from kawara.layers import taps
from kawara.layers.position import resize_positions
from kawara.models import Features, VisionTransformer, ViTConfig, build, create_model

SMALL = ViTConfig(image_size=(16, 24), num_classes=5, patch_size=8, width=16, depth=2, heads=2, mlp_hidden=32)


def shaken(config: ViTConfig) -> VisionTransformer:
    """A model whose parameters are all away from zero, as after some training."""
    torch.manual_seed(0)
    model = VisionTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_forward_is_the_papers_equations() -> None:
    model = shaken(SMALL)
    image = torch.randn(2, 3, 16, 24)
    patches = F.conv2d(image, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=8).flatten(2).transpose(1, 2)
    tokens = torch.cat([model.cls_token.expand(2, -1, -1), patches], dim=1) + model.pos_embed
    for block in model.blocks:
        tokens = tokens + block.attn(block.norm1(tokens))
        tokens = tokens + block.mlp(block.norm2(tokens))
    expected = model.norm(tokens)
    features = model.features(image)
    torch.testing.assert_close(features.tokens, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(image), model.head(expected[:, 0]), rtol=1e-5, atol=1e-5)
    assert features.grid == (2, 3)
    assert torch.equal(features.feature_map[:, :, 1, 2], features.tokens[:, 1 + 5])


def test_prefix_order_is_class_distillation_registers_and_registers_have_no_position() -> None:
    config = dataclasses.replace(SMALL, distillation_token=True, registers=3)
    model = shaken(config)
    tokens = model.embed(torch.zeros(1, 6, 16), (2, 3))
    assert model.pos_embed.shape == (1, 2 + 6, 16)
    torch.testing.assert_close(tokens[:, :1], model.cls_token + model.pos_embed[:, :1])
    torch.testing.assert_close(tokens[:, 1:2], model.dist_token + model.pos_embed[:, 1:2])
    torch.testing.assert_close(tokens[:, 2:5], model.reg_token)
    torch.testing.assert_close(tokens[:, 5:], model.pos_embed[:, 2:])
    assert model.features(torch.randn(1, 3, 16, 24)).num_prefix == 5


def test_without_class_position_the_table_holds_patches_only() -> None:
    model = shaken(dataclasses.replace(SMALL, class_position=False))
    assert model.pos_embed.shape == (1, 6, 16)
    torch.testing.assert_close(model.embed(torch.zeros(1, 6, 16), (2, 3))[:, :1], model.cls_token.data)


def test_two_heads_their_mean_and_each_apart() -> None:
    model = shaken(dataclasses.replace(SMALL, distillation_token=True))
    image = torch.randn(2, 3, 16, 24)
    features = model.features(image)
    class_logits, distillation_logits = model.forward_heads(image)
    torch.testing.assert_close(class_logits, model.head(features.tokens[:, 0]))
    torch.testing.assert_close(distillation_logits, model.head_dist(features.tokens[:, 1]))
    torch.testing.assert_close(model(image), (class_logits + distillation_logits) / 2)
    model.train()
    assert model(image).shape == (2, 5)


def test_mean_pooling_leaves_the_prefix_out_and_norms_before_or_after() -> None:
    image = torch.randn(2, 3, 16, 24)
    before = shaken(dataclasses.replace(SMALL, pool="mean", registers=2))
    features = before.features(image)
    torch.testing.assert_close(features.pooled, features.tokens[:, 3:].mean(1))
    after = shaken(dataclasses.replace(SMALL, pool="mean", registers=2, final_norm="pooled"))
    features = after.features(image)
    torch.testing.assert_close(features.pooled, after.norm(features.tokens[:, 3:].mean(1)))


def test_other_sizes_resize_the_positions() -> None:
    model = shaken(SMALL)
    image = torch.randn(1, 3, 40, 8)
    tokens = model.embed(model.patch_embed(image), (5, 1))
    table = resize_positions(model.pos_embed, (2, 3), (5, 1), num_prefix=1)
    torch.testing.assert_close(tokens[:, 1:], model.patch_embed(image) + table[:, 1:])
    assert model(image).shape == (1, 5)


def test_permuting_patches_without_positions_permutes_their_outputs() -> None:
    model = shaken(dataclasses.replace(SMALL, position="none"))
    image = torch.randn(1, 3, 16, 24)
    swapped = torch.cat([image[..., 8:16], image[..., :8], image[..., 16:]], dim=-1)
    features, permuted = model.features(image), model.features(swapped)
    torch.testing.assert_close(permuted.pooled, features.pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(permuted.patches[:, [1, 0, 2, 4, 3, 5]], features.patches, rtol=1e-4, atol=1e-5)
    learned = shaken(SMALL)
    assert not torch.allclose(learned(image), learned(swapped), atol=1e-4)


def test_sincos_positions_are_fixed_but_travel_with_the_weights() -> None:
    model = VisionTransformer(dataclasses.replace(SMALL, position="sincos"))
    assert "pos_embed" in model.state_dict()
    assert "pos_embed" not in dict(model.named_parameters())


def test_the_first_loss_is_ln_k() -> None:
    torch.manual_seed(0)
    logits = VisionTransformer(SMALL)(torch.randn(4, 3, 16, 24))
    assert F.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).item() == pytest.approx(math.log(5))


def test_initialisation_follows_its_table() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, width=64, mlp_hidden=256, registers=4, layer_scale=1e-4)
    model = VisionTransformer(config)
    block = model.blocks[0]
    for tensor in (block.attn.qkv.weight, block.attn.proj.weight, block.mlp.fc1.weight, block.mlp.fc2.weight, model.pos_embed):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.reg_token.abs().max() < 1e-5
    assert torch.all(block.ls1.gamma == 1e-4)
    narrow = VisionTransformer(dataclasses.replace(config, layer_scale=None, initialisation="zero_residual"))
    assert narrow.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.5 / 8, rel=0.1)
    tokens = torch.randn(1, 7, 64)
    torch.testing.assert_close(narrow.blocks[0](tokens), tokens, rtol=0, atol=0)


def test_layer_index_and_decay_follow_mae() -> None:
    model = VisionTransformer(dataclasses.replace(SMALL, registers=1, layer_scale=0.1))
    index = {name: model.layer_index(name) for name, _ in model.named_parameters()}
    assert {name for name, layer in index.items() if layer == 0} == {
        "cls_token",
        "reg_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    }
    assert index["blocks.0.attn.qkv.weight"] == 1
    assert index["blocks.1.ls2.gamma"] == 2
    assert index["norm.weight"] == index["head.weight"] == model.num_layers == 3
    decayed = set(index) - model.no_decay()
    assert decayed == {name for name in index if name.endswith("weight") and "norm" not in name}


def test_reset_head_starts_at_zero_and_keeps_the_backbone() -> None:
    model = shaken(dataclasses.replace(SMALL, distillation_token=True))
    image = torch.randn(2, 3, 16, 24)
    pooled = model.features(image).pooled
    model.reset_head(7)
    assert model.config.num_classes == 7
    assert torch.equal(model(image), torch.zeros(2, 7))
    assert torch.equal(model.features(image).pooled, pooled)
    model.reset_head(0)
    torch.testing.assert_close(model.forward_heads(image)[0], pooled)


def test_dropout_and_stochastic_depth_act_in_training_only() -> None:
    for option in ("dropout", "attention_dropout", "stochastic_depth"):
        model = shaken(dataclasses.replace(SMALL, **{option: 0.5}))
        image = torch.randn(4, 3, 16, 24)
        assert torch.equal(model(image), model(image)), option
        model.train()
        assert not torch.equal(model(image), model(image)), option


def test_conv_stem_takes_sizes_that_are_no_multiple() -> None:
    model = VisionTransformer(dataclasses.replace(SMALL, image_size=(28, 28), stem="conv"))
    assert model.config.grid == (4, 4)
    assert model(torch.randn(2, 3, 28, 28)).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (20, 24)}, "16 px instead of 20 px or 24 px instead of 20 px"),
        ({"heads": 3}, "multiple of the number of heads"),
        ({"class_token": False}, "class token"),
        ({"position": "sincos", "width": 18, "heads": 2}, "multiple of 4"),
        ({"stem": "conv", "patch_size": 7}, "power of two"),
        ({"stem_hidden": (8, 16, 32)}, "only with stem 'conv'"),
        ({"stem": "conv", "stem_hidden": (8,)}, "3 convolutions"),
        ({"pool": "max"}, "value of pool"),
        ({"activation": "gelu_erf"}, "gelu"),
        ({"depth": 0}, "depth"),
        ({"dropout": 1.5}, "probability"),
        ({"mlp": "swiglu", "activation": "relu"}, "SwiGLU has a non-linearity"),
        ({"mlp": "glu"}, "value of mlp"),
        ({"pool": "map", "final_norm": "pooled"}, "pools normed tokens"),
        ({"head_hidden": 0}, "at least 1"),
        ({"head_hidden": 8, "num_classes": 0}, "needs classes"),
        ({"head_hidden": 8, "distillation_token": True}, "linear heads"),
        ({"resnet_width": 32}, "only with stem 'resnet'"),
        ({"stem": "resnet", "stem_norm": "layer"}, "only with stem 'conv'"),
        ({"stem": "resnet", "resnet_width": 32}, "multiple of it"),
        ({"stem": "resnet", "resnet_width": 40, "resnet_blocks": (1,)}, "32 groups"),
    ],
)
def test_options_that_do_not_fit_say_so(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **options)


EXTENSIONS = {
    "resnet": {"stem": "resnet", "resnet_width": 32, "resnet_blocks": (2, 1)},
    "swiglu": {"mlp": "swiglu"},
    "map": {"pool": "map", "class_token": False, "registers": 2},
    "head": {"head_hidden": 12},
}


@pytest.mark.parametrize("options", EXTENSIONS.values(), ids=EXTENSIONS)
def test_extensions_learn_everywhere_and_take_other_sizes(options: dict) -> None:
    model = shaken(dataclasses.replace(SMALL, **options))
    model(torch.randn(3, 3, 16, 24)).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []
    assert model.features(torch.randn(2, 3, 32, 8)).grid == (4, 1)
    assert model(torch.randn(2, 3, 32, 8)).shape == (2, 5)
    copy = build(model.config)
    copy.load_state_dict(model.state_dict())
    image = torch.randn(2, 3, 16, 24)
    assert torch.equal(copy.eval()(image), model(image))
    assert {model.layer_index(name) for name, _ in model.named_parameters()} == {0, 1, 2, 3}


@pytest.mark.parametrize("options", EXTENSIONS.values(), ids=EXTENSIONS)
@pytest.mark.parametrize("initialisation", ["deit", "zero_residual"])
def test_extensions_can_start_to_learn(options: dict, initialisation: str) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(dataclasses.replace(SMALL, **options, initialisation=initialisation))
    image, labels = torch.randn(4, 3, 16, 24), torch.tensor([0, 1, 2, 3])
    loss = F.cross_entropy(model(image), labels)
    assert loss.item() == pytest.approx(math.log(5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(image), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < math.log(5) - 1e-4


def test_attention_pooling_reads_the_normed_patches() -> None:
    model = shaken(dataclasses.replace(SMALL, pool="map", registers=2))
    features = model.features(torch.randn(2, 3, 16, 24))
    torch.testing.assert_close(features.pooled, model.attn_pool(features.tokens[:, 3:]))
    assert "attn_pool.latent" in model.no_decay()


def test_the_hidden_layer_of_the_head_is_tanh_and_goes_with_the_head() -> None:
    model = shaken(dataclasses.replace(SMALL, head_hidden=12))
    image = torch.randn(2, 3, 16, 24)
    pooled = model.features(image).pooled
    hidden = torch.tanh(pooled @ model.pre_logits.weight.T + model.pre_logits.bias)
    torch.testing.assert_close(model(image), model.head(hidden))
    model.reset_head(3)
    assert (model.config.head_hidden, model.pre_logits, model.head.in_features) == (None, None, 16)
    assert torch.equal(model(image), torch.zeros(2, 3))


def test_each_unit_of_the_resnet_starts_as_its_skip_connection() -> None:
    model = VisionTransformer(dataclasses.replace(SMALL, **EXTENSIONS["resnet"]))
    unit = model.patch_embed.backbone.stages[0][1]
    maps = torch.randn(1, 128, 4, 4).relu()
    torch.testing.assert_close(unit(maps), maps, rtol=0, atol=0)


def test_images_of_the_wrong_shape_say_what_is_wanted() -> None:
    model = VisionTransformer(SMALL)
    with pytest.raises(ConfigError, match=r"\(batch, 3, height, width\)"):
        model(torch.zeros(1, 1, 16, 24))
    with pytest.raises(ConfigError, match="unsqueeze"):
        model(torch.zeros(3, 16, 24))
    with pytest.raises(ConfigError, match="multiple of the patch size 8"):
        model(torch.zeros(1, 3, 16, 25))


def test_bfloat16_runs_through_and_explicit_attention_agrees() -> None:
    model = shaken(SMALL)
    image = torch.randn(2, 3, 24, 24)
    expected = model(image)
    for block in model.blocks:
        block.attn.fused = False
    torch.testing.assert_close(model(image), expected, rtol=1e-5, atol=1e-5)
    assert model.bfloat16()(image.bfloat16()).dtype == torch.bfloat16


def test_features_have_no_hidden_prefix() -> None:
    features = Features(torch.zeros(1, 6, 4), (2, 3), 0, torch.zeros(1, 4))
    assert features.patches.shape == (1, 6, 4)
    assert features.feature_map.shape == (1, 4, 2, 3)


def test_build_refuses_a_config_it_does_not_know() -> None:
    with pytest.raises(UnknownNameError, match="family"):
        build(object())


@pytest.mark.parametrize("distillation_token", [False, True])
@pytest.mark.parametrize("fused", [True, False])
def test_the_last_block_answers_for_the_class_token_alone_with_the_same_numbers(distillation_token: bool, fused: bool) -> None:
    torch.manual_seed(0)
    model = create_model(
        "vit_femto_4", num_classes=5, image_size=16, class_token=True, pool="class", distillation_token=distillation_token,
        registers=2, layer_scale=0.5, initialisation="deit",
    ).double()  # fmt: skip
    for block in model.blocks:
        block.attn.fused = fused
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    image = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    whole = model.apply_heads(model.features(image))
    short = model.forward_heads(image)
    assert len(whole) == len(short) == 1 + distillation_token
    for a, b in zip(whole, short):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)
    gradients = [
        torch.autograd.grad(sum(logits.logsumexp(-1).sum() for logits in answer), list(model.parameters())) for answer in (whole, short)
    ]
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


def test_a_tap_in_the_last_block_sees_every_token() -> None:
    model = create_model("vit_femto_4", num_classes=5, image_size=16, class_token=True, pool="class").eval()
    image = torch.randn(2, 3, 16, 16)
    expected = model(image)
    with taps.read(model, "blocks.2.mlp") as found:
        torch.testing.assert_close(model(image), expected)
    assert next(iter(found.values())).shape == (2, 17, 64)


def test_a_new_image_size_resizes_the_positions_once() -> None:
    model = shaken(SMALL)
    image = torch.randn(2, 3, 24, 32)
    expected = model(image)  # resized on the way
    before = model.pos_embed
    model.set_image_size((24, 32))
    assert model.config.grid == (3, 4)
    assert isinstance(model.pos_embed, torch.nn.Parameter)
    assert model.pos_embed.shape == (1, 13, 16)
    torch.testing.assert_close(model.pos_embed[:, 0], before[:, 0])  # the class token keeps its place
    torch.testing.assert_close(model(image), expected, rtol=1e-5, atol=1e-5)
    kept = model.pos_embed
    model.set_image_size((24, 32))
    assert model.pos_embed is kept
    with pytest.raises(ConfigError, match="multiple of the patch"):
        model.set_image_size((25, 32))


def test_sincos_positions_are_made_anew_for_a_new_size() -> None:
    model = shaken(dataclasses.replace(SMALL, position="sincos"))
    model.set_image_size((32, 32))
    fresh = build(dataclasses.replace(SMALL, position="sincos", image_size=(32, 32)))
    torch.testing.assert_close(model.pos_embed, fresh.pos_embed)


def test_a_distillation_token_added_to_a_trained_model_sees_what_the_class_token_sees() -> None:
    model = shaken(SMALL)
    model.add_distillation_token()
    features = model.features(torch.randn(2, 3, 16, 24))
    assert features.tokens.shape[1] == 2 + 6
    torch.testing.assert_close(features.distillation, features.pooled)
    assert model.head_dist.weight.abs().sum() == 0
    assert build(model.config).load_state_dict(model.state_dict())
    kept = model.dist_token
    model.add_distillation_token()
    assert model.dist_token is kept
    with pytest.raises(ConfigError, match="class token"):
        VisionTransformer(dataclasses.replace(SMALL, class_token=False, pool="mean")).add_distillation_token()
