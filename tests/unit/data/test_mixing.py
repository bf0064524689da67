from __future__ import annotations

import numpy as np
import pytest
import torch

from kawara.data.mixing import MixConfig, draw_mix, mix, smoothed_targets
from kawara.errors import ConfigError

DEIT = MixConfig(mixup=0.8, cutmix=1.0)
CUTMIX, MIXUP = MixConfig(cutmix=1.0), MixConfig(mixup=0.8)


def numbered(batch: int, height: int = 17, width: int = 23) -> torch.Tensor:
    """Image i is i everywhere, so that every pixel says where it came from."""
    return torch.arange(batch, dtype=torch.float32).view(-1, 1, 1, 1).expand(batch, 3, height, width).clone()


@pytest.mark.parametrize("step", range(25))
def test_the_cutmix_label_is_the_share_of_pixels_kept(step: int) -> None:
    labels, smoothing = torch.arange(6), 0.1
    images, targets = mix(numbered(6), labels, CUTMIX, num_classes=10, smoothing=smoothing, seed=0, step=step)
    for i in range(6):
        share = (images[i] == i).double().mean().item()
        assert set(images[i].unique().tolist()) <= {float(i), float(5 - i)}
        off = smoothing / 10
        assert targets[i, i].item() == pytest.approx(off + (1 - smoothing) * share, abs=1e-6)
        assert targets[i, 5 - i].item() == pytest.approx(off + (1 - smoothing) * (1 - share), abs=1e-6)


@pytest.mark.parametrize("config", [DEIT, CUTMIX, MIXUP, MixConfig()])
def test_targets_sum_to_one_and_never_fall_below_the_smoothing(config: MixConfig) -> None:
    for step in range(10):
        _, targets = mix(numbered(8), torch.randint(0, 5, (8,)), config, num_classes=5, smoothing=0.1, seed=1, step=step)
        assert torch.allclose(targets.sum(1), torch.ones(8), atol=1e-6)
        assert targets.min().item() == pytest.approx(0.1 / 5, abs=1e-7)


def test_mixup_is_a_convex_sum_with_the_reverse() -> None:
    kept = draw_mix(MIXUP, 17, 23, seed=3, step=4).kept
    images, targets = mix(numbered(4), torch.arange(4), MIXUP, num_classes=4, seed=3, step=4)
    expected = kept * torch.arange(4.0) + (1 - kept) * torch.arange(3.0, -1.0, -1.0)
    assert torch.allclose(images[:, 0, 0, 0], expected, atol=1e-6)
    assert targets[0].tolist() == pytest.approx([kept, 0, 0, 1 - kept], abs=1e-6)


def test_soft_target_loss_is_the_label_smoothing_loss() -> None:
    logits, labels, smoothing = torch.randn(7, 5, dtype=torch.float64), torch.randint(0, 5, (7,)), 0.1
    log_p = logits.log_softmax(1)
    soft = -(smoothed_targets(labels, 5, smoothing, torch.float64) * log_p).sum(1)
    expected = -(1 - smoothing) * log_p[torch.arange(7), labels] - smoothing * log_p.mean(1)
    assert torch.allclose(soft, expected, atol=1e-12)


def test_the_middle_of_an_odd_batch_stays() -> None:
    for step in range(8):
        images, targets = mix(numbered(5), torch.arange(5), DEIT, num_classes=5, seed=0, step=step)
        assert torch.allclose(images[2], torch.full_like(images[2], 2.0))
        assert targets[2, 2].item() == pytest.approx(1.0)


def test_the_draw_depends_on_seed_and_step_alone() -> None:
    draws = [draw_mix(DEIT, 32, 32, seed=5, step=step) for step in range(40)]
    assert draws == [draw_mix(DEIT, 32, 32, seed=5, step=step) for step in range(40)]
    assert len({draw.kept for draw in draws}) == 40
    assert draws != [draw_mix(DEIT, 32, 32, seed=6, step=step) for step in range(40)]


def test_probabilities() -> None:
    draws = [draw_mix(MixConfig(0.8, 1.0, probability=0.5), 64, 64, seed=0, step=step) for step in range(600)]
    mixed = [draw for draw in draws if draw.kept < 1]
    assert 0.42 < len(mixed) / 600 < 0.58
    assert 0.4 < sum(draw.box is not None for draw in mixed) / len(mixed) < 0.6
    mixup = np.array([draw.kept for draw in draws if draw.box is None and draw.kept < 1])
    assert abs(mixup.mean() - 0.5) < 0.07
    assert abs(mixup.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.03  # variance of Beta(α, α)


def test_nothing_is_mixed_when_off() -> None:
    images = numbered(4)
    mixed, targets = mix(images.clone(), torch.arange(4), MixConfig(), num_classes=4, seed=0, step=0)
    assert torch.equal(mixed, images)
    assert torch.equal(targets, torch.eye(4))


@pytest.mark.parametrize("wrong", [{"mixup": -1.0}, {"probability": 1.5}, {"switch_probability": -0.1}])
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        MixConfig(**wrong)
