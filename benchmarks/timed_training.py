"""What N minutes of training give: `kawara train DATA --minutes N` for several seeds, nothing else said.

    python benchmarks/timed_training.py ../shared/data/fashion_mnist --minutes 5 15 --seeds 3 --runs runs/timed

Runs that are finished in the folder are not repeated. The record goes to benchmarks/measured/timed_training-<data>.json, from
which benchmarks/write_results.py makes docs/results.md. Leave the machine alone meanwhile: the clock decides how much is learnt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import record


def run(data: str, minutes: float, seed: int, folder: Path) -> dict[str, Any]:
    """Train once, unless it was done before, and return what is worth keeping of the result."""
    wall: float | None = None
    if not (folder / "metrics.json").exists():
        command = [
            sys.executable,
            "-m",
            "kawara",
            "train",
            data,
            "--minutes",
            f"{minutes:g}",
            "--seed",
            str(seed),
            "--out",
            str(folder),
            "--json",
        ]
        started = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall = time.monotonic() - started
        (folder / "wall_seconds.json").write_text(json.dumps(wall))
    elif (folder / "wall_seconds.json").exists():
        wall = json.loads((folder / "wall_seconds.json").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    environment = json.loads((folder / "environment.json").read_text())
    kept = ("model", "recipe", "split", "num_images", "top1", "top1_ci95", "nll", "ece", "steps", "epochs", "seconds", "images_per_second")
    return {
        "minutes": minutes,
        "seed": seed,
        "wall_seconds": wall,
        **{name: metrics[name] for name in kept},
        "peak_memory_bytes": metrics["peak_memory_bytes"],
        "environment": environment,
        "commit": record.commit(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--minutes", type=float, nargs="+", default=[5, 15])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/timed"))
    options = parser.parse_args()
    name = Path(options.data).name
    path = record.MEASURED / f"timed_training-{name}.json"
    records: list[dict[str, Any]] = []
    for minutes in options.minutes:
        of_length = []
        for seed in range(options.seeds):
            result = run(options.data, minutes, seed, options.runs / f"{name}-m{minutes:g}-s{seed}")
            of_length.append(result)
            print(f"{name} {minutes:g} min seed {seed}: {result['top1']:.2%} in {result['seconds']:.0f} s, {result['model']}", flush=True)
            path.write_text(json.dumps(records + of_length, indent=1) + "\n")
        records += of_length
        print(f"{name} {minutes:g} min: median {statistics.median(result['top1'] for result in of_length):.2%}", flush=True)


if __name__ == "__main__":
    main()
