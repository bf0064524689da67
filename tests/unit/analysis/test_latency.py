"""Times are times, and what is more work takes longer; memory holds at least the weights."""

from __future__ import annotations

import pytest
import torch

from kawara.analysis import latency
from kawara.analysis.cost import count_macs, vit_macs
from kawara.analysis.latency import batch_one_latency, cost_over_size, throughput
from kawara.analysis.memory import answering_memory_bytes
from kawara.models import create_model, model_config


class Clock:
    """A clock that only pretended work moves."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Sleeper(torch.nn.Module):
    """A model that pretends to take so long for a batch, and so long for each image in it."""

    def __init__(self, clock: Clock, batch_s: float, image_s: float):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = model_config("vit_femto_conv_2", num_classes=2, image_size=8, channels=1)
        self.clock, self.batch_s, self.image_s, self.runs = clock, batch_s, image_s, 0

    def forward(self, image):
        assert not self.training
        assert torch.get_num_threads() == 1
        self.runs += 1
        self.clock.now += (self.batch_s + self.image_s * len(image)) * (100 if self.runs == 1 else 1)  # slow before it is warm
        return image


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(latency, "time", made)
    return made


def test_latency_and_throughput_of_models_of_a_known_speed(clock):
    quick, slow = Sleeper(clock, 0.002, 0.0), Sleeper(clock, 0.006, 0.0)
    of_quick, of_slow = batch_one_latency([quick, slow], repeats=15)
    assert (of_quick.p50_ms, of_slow.p50_ms) == pytest.approx((2.0, 6.0))
    assert of_slow.p95_ms == pytest.approx(6.0)
    assert quick.training  # put back
    scales, does_not = throughput([Sleeper(clock, 0.004, 0.0001), Sleeper(clock, 0.0, 0.004)], repeats=2, largest=16)
    assert scales.batch_size == 16
    assert scales.images_per_second == pytest.approx(16 / 0.0056)
    assert does_not.batch_size <= 2
    assert does_not.images_per_second == pytest.approx(250)


def test_a_batch_that_would_take_too_long_is_not_tried(clock):
    slow = Sleeper(clock, 1.0, 0.1)
    (found,) = throughput([slow], repeats=1)
    assert found.batch_size <= 2


def test_models_take_turns(clock):
    order = []
    first, second = Sleeper(clock, 0, 0), Sleeper(clock, 0, 0)
    first.register_forward_pre_hook(lambda *_: order.append("A"))
    second.register_forward_pre_hook(lambda *_: order.append("B"))
    batch_one_latency([first, second], repeats=4)
    assert "".join(order) == "AB" * (latency.WARM_UP + 4)


def test_cost_over_the_image_size_counts_attention_and_leaves_out_what_cannot_be():
    config = model_config("vit_femto_4", num_classes=10, image_size=32)
    cnn = model_config("convnext_ronto_2", num_classes=10, image_size=32)
    vit_costs, cnn_costs = cost_over_size([config, cnn], [32, 64, 66, 128], repeats=2, most_macs=1e8)
    assert [cost.image_size_px for cost in vit_costs] == [32, 64, 128]  # 66 px are no whole patches
    assert [cost.image_size_px for cost in cnn_costs] == [32, 64, 66, 128]
    assert [cost.macs for cost in vit_costs] == [
        vit_macs(model_config("vit_femto_4", num_classes=10, image_size=side)) for side in (32, 64, 128)
    ]
    assert vit_costs[2].macs / vit_costs[1].macs > 1.2 * vit_costs[1].macs / vit_costs[0].macs  # the square of the number of tokens
    assert cnn_costs[0].macs == count_macs(create_model("convnext_ronto_2", num_classes=10, image_size=32))
    assert vit_costs[0].ms is not None
    assert vit_costs[2].ms is None  # too large to be timed


def test_memory_holds_the_weights():
    config = model_config("vit_small_16", num_classes=10)
    found = answering_memory_bytes(config)
    assert found is not None
    assert 4 * 21_000_000 < found < 20 * 21_000_000


def test_memory_that_cannot_be_measured_is_none(monkeypatch):
    monkeypatch.setattr("sys.executable", "/nowhere")
    assert answering_memory_bytes(model_config("vit_femto_conv_2", num_classes=2, image_size=8)) is None
