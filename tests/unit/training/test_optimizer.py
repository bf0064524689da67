from __future__ import annotations

import pytest
import torch

from kawara.errors import ConfigError
from kawara.models import create_model
from kawara.training.averaging import WeightAverage
from kawara.training.optimizer import (
    Muon,
    OptimizerConfig,
    build_optimizers,
    clip_gradients,
    matrices_of,
    orthogonalise,
    refuse_foreign,
    set_rate,
)


def tiny_model():
    torch.manual_seed(0)
    return create_model("vit_femto_4", num_classes=3, image_size=8, channels=1)


def test_orthogonalise_brings_singular_values_near_one():
    torch.manual_seed(0)
    matrices = torch.randn(3, 20, 12)
    singular = torch.linalg.svdvals(orthogonalise(matrices))
    assert singular.min() > 0.6
    assert singular.max() < 1.3
    # the same singular vectors: U Vᵀ of the original is what it approaches
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(orthogonalise(matrices).flatten(1), (u @ v).flatten(1))
    assert (cosine > 0.95).all()


def test_muon_treats_queries_keys_and_values_apart():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(12, 4))
    gradient = torch.randn(12, 4)
    weight.grad = gradient.clone()
    Muon([weight], lr=1.0, momentum=0.0, parts=3).step()
    parts = orthogonalise(torch.stack(gradient.split(4)))
    torch.testing.assert_close(-weight.detach(), parts.flatten(0, 1))


def test_muon_treats_the_groups_of_a_convolution_apart():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(6, 2, 3, 3))
    gradient = torch.randn(6, 2, 3, 3)
    weight.grad = gradient.clone()
    Muon([weight], lr=1.0, momentum=0.0, parts=2).step()
    parts = orthogonalise(torch.stack(gradient.flatten(1).split(3)))
    torch.testing.assert_close(-weight.detach(), parts.flatten(0, 1).reshape(6, 2, 3, 3))


def test_muon_takes_matrices_and_leaves_heads_vectors_and_depthwise_filters():
    def matrices(name, **options):
        with torch.device("meta"):
            return matrices_of(create_model(name, num_classes=3, **options))

    vit = matrices("vit_femto_4", image_size=8, distillation_token=True)
    assert {name for name in vit if name.startswith(("head", "pos", "dist"))} == set()
    assert vit["blocks.0.attn.qkv.weight"] == 3
    assert vit["patch_embed.proj.weight"] == vit["blocks.2.mlp.fc2.weight"] == 1
    resnet = matrices("seresnet_femto")
    assert resnet["conv1.weight"] == resnet["layer2.0.downsample.0.weight"] == resnet["layer1.0.se.fc1.weight"] == 1
    assert {"fc.weight", "bn1.weight", "layer1.0.se.fc1.bias"}.isdisjoint(resnet)
    regnet = matrices("regnety_400mf")
    assert regnet["s2.b1.conv2.conv.weight"] == 104 // 8
    assert regnet["s2.b1.conv1.conv.weight"] == 1
    assert "head.fc.weight" not in regnet
    convnext = matrices("convnext_ronto_2")
    assert {name for name in convnext if "conv_dw" in name or name.startswith("head")} == set()
    assert convnext["stem.0.weight"] == convnext["stages.1.downsample.1.weight"] == convnext["stages.3.blocks.1.mlp.fc1.weight"] == 1


def test_muon_momentum_is_nesterovs():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(6, 4))
    optimizer = Muon([weight], lr=0.1, momentum=0.9)
    buffer, expected = torch.zeros(6, 4), torch.zeros(6, 4)
    for _ in range(3):
        gradient = torch.randn(6, 4)
        weight.grad = gradient.clone()
        optimizer.step()
        buffer = 0.9 * buffer + 0.1 * gradient
        expected -= 0.1 * (6 / 4) ** 0.5 * orthogonalise((0.1 * gradient + 0.9 * buffer)[None])[0]
    torch.testing.assert_close(weight.detach(), expected)


CNNS = {
    "seresnet_femto": {"widths": (4, 8, 12), "stem_width": 4},
    "regnety_400mf": {"widths": (8, 16, 8, 16), "depths": (1, 1, 1, 1), "stem_width": 8},
    "convnext_ronto_2": {"widths": (4, 8, 12, 16), "depths": (1, 1, 1, 1), "layer_scale": 0.1},
}


@pytest.mark.parametrize("family", CNNS)
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_cnns_move_whole_and_learn(name, family):
    torch.manual_seed(0)
    model = create_model(family, num_classes=3, image_size=32, channels=1, **CNNS[family])
    optimizers = build_optimizers(model, OptimizerConfig(name=name, lr=1e-2), 64)
    owned = [parameter for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]]
    assert len(owned) == len({id(parameter) for parameter in owned}) == len(list(model.parameters()))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    label = torch.arange(12) % 3
    image = torch.randn(12, 1, 32, 32) + label[:, None, None, None]
    losses = []
    for _ in range(15):
        loss = torch.nn.functional.cross_entropy(model(image), label)
        losses.append(loss.item())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]
    assert not [name for (name, new), old in zip(model.named_parameters(), before) if torch.equal(new, old)]


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "muon"])
def test_every_parameter_is_moved_by_exactly_one_optimizer(name):
    model = tiny_model()
    optimizers = build_optimizers(model, OptimizerConfig(name=name, lr=0.1), 64)
    owned = [parameter for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]]
    assert len(owned) == len({id(parameter) for parameter in owned}) == len(list(model.parameters()))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(4):  # head and residual branches start at zero: each step reaches one layer of them further
        model(torch.randn(4, 1, 8, 8)).logsumexp(-1).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters())]
    assert all(moved)


def test_biases_positions_and_tokens_are_not_decayed():
    model = tiny_model()
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in build_optimizers(model, OptimizerConfig(name="muon", weight_decay=0.3), 64):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                decays = parameter.ndim > 1 and "pos_embed" not in names[parameter] and "token" not in names[parameter]
                assert group["weight_decay"] == (0.3 if decays else 0.0), names[parameter]


def test_rates_scale_with_the_batch_and_fall_with_the_layer():
    model = tiny_model()
    optimizers = build_optimizers(model, OptimizerConfig(lr=5e-4, lr_batch=512, layer_decay=0.5), 1024)
    rates = {round(group["peak_lr"], 9) for group in optimizers[0].param_groups}
    num_layers = model.num_layers
    assert max(rates) == pytest.approx(1e-3)  # the head
    assert min(rates) == pytest.approx(1e-3 * 0.5**num_layers)  # the patches
    set_rate(optimizers, 0.1)
    assert all(group["lr"] == pytest.approx(0.1 * group["peak_lr"]) for group in optimizers[0].param_groups)


def test_clipping_scales_the_global_norm():
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 4.0])
    assert clip_gradients(parameters, 1.0) == pytest.approx(5.0)
    total = sum(float((p.grad**2).sum()) for p in parameters if p.grad is not None) ** 0.5
    assert total == pytest.approx(1.0, abs=1e-5)


def test_the_average_of_weights_follows_its_formula_and_copies_counters():
    module = torch.nn.BatchNorm1d(2)
    average = WeightAverage(module, decay=0.5)
    expected = module.weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            module.weight.add_(1.0)
            module.num_batches_tracked.add_(1)
        average.update(module)
        decay = min(0.5, step / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    torch.testing.assert_close(average.state["weight"], expected)
    assert average.state["num_batches_tracked"] == 29


def test_the_backbone_can_move_more_slowly_than_the_head():
    model = create_model("vit_femto_4", num_classes=3)
    optimizers = build_optimizers(model, OptimizerConfig(lr=1.0, backbone_rate=0.1, layer_decay=0.5), 8)
    rates = {
        id(parameter): group["peak_lr"] for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]
    }
    rate = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert rate["head.weight"] == pytest.approx(1.0)
    assert rate["norm.weight"] == pytest.approx(0.1)
    assert rate["blocks.2.attn.qkv.weight"] == pytest.approx(0.1 * 0.5)
    assert rate["pos_embed"] == pytest.approx(0.1 * 0.5**4)


@pytest.mark.parametrize(
    ("name", "setting", "remedy"),
    [("sgd", "betas", "adamw"), ("adamw", "momentum", "sgd"), ("muon", "nesterov", "sgd"), ("adam", "muon_lr", "muon")],
)
def test_a_setting_of_another_optimiser_is_refused(name, setting, remedy):
    with pytest.raises(ConfigError, match=rf"{name} has no {setting}[\s\S]*optimizer.name={remedy}"):
        refuse_foreign([setting], OptimizerConfig(name=name))


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "muon"])
def test_settings_that_act_are_accepted(name):
    own = {"sgd": ["momentum", "nesterov"], "muon": ["muon_lr", "muon_momentum", "betas"]}.get(name, ["betas", "eps"])
    refuse_foreign(["lr", "weight_decay", "clip_norm", "layer_decay", "name", *own], OptimizerConfig(name=name))
