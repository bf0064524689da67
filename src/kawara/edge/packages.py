"""Packages that not everyone has: imported when they are needed, and named by their extra when they are not there."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from kawara.errors import ConfigError

_EXTRAS = {"onnx": "edge", "onnxscript": "edge", "onnxruntime": "edge", "openvino": "openvino"}


def need(package: str) -> Any:
    """Import a package. Raises ConfigError, which names the extra, where it is not installed."""
    try:
        return import_module(package)
    except ImportError as error:
        extra = _EXTRAS[package]
        raise ConfigError(f"This needs {package}, which is not installed.", got=error, remedy=f"pip install 'kawara[{extra}]'") from None
