"""A twin is of the other kind, builds, and is as large as promised: counted here on real models, not by the search."""

from __future__ import annotations

import pytest

from kawara.analysis import twins
from kawara.analysis.cost import count_macs, count_parameters
from kawara.analysis.latency import Latency
from kawara.errors import ConfigError, UnknownNameError
from kawara.models import ViTConfig, create_model


@pytest.mark.parametrize(
    ("name", "match", "image_size", "channels"),
    [
        ("vit_femto_conv_2", "params", 8, 1),
        ("vit_pico_conv_8", "macs", 28, 1),
        ("resnet20", "params", 32, 3),
        ("resnet_femto", "macs", 32, 3),
    ],
)
def test_a_twin_is_as_large_within_two_per_cent(name, match, image_size, channels):
    shape = {"num_classes": 7, "image_size": image_size, "channels": channels}
    twin = twins.find_twin(name, match, **shape)
    of, count = create_model(name, **shape), count_parameters if match == "params" else count_macs
    built = create_model(twin.name, **shape, **twin.options)
    assert isinstance(built.config, ViTConfig) != isinstance(of.config, ViTConfig)
    assert abs(count(built) / count(of) - 1) <= 0.02
    assert twin.mismatch == pytest.approx(count(built) / count(of) - 1)
    assert twin.size.parameters == count_parameters(built)
    assert twin.wanted.macs == count_macs(of)


def test_the_options_of_the_model_count():
    twin = twins.find_twin("vit_femto_conv_2", num_classes=10, image_size=8, channels=1, options={"depth": 2})
    shorter = create_model("vit_femto_conv_2", num_classes=10, image_size=8, channels=1, depth=2)
    assert twin.wanted.parameters == count_parameters(shorter)


def test_a_twin_in_latency_is_found_by_what_was_measured(monkeypatch):
    def pretended(candidates, *, repeats):
        return [Latency(count_parameters(model) / 1e5, 0.0, repeats) for model in candidates]  # parameters as a clock that is never wrong

    monkeypatch.setattr(twins, "batch_one_latency", pretended)
    twin = twins.find_twin("vit_femto_conv_2", "latency", num_classes=10, image_size=8, channels=1)
    assert abs(twin.size.parameters / twin.wanted.parameters - 1) <= 0.1


def test_what_cannot_be_matched_names_the_nearest(monkeypatch):
    monkeypatch.setitem(twins.TOLERANCE, "params", 0.0)
    monkeypatch.setattr(twins, "_CANDIDATES_TRIED", 1)
    with pytest.raises(ConfigError, match=r"nearest: resnet_femto .*%"):
        twins.find_twin("vit_femto_conv_2", num_classes=10, image_size=8, channels=1)
    with pytest.raises(UnknownNameError, match="params"):
        twins.find_twin("vit_femto_conv_2", "parms", num_classes=10)
