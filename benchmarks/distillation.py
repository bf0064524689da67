"""What a CNN teacher gives a ViT student: the same student, recipe and epochs, with and without it, for several seeds.

    python benchmarks/distillation.py ../shared/data/fashion_mnist --epochs 2 --kinds none soft --seeds 3 --runs runs/distillation

The teacher is a narrow ResNet-20 of kawara's own. Runs that are finished are not repeated. The record goes to
benchmarks/measured/distillation.json, from which benchmarks/write_results.py makes docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import record

TEACHER = ["--model", "resnet20", "--set", "model.options={widths: [8, 16, 32], stem_width: 8}"]
KEPT = ("model", "split", "num_images", "top1", "top1_ci95", "nll", "epochs", "agreement")


def train(data: str, folder: Path, *options: str) -> dict[str, Any]:
    """Train once, unless it was done before, and return what is worth keeping."""
    known = folder / "wall_seconds.json"
    if not known.exists():
        started = time.monotonic()
        command = [sys.executable, "-m", "kawara", "train", data, "--recipe", "small", *options, "--out", str(folder), "--json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        known.write_text(json.dumps(time.monotonic() - started))
    metrics = json.loads((folder / "metrics.json").read_text())
    return {name: metrics[name] for name in KEPT if name in metrics} | {"wall_seconds": json.loads(known.read_text())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--student", default="vit_femto_conv_8")
    parser.add_argument("--teacher-epochs", type=float, default=3)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--kinds", nargs="+", choices=["none", "soft", "hard", "token"], default=["none", "soft"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/distillation"))
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    teacher = options.runs / "teacher"
    cases = [{"role": "teacher", **train(options.data, teacher, *TEACHER, "--epochs", f"{options.teacher_epochs:g}")}]
    print(f"teacher: {cases[0]['top1']:.2%}", flush=True)
    for seed in range(options.seeds):
        for kind in options.kinds:
            taught = [] if kind == "none" else ["--teacher", str(teacher / "model.safetensors"), "--distill", kind]
            student = ["--model", options.student, "--epochs", f"{options.epochs:g}", "--seed", str(seed), *taught]
            measured = train(options.data, options.runs / f"{kind}-s{seed}", *student)
            print(f"{kind}, seed {seed}: {measured['top1']:.2%} in {measured['wall_seconds']:.0f} s", flush=True)
            cases.append({"role": "student", "kind": kind, "seed": seed, **measured})
            record.write("distillation", cases)


if __name__ == "__main__":
    main()
