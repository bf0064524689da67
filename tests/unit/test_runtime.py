"""How many threads pay, on a machine that is and is not busy."""

from __future__ import annotations

import torch

from kawara import runtime
from kawara.runtime import num_threads_that_pay


def test_threads_that_wait_for_others_do_not_pay(monkeypatch):
    now, count = 0.0, 0
    seconds = {
        "quiet": {4: 0.001, 2: 0.002, 1: 0.004},
        "one core": {4: 0.016, 2: 0.002, 1: 0.004},
        "busy": {4: 0.016, 2: 0.016, 1: 0.004},
    }

    def product(matrix, other):
        nonlocal now
        now += seconds[machine][count]
        return other

    def take(number):
        nonlocal count
        count = number

    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(runtime.time, "monotonic", lambda: now)
    monkeypatch.setattr(torch, "set_num_threads", take)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    found = {}
    for machine in ("quiet", "one core", "busy"):
        found[machine] = num_threads_that_pay()
    assert found == {"quiet": 4, "one core": 2, "busy": 1}


def test_one_thread_is_one_thread(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert num_threads_that_pay() == 1
