"""The preprocessing in the graph, against the one that everything else uses."""

from __future__ import annotations

import pytest
import torch

from kawara.data.preprocessing import Preprocessing
from kawara.edge.graph import PlaceInGraph, ServingGraph
from kawara.models import create_model

WAYS = {
    "crop": Preprocessing(),
    "crop-grey-bilinear": Preprocessing((28, 28), "grey", crop_fraction=1.0, interpolation="bilinear", mean=(0.5,), std=(0.5,)),
    "crop-uneven": Preprocessing((65, 31), crop_fraction=0.9),
    "squash": Preprocessing((32, 48), resize="squash"),
}
SIZES = [(1, 1), (2, 3), (17, 19), (224, 224), (256, 256), (255, 301), (500, 375), (3, 400), (500, 7), (31, 64), (719, 1281)]


def pixels(size: tuple[int, int], channels: int, *, hard: bool) -> torch.Tensor:
    """Random pixels (2, H, W, C); hard ones are 0 or 255, and their resize leaves the range on both sides."""
    images = torch.randint(0, 256, (2, *size, channels), generator=torch.Generator().manual_seed(sum(size)), dtype=torch.uint8)
    return (images > 127).to(torch.uint8) * 255 if hard else images


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("way", WAYS)
def test_every_pixel_is_the_same(way: str, hard: bool) -> None:
    preprocessing = WAYS[way]
    place = PlaceInGraph(preprocessing)
    for size in SIZES:
        images = pixels(size, preprocessing.channels, hard=hard)
        assert torch.equal(place(images), preprocessing.place_batch(images.permute(0, 3, 1, 2)).float()), size


def test_very_large_reductions_and_ratios_are_the_same() -> None:
    for preprocessing, size in ((WAYS["squash"], (6001, 5000)), (WAYS["crop-uneven"], (9, 3000)), (WAYS["squash"], (1, 20_000))):
        images = pixels(size, 3, hard=False)[:1]
        assert torch.equal(PlaceInGraph(preprocessing)(images), preprocessing.place_batch(images.permute(0, 3, 1, 2)).float()), size


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_femto_4", {"class_token": True, "pool": "class", "distillation_token": True}),
        ("vit_femto_conv_4", {}),
        ("resnet_pico", {}),
    ],
)
def test_the_graph_gives_the_probabilities_of_the_model(name: str, options: dict) -> None:
    torch.manual_seed(0)
    preprocessing = Preprocessing((32, 32))
    model = create_model(name, num_classes=5, image_size=32, **options).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    images = pixels((45, 70), 3, hard=False)
    with torch.no_grad():
        wanted = model(preprocessing.normalise(preprocessing.place_batch(images.permute(0, 3, 1, 2)))).softmax(dim=-1)
        found = ServingGraph(model, preprocessing).eval()(images)
    assert torch.allclose(found, wanted, atol=1e-6)
