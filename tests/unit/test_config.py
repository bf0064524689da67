from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from kawara import config
from kawara.errors import ConfigError
from kawara.training.run_config import RunConfig


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    kind: Literal["cosine", "linear"] = "cosine"
    scale: tuple[float, float] = (0.08, 1.0)
    clip: float | None = None


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    name: str = "run"
    count: int = 3


def test_a_configuration_survives_dictionary_and_yaml(tmp_path):
    changed = config.override(Outer(), {"inner.rate": 3e-4, "inner.scale": [0.2, 0.9], "name": "瓦"})
    assert config.from_dict(Outer, config.to_dict(changed)) == changed
    (tmp_path / "config.yaml").write_text(config.to_yaml(changed), encoding="utf-8")
    assert config.from_dict(Outer, config.read_file(tmp_path / "config.yaml")) == changed


def test_override_converts_to_the_declared_type_and_leaves_the_original_alone():
    original = Outer()
    changed = config.override(original, {"inner.clip": "1e-3", "count": 5})
    assert changed.inner.clip == pytest.approx(1e-3)
    assert changed.count == 5
    assert original == Outer()


def test_digest_changes_with_any_value_and_only_then():
    assert config.digest(Outer()) == config.digest(Outer())
    assert config.digest(Outer()) != config.digest(config.override(Outer(), {"inner.rate": 0.2}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inner.rat": 1}, ["inner.rat", "inner.rate"]),
        ({"nam": 1}, ["nam", "name"]),
        ({"count": "many"}, ["count"]),
        ({"inner.kind": "step"}, ["inner.kind", "cosine"]),
        ({"name.first": "x"}, ["name"]),
    ],
)
def test_a_setting_that_does_not_fit_is_named(change, words):
    with pytest.raises(ConfigError) as caught:
        config.override(Outer(), change)
    for word in words:
        assert word in str(caught.value)


def test_assignments_are_yaml_and_need_an_equals_sign():
    assert config.parse_assignments(["a.b=1e-3", "c=null", "d=[1, 2]", "e=true"]) == {"a.b": "1e-3", "c": None, "d": [1, 2], "e": True}
    with pytest.raises(ConfigError, match="path=value"):
        config.parse_assignments(["optimizer.lr"])


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just words"])
def test_a_file_that_is_no_table_is_refused(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        config.read_file(path)


def test_off_is_a_word_where_a_word_is_wanted():
    """YAML reads it as false."""
    changed = config.override(RunConfig(), config.parse_assignments(["doctor=off", "compile=on"]))
    assert (changed.doctor, changed.compile) == ("off", "on")
