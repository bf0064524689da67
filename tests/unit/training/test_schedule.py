from __future__ import annotations

import math

import pytest

from kawara.errors import ConfigError
from kawara.training.schedule import Clock, Duration, Schedule, ScheduleConfig


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("300 epochs", Duration(300, "epochs")),
        ("1 epoch", Duration(1, "epochs")),
        ("1000 steps", Duration(1000, "steps")),
        ("0.5 minutes", Duration(0.5, "minutes")),
        ("5 min", Duration(5, "minutes")),
        ("2%", Duration(2, "%")),
    ],
)
def test_durations_are_read_and_written(text, expected):
    assert Duration.parse(text) == expected
    assert Duration.parse(str(expected)) == expected


@pytest.mark.parametrize("text", ["", "5", "five minutes", "-3 epochs", "3 weeks", "e steps"])
def test_a_length_that_is_none_is_refused(text):
    with pytest.raises(ConfigError):
        Duration.parse(text)


def factors(config: ScheduleConfig, steps: int, steps_per_epoch: int = 10) -> list[float]:
    clock = Clock(Duration(steps, "steps"), steps_per_epoch)
    schedule = Schedule(config, clock)
    return [schedule.factor(step, clock.progress(step)) for step in range(steps)]


def test_cosine_with_warmup_follows_the_formula():
    values = factors(ScheduleConfig(kind="cosine", warmup="20 steps", final=0.1), 120)
    for step in range(20):
        assert values[step] == pytest.approx((step + 1) / 20)
    for step in range(20, 120):
        q = (step - 20) / 100
        assert values[step] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * q)))


def test_linear_falls_to_its_end_and_constant_stays():
    values = factors(ScheduleConfig(kind="linear", warmup="0%"), 100)
    assert values[0] == pytest.approx(1.0)
    assert values[50] == pytest.approx(0.5)
    assert values[99] == pytest.approx(0.01)
    assert factors(ScheduleConfig(kind="constant", warmup="0 steps"), 10) == [1.0] * 10


def test_deit_counts_the_cosine_from_the_start():
    values = factors(ScheduleConfig(kind="cosine", warmup="2 epochs", anneal_from_start=True), 100)
    assert values[20] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.2)))


def test_progress_by_the_clock(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("kawara.training.schedule.time.monotonic", lambda: now)
    clock = Clock(Duration(2, "minutes"), 10, started_at=990.0)  # ten seconds went before
    clock.reserve = 20.0
    clock.start_training()
    assert clock.progress(0) == 0.0
    now = 1045.0  # 45 of the 120 − 20 − 10 = 90 s of training
    assert clock.progress(123) == pytest.approx(0.5)
    assert clock.seconds_left(123) == pytest.approx(45.0)
    now = 1200.0
    assert clock.progress(123) == 1.0


def test_steps_of_warmup_in_a_run_of_minutes(monkeypatch):
    now = 0.0
    monkeypatch.setattr("kawara.training.schedule.time.monotonic", lambda: now)
    clock = Clock(Duration(1, "minutes"), 10, started_at=0.0)
    clock.start_training()
    schedule = Schedule(ScheduleConfig(kind="linear", warmup="4 steps"), clock)
    values = []
    for step in range(60):
        now = float(step)
        values.append(schedule.factor(step, clock.progress(step)))
    assert values[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert values[3] >= values[4] >= values[40] >= values[59] > 0
    assert values[59] < 0.05


@pytest.mark.parametrize("config", [ScheduleConfig(warmup="3 minutes"), ScheduleConfig(final=2.0)])
def test_a_schedule_that_does_not_fit_is_refused(config):
    with pytest.raises(ConfigError):
        Schedule(config, Clock(Duration(10, "steps"), 10))
