"""Stochastic depth, layer scale, skip connections and the block."""

import pytest
import torch

from kawara.layers.residual import Block, LayerScale, StochasticDepth, stochastic_depth_rates


def test_rates_grow_linearly_from_zero() -> None:
    rates = stochastic_depth_rates(0.1, 12)
    assert rates[0] == 0.0
    assert rates[1] == pytest.approx(0.00909, abs=1e-5)
    assert rates[-1] == pytest.approx(0.1)
    assert stochastic_depth_rates(0.3, 1) == [0.0]


def test_whole_samples_are_dropped_and_the_rest_divided() -> None:
    torch.manual_seed(0)
    layer = StochasticDepth(0.25)
    branch = torch.ones(10_000, 2, 3)
    output = layer(branch)
    per_sample = output.flatten(1)
    assert torch.equal(per_sample.min(1).values, per_sample.max(1).values)
    torch.testing.assert_close(per_sample[:, 0].unique(), torch.tensor([0.0, 4 / 3]))
    assert output.mean().item() == pytest.approx(1.0, abs=0.02)


def test_evaluation_and_rate_zero_are_the_identity() -> None:
    branch = torch.randn(4, 2, 3)
    assert StochasticDepth(0.5).eval()(branch) is branch
    assert StochasticDepth(0.0)(branch) is branch


def test_half_precision_stays_half_precision() -> None:
    assert StochasticDepth(0.5)(torch.ones(4, 2).bfloat16()).dtype == torch.bfloat16


def test_layer_scale_multiplies() -> None:
    layer = LayerScale(3, 0.1)
    torch.testing.assert_close(layer(torch.ones(2, 3)), torch.full((2, 3), 0.1))


def test_block_is_equations_two_and_three() -> None:
    torch.manual_seed(0)
    block = Block(12, 3, 24, layer_scale=0.5)
    tokens = torch.randn(2, 5, 12)
    after_attention = 0.5 * block.attn(block.norm1(tokens)) + tokens
    expected = 0.5 * block.mlp(block.norm2(after_attention)) + after_attention
    torch.testing.assert_close(block(tokens), expected)


def test_the_two_branches_draw_independently() -> None:
    torch.manual_seed(0)
    block = Block(12, 3, 24, stochastic_depth=0.5)
    draws = []
    for skip in (block.skip1, block.skip2):
        skip.stochastic_depth.register_forward_hook(lambda module, inputs, output: draws.append(output.flatten(1).abs().sum(1) > 0))
    block(torch.randn(64, 5, 12))
    assert not torch.equal(draws[0], draws[1])
