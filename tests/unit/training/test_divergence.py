from __future__ import annotations

import torch
from torch import nn

from kawara.models import create_model
from kawara.training.divergence import first_layer_not_finite


class Bursts(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * torch.inf


def test_the_innermost_layer_where_it_begins_is_named():
    model = create_model("vit_femto_4", num_classes=2, image_size=8, channels=1)
    image = torch.randn(2, 1, 8, 8)
    assert first_layer_not_finite(model, lambda: model(image)) is None
    model.blocks[1].mlp.fc1 = nn.Sequential(model.blocks[1].mlp.fc1, Bursts())
    assert first_layer_not_finite(model, lambda: model(image)) == "blocks.1.mlp.fc1.1"


def test_what_came_in_broken_is_not_blamed_on_the_layer():
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 2))
    assert first_layer_not_finite(model, lambda: model(torch.full((1, 2), torch.nan))) == "before 0"


def test_weights_that_are_not_finite_are_named_first():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].bias[0] = torch.nan
    assert first_layer_not_finite(model, lambda: model(torch.zeros(1, 2))) == "1.bias, a weight"


def test_no_hook_is_left_behind():
    model = nn.Sequential(nn.Linear(2, 2))
    first_layer_not_finite(model, lambda: model(torch.zeros(1, 2)))
    assert not model[0]._forward_hooks
