"""Plain frozen dataclasses as configuration: to and from JSON and YAML, changed by dotted path, with a digest.

A configuration lives beside the component that reads it. A name that does not exist is an error that offers the
nearest one; a value is converted to the declared type or refused.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import jsonargparse
import yaml

from kawara.errors import ConfigError

C = TypeVar("C")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a nested dictionary of JSON values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(config_type: type[C], values: Mapping[str, Any], *, where: str = "the configuration") -> C:
    """Build `config_type` from a nested dictionary. Raises ConfigError on a name or value that does not fit."""
    _check_names(config_type, values, "")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(config_type, "config")
    try:
        return parser.instantiate(parser.parse_object({"config": dict(values)})).config
    except ConfigError:
        raise
    except Exception as error:  # jsonargparse raises several kinds; each names the key and the expected type
        reason = str(error).replace("config.", "", 1).replace("typing.", "")
        raise ConfigError(f"A value in {where} does not fit.", got=" ".join(reason.split())) from None


def override(config: C, changes: Mapping[str, Any]) -> C:
    """Return `config` with the values at dotted paths replaced: `override(config, {"optimizer.lr": 1e-3})`."""
    values = to_dict(config)
    for path, value in changes.items():
        *parents, name = path.split(".")
        node: dict[str, Any] = values
        node_type: type = type(config)
        for depth, parent in enumerate(parents):
            _check_names(node_type, {parent: None}, ".".join(parents[:depth]))
            node, node_type = node[parent], get_type_hints(node_type)[parent]
            if not isinstance(node, dict):
                raise ConfigError(f"{'.'.join(parents[: depth + 1])!r} is a single value; nothing lies below it.", got=path)
            if not dataclasses.is_dataclass(node_type):
                break  # a table with free names: what fits in it is for its reader to say
        else:
            _check_names(node_type, {name: None}, ".".join(parents))
            if isinstance(value, bool) and "off" in get_args(get_type_hints(node_type)[name]):
                value = "on" if value else "off"  # YAML reads the words on and off as true and false
        node[name] = value
    return from_dict(type(config), values, where="the settings " + ", ".join(changes))


def parse_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Read `["optimizer.lr=1e-3", …]` as a dictionary; values are YAML. Raises ConfigError without `=`."""
    changes = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise ConfigError("A setting has the form path=value.", got=text, remedy="--set optimizer.lr=0.001")
        changes[path.strip()] = yaml.safe_load(value)
    return changes


def read_file(path: str | Path) -> dict[str, Any]:
    """Read a YAML or JSON file as a dictionary. Raises ConfigError if it is not one."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The configuration file {path} cannot be read.", got=error) from None
    if not isinstance(values, dict):
        raise ConfigError(f"The configuration file {path} is not a table of names and values.", got=type(values).__name__)
    return values


def to_yaml(config: Any) -> str:
    """Return the configuration as YAML text in the order of its fields."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def digest(config: Any) -> str:
    """Return 12 hexadecimal digits that change when any value changes."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode()).hexdigest()[:12]


def _check_names(config_type: type, values: Mapping[str, Any], path: str) -> None:
    """Raise ConfigError with the nearest names for a name that `config_type` does not have."""
    hints = get_type_hints(config_type)
    known = [field.name for field in dataclasses.fields(config_type)]
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            raise ConfigError(
                f"There is no setting {f'{path}.{name}' if path else name!r}.",
                allowed=", ".join(known),
                remedy=" or ".join(f"{path}.{n}" if path else n for n in near) or None,
            )
        if isinstance(value, Mapping) and dataclasses.is_dataclass(hints[name]):
            _check_names(hints[name], value, f"{path}.{name}" if path else name)
