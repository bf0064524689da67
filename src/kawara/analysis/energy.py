"""How much energy the processor has used, where the system tells: the counters of RAPL that Linux shows under powercap.

They count the whole package, whoever uses it, and are often readable by root alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

COUNTERS = Path("/sys/class/powercap")
_LEAST_S = 1.0


def energy_joules(counters: Path = COUNTERS) -> float | None:
    """Return the sum of the counters of all packages, None where none can be read. They begin anew after a few hundred kilojoules."""
    total = 0.0
    try:
        packages = [domain for domain in counters.glob("intel-rapl:*") if (domain / "name").read_text().startswith("package")]
        for domain in packages:
            total += int((domain / "energy_uj").read_text()) / 1e6
    except (OSError, ValueError):
        return None
    return total if packages else None


def energy_of(run: Callable[[], object], counters: Path = COUNTERS) -> float | None:
    """Return the joules of one call, from as many as take a second; None where nothing can be read, or a counter began anew."""
    before = energy_joules(counters)
    if before is None:
        return None
    calls, started = 0, time.monotonic()
    while time.monotonic() - started < _LEAST_S:
        run()
        calls += 1
    after = energy_joules(counters)
    return None if after is None or after < before else (after - before) / calls
