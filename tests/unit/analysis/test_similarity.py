"""CKA against its definition in loops, its invariances, and the minibatch estimate against the whole."""

import numpy as np
import pytest
import torch

from kawara.analysis.similarity import MinibatchCKA, cka_between, cka_within, gram, grams_of_tokens, hsic1, linear_cka, unbiased_cka
from kawara.errors import DataError, UnknownNameError
from kawara.layers import taps


def slow_biased(x: np.ndarray, y: np.ndarray) -> float:
    """CKA with HSIC = vec(HKH)·vec(HLH), in loops."""
    m = len(x)
    centring = np.eye(m) - np.ones((m, m)) / m

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        ka, kb = (centring @ np.array([[row @ other for other in z] for row in z]) @ centring for z in (a, b))
        return sum(ka[i, j] * kb[i, j] for i in range(m) for j in range(m)) / (m - 1) ** 2

    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def slow_hsic1(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC₁ as Song et al. write it, from its three terms."""
    n = len(x)
    kx, ky = (np.array([[0.0 if i == j else z[i] @ z[j] for j in range(n)] for i in range(n)]) for z in (x, y))
    product = sum(kx[i, j] * ky[j, i] for i in range(n) for j in range(n))
    both = sum(kx[i, j] * ky[j, p] for i in range(n) for j in range(n) for p in range(n))
    return (product + kx.sum() * ky.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * both) / (n * (n - 3))


def pair(m: int = 11, p: int = 5, q: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, p, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(p, q, generator=generator, dtype=torch.float64) + torch.randn(m, q, generator=generator, dtype=torch.float64) + 3
    return x, y


@pytest.mark.parametrize(("p", "q"), [(5, 7), (40, 7), (40, 30)])
def test_both_closed_forms_follow_the_definition(p, q):
    x, y = pair(p=p, q=q)
    assert linear_cka(x, y) == pytest.approx(slow_biased(x.numpy(), y.numpy()), abs=1e-12)


def test_hsic1_has_the_three_terms_of_song():
    x, y = pair(m=9)
    assert hsic1(gram(x), gram(y)) == pytest.approx(slow_hsic1(x.numpy(), y.numpy()), rel=1e-10)
    assert unbiased_cka(x, y) == pytest.approx(
        slow_hsic1(x.numpy(), y.numpy()) / np.sqrt(slow_hsic1(x.numpy(), x.numpy()) * slow_hsic1(y.numpy(), y.numpy())), rel=1e-10
    )


@pytest.mark.parametrize("cka", [linear_cka, unbiased_cka])
def test_rotation_and_scale_do_not_matter_other_maps_do(cka):
    x, y = pair(m=30)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    assert cka(x, x @ rotation) == pytest.approx(1.0, abs=1e-12)
    assert cka(x, 7.5 * x) == pytest.approx(1.0, abs=1e-12)
    assert cka(x, x + 100.0) == pytest.approx(1.0, abs=1e-9)
    assert cka(x @ rotation, 0.01 * y) == pytest.approx(cka(x, y), abs=1e-12)
    assert cka(x, x * torch.tensor([9.0, 1, 1, 1, 1], dtype=torch.float64)) < 0.9


def test_what_is_independent_is_zero_unbiased_and_far_above_it_biased():
    generator = torch.Generator().manual_seed(3)
    draws = [(torch.randn(40, 60, generator=generator), torch.randn(40, 60, generator=generator)) for _ in range(30)]
    unbiased = np.array([unbiased_cka(x, y) for x, y in draws])
    assert abs(unbiased.mean()) < 3 * unbiased.std() / np.sqrt(len(draws))
    assert unbiased.min() < 0
    assert min(linear_cka(x, y) for x, y in draws) > 0.5


def test_minibatches_give_what_the_whole_gives():
    x, y = pair(m=2500, p=8, q=8)
    sums = MinibatchCKA()
    for a, b in zip(x.split(250), y.split(250)):
        sums.add(torch.stack([gram(a), gram(b)]))
    whole = unbiased_cka(x, y)
    assert 0.2 < whole < 0.95
    assert sums.matrix()[0, 1] == pytest.approx(whole, abs=1e-3)
    assert sums.num_images == 2500


def test_batches_weigh_by_their_images_and_tiny_ones_are_left_out():
    x, y = pair(m=20)
    parts = [(x[:12].numpy(), y[:12].numpy()), (x[12:17].numpy(), y[12:17].numpy())]
    sums = MinibatchCKA()
    for a, b in zip(x.split([12, 5, 3]), y.split([12, 5, 3])):
        sums.add(gram(a)[None], gram(b)[None])
    cross, within_x, within_y = (
        sum(len(a) * slow_hsic1(*(chosen)) for a, b in parts for chosen in [(a, b) if name == "xy" else (a, a) if name == "xx" else (b, b)])
        for name in ("xy", "xx", "yy")
    )
    assert sums.matrix()[0, 0] == pytest.approx(cross / np.sqrt(within_x * within_y), rel=1e-10)
    assert sums.num_images == 17
    empty = MinibatchCKA()
    empty.add(gram(x[:3])[None])
    with pytest.raises(DataError, match="four images"):
        empty.matrix()


def test_float32_is_enough_however_far_the_mean_lies():
    x, y = pair(m=16)
    exact = unbiased_cka(x, y)
    assert unbiased_cka(x.float() + 50, y.float() - 50) == pytest.approx(exact, abs=1e-4)


def test_grams_of_tokens_are_those_of_each_token():
    tokens = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(grams_of_tokens(tokens), torch.stack([gram(tokens[:, index]) for index in range(4)]))


@pytest.mark.parametrize("family", ["vit", "cnn"])
def test_the_layers_of_a_model(family, request, batches):
    model = request.getfixturevalue(family).train()
    found = cka_within(model, batches)
    assert found.num_images == 15
    np.testing.assert_allclose(np.diag(found.cka), 1.0, atol=1e-9)
    np.testing.assert_allclose(found.cka, found.cka.T, atol=1e-12)
    sums = np.zeros(3)
    model.eval()
    for image in batches[:2]:
        with taps.read(model, *found.rows) as activations, torch.no_grad():
            model.features(image)
        first, last = (activations[found.rows[index]].flatten(1).double().numpy() for index in (0, -1))
        sums += len(image) * np.array([slow_hsic1(first, last), slow_hsic1(first, first), slow_hsic1(last, last)])
    assert found.cka[0, -1] == pytest.approx(sums[0] / np.sqrt(sums[1] * sums[2]), abs=1e-5)
    assert found.lower_with_upper == pytest.approx(found.cka[: len(found.rows) // 2, len(found.rows) // 2 :].mean())
    assert all(not module._forward_hooks for module in model.modules())


def test_two_models_on_the_same_images_at_different_sizes(vit, cnn, batches):
    larger = [torch.nn.functional.interpolate(image, (16, 12)) for image in batches]
    between = cka_between(vit, larger, cnn, iter(batches), layers=["blocks.0", "blocks.2"])
    assert between.cka.shape == (2, 4)
    assert between.rows == ("blocks.0", "blocks.2")
    turned = cka_between(cnn, batches, vit, larger, other_layers=["blocks.0", "blocks.2"])
    np.testing.assert_allclose(between.cka, turned.cka.T, atol=1e-9)
    np.testing.assert_allclose(cka_between(vit, batches, vit, batches).cka, cka_within(vit, batches).cka, atol=1e-9)


def test_models_on_different_images_and_unknown_layers_are_refused(vit, batches):
    with pytest.raises(DataError, match="same images"):
        cka_between(vit, batches, vit, batches[:2])
    with pytest.raises(DataError, match="same images"):
        cka_between(vit, batches, vit, [batches[0], batches[1][:3], batches[2]])
    with pytest.raises(UnknownNameError):
        cka_within(vit, batches, layers=["blocks.0.atn"])
