from __future__ import annotations

import pytest

from kawara.errors import DecodeError, InternalError, KawaraError, UnknownNameError, UserError
from kawara.registry import Registry


def test_a_message_has_its_parts_in_order():
    text = str(UserError("It is wrong.", got=3, allowed="1 or 2", remedy="--number 1"))
    assert text.splitlines() == ["It is wrong.", "  got:     3", "  allowed: 1 or 2", "  try:     --number 1"]


def test_exit_codes_tell_whose_mistake_it_is():
    assert UserError("x").exit_code == 2
    assert DecodeError("a.jpg", "truncated").exit_code == 2
    assert InternalError("x").exit_code == 1
    assert KawaraError("x").exit_code == 1


def test_an_unknown_name_offers_near_ones():
    registry: Registry[int] = Registry("model")
    registry.add("vit_tiny_16", 1)
    registry.add("resnet_50", 2)
    with pytest.raises(UnknownNameError) as caught:
        registry["vit_tinny_16"]
    assert "no model named 'vit_tinny_16'" in str(caught.value)
    assert "try:     vit_tiny_16" in str(caught.value)


def test_a_name_taken_twice_is_our_mistake():
    registry: Registry[int] = Registry("model")
    registry.add("a", 1)
    with pytest.raises(InternalError, match="'a'"):
        registry.add("a", 2)
    assert list(registry) == ["a"]
    assert "a" in registry
    assert len(registry) == 1
