from __future__ import annotations

import pytest
import torch

from kawara.models import create_model
from kawara.training.averaging import WeightAverage
from kawara.training.optimizer import Muon, OptimizerConfig, build_optimizers, clip_gradients, orthogonalise, set_rate


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
