"""Taps read and replace activations, and leave nothing behind."""

import pytest
import torch
from torch import nn

from kawara.errors import ConfigError, UnknownNameError
from kawara.layers import taps
from kawara.layers.residual import Block


@pytest.fixture
def blocks() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(8, 2, 16), Block(8, 2, 16))


def test_read_gives_what_the_module_returned_and_was_given(blocks: nn.Sequential) -> None:
    tokens = torch.randn(2, 5, 8)
    with taps.read(blocks, "0", "1:input", "1.skip1:input1", "1.attn") as found:
        blocks(tokens)
    assert set(found) == {"0", "1:input", "1.skip1:input1", "1.attn"}
    assert torch.equal(found["0"], found["1:input"])
    assert torch.equal(found["1.skip1:input1"], found["1.attn"])
    assert not found["0"].requires_grad


def test_a_star_stands_for_one_part_of_the_name(blocks: nn.Sequential) -> None:
    with taps.read(blocks, "*.attn") as found:
        blocks(torch.randn(2, 5, 8))
    assert set(found) == {"0.attn", "1.attn"}


def test_only_what_is_kept_stays(blocks: nn.Sequential) -> None:
    tokens = torch.randn(2, 5, 8)
    with taps.read(blocks, "*.attn", "1:input", keep=lambda activation: activation.sum().item()) as found:
        blocks(tokens)
    with taps.read(blocks, "*.attn", "1:input") as whole:
        blocks(tokens)
    assert found == {name: activation.sum().item() for name, activation in whole.items()}


def test_the_graph_is_kept_where_asked(blocks: nn.Sequential) -> None:
    with taps.read(blocks, "0", detach=False) as found:
        output = blocks(torch.randn(2, 5, 8))
    (gradient,) = torch.autograd.grad(output.sum(), found["0"])
    assert gradient.shape == (2, 5, 8)


def test_replacing_the_output_of_skips_takes_them_away(blocks: nn.Sequential) -> None:
    tokens = torch.randn(2, 5, 8)
    with taps.replace(blocks, {"1.skip2": lambda output, inputs: inputs[1]}), taps.read(blocks, "1.mlp") as found:
        output = blocks(tokens)
    assert torch.equal(output, found["1.mlp"])


def test_nothing_stays_behind(blocks: nn.Sequential) -> None:
    with (
        pytest.raises(RuntimeError, match="midway"),
        taps.read(blocks, "*.attn"),
        taps.replace(blocks, {"0": lambda output, inputs: output}),
    ):
        raise RuntimeError("midway")
    assert all(not module._forward_hooks for module in blocks.modules())


def test_names_that_do_not_exist_offer_near_ones(blocks: nn.Sequential) -> None:
    with pytest.raises(UnknownNameError, match=r"0\.attn"), taps.read(blocks, "0.atn"):
        pass
    with pytest.raises(ConfigError, match="place:input"), taps.read(blocks, "0.attn:output"):
        pass
    with (
        pytest.raises(ConfigError, match="Only what a module returns"),
        taps.replace(blocks, {"0.attn:input": lambda output, inputs: output}),
    ):
        pass
    assert "0.attn.qkv" in taps.places(blocks)
