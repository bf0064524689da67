"""The rule on runs that are made up: what must be stopped is, what only starts slowly is not, and luck does not decide."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from kawara.training.chance import Chance
from kawara.training.hopelessness import Look, Verdict, is_due, judge

CHANCE = Chance(num_classes=6, largest_in_training=1 / 6, largest_in_validation=0.17, loss=math.log(6))
NUM_TRAINING, NUM_VALIDATION = 1890, 387


def simulate(
    draw: np.random.Generator,
    accuracy: Callable[[float], float],
    *,
    epochs: int = 32,
    length: int = 100,
    steps_per_epoch: int = 30,
    warmup: float = 5.0,
    rate: float = 1.0,
    loss: Callable[[float], float] | None = None,
    num_validation: int = NUM_VALIDATION,
    chance: Chance = CHANCE,
) -> list[Verdict | None]:
    """Return the verdict of each look at a run whose true accuracy is `accuracy(epoch)`, in training half-way to chance."""
    looks: list[Look] = []
    verdicts = []
    for epoch in filter(is_due, range(1, epochs + 1)):
        true = accuracy(epoch)
        seen_in_training = (true + chance.largest_in_training) / 2
        looks.append(
            Look(
                step=epoch * steps_per_epoch,
                epoch=epoch,
                progress=epoch / length,
                loss=(loss(epoch) if loss else chance.loss * (1 - 0.1 * (true > 0.2))) + draw.normal(0, 0.002),
                training_right=draw.binomial(NUM_TRAINING, seen_in_training),
                training_images=NUM_TRAINING,
                validation_right=draw.binomial(num_validation, true),
                validation_images=num_validation,
                rate=rate * min(1.0, epoch / warmup) if warmup else rate,
                steps_since_warmup=max(0, round((epoch - warmup) * steps_per_epoch)),
            )
        )
        verdicts.append(judge(looks, chance, steps_per_epoch))
    return verdicts


def hopeless(verdicts: list[Verdict | None]) -> bool:
    return any(verdict is not None and verdict.hopeless for verdict in verdicts)


def test_looks_become_rare():
    assert [epoch for epoch in range(1, 100) if is_due(epoch)] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96]


def test_a_rate_far_too_high_is_stopped_by_the_third_epoch_also_within_the_warmup():
    for seed in range(100):
        verdicts = simulate(np.random.default_rng(seed), lambda epoch: 1 / 6, epochs=3, rate=30, loss=lambda epoch: CHANCE.loss + 0.05)
        assert hopeless(verdicts), seed


def test_in_the_warmup_the_rate_of_the_moment_counts():
    """At epoch 4 of a warm-up of 16 to 10 times the usual rate, 2.5 times are reached."""
    verdicts = simulate(np.random.default_rng(0), lambda epoch: 1 / 6, epochs=4, warmup=16, rate=10)
    assert verdicts == [None] * len(verdicts)


def learned(epoch: float, start: float, until: float = 0.6, pace: float = 20.0) -> float:
    return 1 / 6 if epoch < start else 1 / 6 + (until - 1 / 6) * (1 - math.exp(-(epoch - start + 1) / pace))


@pytest.mark.parametrize(
    ("name", "accuracy", "settings"),
    [
        ("learns at once", lambda epoch: learned(epoch, 1), {}),
        ("DeiT: hardly a change of the loss, validation first", lambda epoch: learned(epoch, 4, pace=60), {"loss": lambda _: CHANCE.loss}),
        ("a long warm-up at chance", lambda epoch: learned(epoch, 25), {"warmup": 24, "epochs": 48}),
        ("nothing for 40 epochs of 100", lambda epoch: learned(epoch, 41), {"epochs": 96}),
        ("one step an epoch", lambda epoch: learned(epoch, 80), {"steps_per_epoch": 1, "epochs": 96, "warmup": 3}),
        ("8 validation images", lambda epoch: 1 / 6, {"num_validation": 8, "epochs": 96, "rate": 30}),
        ("a loss on its way down", lambda epoch: 1 / 6, {"epochs": 96, "loss": lambda epoch: CHANCE.loss * (1.5 - 0.005 * epoch)}),
        ("twice the usual rate", lambda epoch: learned(epoch, 20), {"rate": 2.0}),
    ],
)
def test_a_slow_start_is_never_stopped(name, accuracy, settings):
    assert [seed for seed in range(100) if hopeless(simulate(np.random.default_rng(seed), accuracy, **settings))] == []


def test_a_run_that_never_learns_is_told_early_and_stopped_at_half_its_length():
    verdicts = simulate(np.random.default_rng(0), lambda epoch: 1 / 6, epochs=96)
    kinds = dict(zip(filter(is_due, range(1, 97)), (verdict and verdict.kind for verdict in verdicts)))
    assert (kinds[12], kinds[16], kinds[48]) == (None, "slow", "slow")
    assert [epoch for epoch, kind in kinds.items() if kind == "stuck"] == [64, 96]


def test_what_was_learned_and_lost_is_told_but_stopped_only_at_a_rate_far_too_high():
    def lost(epoch: float) -> float:
        return 0.4 if epoch <= 4 else 1 / 6

    usual = simulate(np.random.default_rng(0), lost, epochs=24)
    assert usual[-1] == Verdict("collapsed", hopeless=False)
    assert not hopeless(usual)
    assert simulate(np.random.default_rng(0), lost, epochs=24, rate=8)[-1] == Verdict("rate", hopeless=True)


def test_one_class_of_nine_tenths_is_not_called_hopeless_while_the_loss_falls():
    rare = Chance(2, 0.9, 0.9, 0.325)
    verdicts = simulate(
        np.random.default_rng(0), lambda epoch: 0.9, chance=rare, epochs=96, loss=lambda epoch: 0.325 * (1 - 0.004 * epoch), rate=8
    )
    assert not any(verdict and verdict.kind == "stuck" for verdict in verdicts)


def test_a_loss_that_was_not_finite_stands_in_the_way_of_nothing():
    look = Look(60, 2, 0.02, None, 300, 1890, 66, 387, 30.0, 0)
    assert judge([look, look], CHANCE, 30) == Verdict("rate", hopeless=True)
