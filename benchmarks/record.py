"""Keep what a benchmark measured, with everything that makes it believable, where write_results.py finds it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from kawara.runtime import environment

MEASURED = Path(__file__).parent / "measured"


def write(name: str, cases: list[dict[str, Any]]) -> None:
    """Write benchmarks/measured/<name>.json."""
    content = {"commit": commit(), "environment": environment(), "cases": cases}
    (MEASURED / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def commit() -> str:
    """Return the short name of the commit that is measured."""
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
