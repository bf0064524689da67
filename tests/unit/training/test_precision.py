"""Which precision `auto` trains in."""

from __future__ import annotations

import pytest
import torch

from kawara.models import create_model
from kawara.training import precision
from kawara.training.precision import training_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(("has_it", "wide"), [(True, torch.bfloat16), (False, None)])
def test_auto_takes_bfloat16_where_the_cpu_has_it_and_the_model_gains(has_it, wide, monkeypatch):
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda device: has_it)
    options = {"num_classes": 2, "image_size": 32}
    assert training_dtype("auto", CPU, create_model("vit_micro_8", **options)) == wide
    assert training_dtype("auto", CPU, create_model("resnet_femto", **options)) == wide
    assert training_dtype("auto", CPU, create_model("vit_nano_8", **options)) is None
    assert training_dtype("auto", CPU, torch.nn.Linear(2, 2)) is None
    assert training_dtype("float32", CPU, create_model("resnet_femto", **options)) is None
