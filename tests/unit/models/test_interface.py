"""The parts every model shares."""

import torch
from torch import nn

from kawara.models.interface import mean_of_heads, names_without_decay


def test_mean_of_heads() -> None:
    one, two = torch.ones(2, 3), torch.full((2, 3), 3.0)
    assert mean_of_heads((one,)) is one
    torch.testing.assert_close(mean_of_heads((one, two)), torch.full((2, 3), 2.0))


def test_vectors_and_named_tensors_are_not_decayed() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    assert names_without_decay(model, ["0.weight", "absent"]) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert names_without_decay(model) == {"0.bias", "1.weight", "1.bias"}
