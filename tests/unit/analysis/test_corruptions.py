"""Corruptions: exact where they can be, the same on every run, and each image for itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from kawara.analysis.corruptions import CORRUPTIONS, Draw, cells_of_pixels, corrupt, gaussian_blur, shift_image, shuffle_tiles
from kawara.errors import ConfigError, UnknownNameError


def images(number: int = 3, size: tuple[int, int] = (28, 42)) -> Tensor:
    """Nowhere black: what is black afterwards was painted."""
    return 0.1 + 0.9 * torch.rand(number, 3, *size, generator=torch.Generator().manual_seed(1))


def draw_for(number: int = 3, **options) -> Draw:
    salience = torch.rand(number, 14, 14, generator=torch.Generator().manual_seed(2))
    return Draw(torch.arange(10, 10 + number), salience=salience, **options)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_spoiled_in_the_same_way_in_any_batch_and_any_run(name: str) -> None:
    strength = CORRUPTIONS[name].strengths[2]
    whole = corrupt(images(), name, strength, draw_for())
    draw = draw_for()
    alone = corrupt(images()[1:2], name, strength, Draw(draw.indices[1:2], salience=draw.salience[1:2]))
    torch.testing.assert_close(whole[1:2], alone, rtol=0, atol=1e-6)
    assert whole.shape == images().shape
    assert 0 <= whole.min() <= whole.max() <= 1
    assert not torch.equal(whole, images())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_intact_strength_changes_nothing(name: str) -> None:
    corruption = CORRUPTIONS[name]
    assert corruption.strengths[0] == corruption.intact
    assert torch.equal(corrupt(images(), name, corruption.intact, draw_for()), images())


@pytest.mark.parametrize("name", [name for name, corruption in CORRUPTIONS.items() if corruption.num_draws > 1])
def test_draws_seeds_and_images_have_choices_of_their_own(name: str) -> None:
    assert CORRUPTIONS[name].num_draws >= 5
    strength = CORRUPTIONS[name].strengths[-1]
    same = images()[:1].expand(3, -1, -1, -1)
    first = corrupt(same, name, strength, draw_for())
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, corrupt(same, name, strength, draw_for(number=3, seed=1)))
    other = Draw(torch.arange(10, 13), number=1)
    assert not torch.equal(first, corrupt(same, name, strength, other))


@pytest.mark.parametrize("tiles", [(14, 14), (4, 6), (5, 5)])
def test_a_drop_paints_whole_tiles_black_and_a_stronger_one_contains_it(tiles: tuple[int, int]) -> None:
    draw = draw_for(tiles=tiles)
    rows, columns = cells_of_pixels(28, tiles[0]), cells_of_pixels(42, tiles[1])
    before = torch.zeros(3, 28, 42, dtype=torch.bool)
    for share in (0.1, 0.3, 0.6, 1.0):
        black = (corrupt(images(), "drop_random", share, draw) == 0).all(dim=1)
        for picture in black:
            tiles_black = {(rows[y], columns[x]) for y, x in picture.nonzero().tolist()}
            assert len(tiles_black) == round(share * tiles[0] * tiles[1])
            assert picture.sum() == sum(int((rows == row).sum() * (columns == column).sum()) for row, column in tiles_black)
        assert (black | ~before).all()
        before = black


def test_salient_tiles_go_first_or_last() -> None:
    draw = draw_for(tiles=(7, 7))
    coarse = draw.salience.unflatten(1, (7, 2)).unflatten(3, (7, 2)).mean(dim=(2, 4))
    for name, most_salient in (("drop_salient", True), ("drop_non_salient", False)):
        black = (corrupt(images(), name, 10 / 49, draw) == 0).all(dim=1)[:, ::4, ::6]
        expected = coarse.flatten(1).topk(10, largest=most_salient).indices
        for picture, cells in zip(black, expected):
            assert sorted(picture.flatten().nonzero().flatten().tolist()) == sorted(cells.tolist())


def test_equal_salience_is_no_order_at_all() -> None:
    draw = Draw(torch.arange(400), tiles=(4, 4), salience=torch.ones(400, 4, 4))
    black = (corrupt(images(400, (4, 4)), "drop_salient", 0.5, draw) == 0).all(dim=1)
    assert black.float().mean(dim=0).sub(0.5).abs().max() < 0.12
    together = (corrupt(images(400, (4, 4)), "drop_non_salient", 0.5, draw) == 0).all(dim=1) ^ black
    assert together.all()  # each tile is in one of the halves


@pytest.mark.parametrize("tiles_per_side", [2, 7, 14])
def test_a_shuffle_keeps_every_tile(tiles_per_side: int) -> None:
    def tiles(image: Tensor) -> list[bytes]:
        n = tiles_per_side
        return sorted(
            tile.numpy().tobytes() for tile in image.unflatten(1, (n, -1)).unflatten(3, (n, -1)).permute(1, 3, 0, 2, 4).reshape(n * n, -1)
        )

    shuffled = corrupt(images(), "shuffle", tiles_per_side, draw_for())
    for before, after in zip(images(), shuffled):
        assert tiles(before) == tiles(after)
        assert not torch.equal(before, after)


def test_a_shuffle_puts_tiles_where_the_order_says_also_on_uneven_tiles() -> None:
    image = torch.arange(5.0).expand(1, 1, 3, 5)  # columns 0 … 4 in tiles {0, 1, 2} and {3, 4}
    swapped = shuffle_tiles(image, torch.tensor([[1, 0]]), (1, 2))
    np.testing.assert_array_equal(swapped[0, 0, 0].numpy(), [3, 4, 4, 0, 1])
    assert torch.equal(shuffle_tiles(images(), torch.arange(25).expand(3, -1), (5, 5)), images())


def test_a_shift_moves_by_whole_pixels_and_mirrors_the_border() -> None:
    image = torch.arange(12.0).reshape(1, 3, 4)
    moved = shift_image(image, 1, -2)
    np.testing.assert_array_equal(moved[0].numpy(), [[6, 7, 6, 5], [2, 3, 2, 1], [6, 7, 6, 5]])
    distances = []
    for number in range(20):
        shifted = corrupt(images(1), "shift", 0.25, Draw(torch.tensor([number])))[0]
        found = [
            (down, right) for down in range(-7, 8) for right in range(-7, 8) if torch.equal(shift_image(images(1)[0], down, right), shifted)
        ]
        assert len(found) == 1
        distances.append(np.hypot(*found[0]))
    np.testing.assert_allclose(distances, 7, atol=0.75)  # a quarter of 28 px, rounded to pixels


@pytest.mark.parametrize("deviation_px", [0.3, 1.0, 4.0])
def test_the_blur_is_that_of_scipy(deviation_px: float) -> None:
    blurred = gaussian_blur(images().double(), deviation_px).numpy()
    # truncate is the radius in deviations; scipy rounds where the radius here is rounded up.
    expected = gaussian_filter(images().double().numpy(), deviation_px, mode="mirror", axes=(2, 3), radius=int(np.ceil(3 * deviation_px)))
    np.testing.assert_allclose(blurred, expected, atol=1e-6)


def test_the_noise_has_its_deviation_and_a_larger_one_is_the_same_noise() -> None:
    grey = torch.full((2, 3, 64, 64), 0.5)
    draw = Draw(torch.arange(2))
    weak, strong = (corrupt(grey, "noise", deviation, draw) - 0.5 for deviation in (0.02, 0.05))
    assert weak.std().item() == pytest.approx(0.02, rel=0.02)
    torch.testing.assert_close(strong, 2.5 * weak, rtol=0, atol=1e-6)


def test_what_cannot_be_done() -> None:
    with pytest.raises(UnknownNameError, match="drop_random"):
        corrupt(images(), "droprandom", 0.5, draw_for())
    with pytest.raises(ConfigError, match="salient"):
        corrupt(images(), "drop_salient", 0.5, Draw(torch.arange(3)))
    for name, strength in (("drop_random", 1.1), ("shuffle", 0.5), ("noise", -0.1), ("blur", 2.0)):
        with pytest.raises(ConfigError, match="out of range"):
            corrupt(images(), name, strength, draw_for())
