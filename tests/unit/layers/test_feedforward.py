"""The feed-forward part against golden values of the two GELUs."""

import pytest
import torch
import torch.nn.functional as F

from kawara.errors import UnknownNameError
from kawara.layers.feedforward import FeedForward, GatedFeedForward, TanhLayer, activation


def test_both_gelus_give_their_golden_values() -> None:
    x = torch.tensor([1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(activation("gelu")(x), torch.tensor([0.8413447, -0.1586553], dtype=torch.float64), rtol=0, atol=5e-8)
    torch.testing.assert_close(activation("gelu_tanh")(x), torch.tensor([0.8411920, -0.1588080], dtype=torch.float64), rtol=0, atol=5e-8)


def test_the_two_gelus_differ_by_at_most_4_7e_4() -> None:
    x = torch.linspace(-6, 6, 10_001, dtype=torch.float64)
    difference = (activation("gelu")(x) - activation("gelu_tanh")(x)).abs().max().item()
    assert difference == pytest.approx(4.7e-4, abs=1e-5)


def test_feed_forward_is_two_dense_layers() -> None:
    layer = FeedForward(8, 20)
    tokens = torch.randn(2, 3, 8)
    expected = F.gelu(tokens @ layer.fc1.weight.T + layer.fc1.bias) @ layer.fc2.weight.T + layer.fc2.bias
    torch.testing.assert_close(layer(tokens), expected)


def test_without_bias() -> None:
    assert {name for name, _ in FeedForward(8, 20, bias=False).named_parameters()} == {"fc1.weight", "fc2.weight"}


def test_gated_feed_forward_multiplies_by_the_silu_of_the_first_half() -> None:
    layer = GatedFeedForward(4, 6)
    tokens = torch.randn(2, 3, 4)
    both = tokens @ layer.fc1.weight.T + layer.fc1.bias
    gate, values = both[..., :6], both[..., 6:]
    expected = (gate / (1 + torch.exp(-gate)) * values) @ layer.fc2.weight.T + layer.fc2.bias
    torch.testing.assert_close(layer(tokens), expected)


def test_tanh_layer() -> None:
    layer = TanhLayer(4, 3)
    tokens = torch.randn(2, 4)
    torch.testing.assert_close(layer(tokens), torch.tanh(tokens @ layer.weight.T + layer.bias))


def test_an_unknown_activation_offers_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="gelu"):
        activation("gellu")  # type: ignore[arg-type]
