"""What a pretrained model gives on a few photos: as it is, with a new head, fine-tuned; for several seeds.

    python benchmarks/pretrained.py ../shared --seeds 3 --runs runs/pretrained

The folder holds data/ and weights/ as its READMEs describe them. Runs that are finished are not repeated. The record goes to
benchmarks/measured/pretrained.json, from which benchmarks/write_results.py makes docs/results.md. Leave the machine alone meanwhile.
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

WEIGHTS = "weights/deit_tiny_patch16_224_in1k.safetensors"
CASES = {
    "hymenoptera, new head": ("data/hymenoptera", ["--freeze", "backbone"]),
    "imagenette224, new head": ("data/imagenette224", ["--freeze", "backbone"]),
    "hymenoptera, fine-tuned": ("data/hymenoptera", []),
}


def kawara(*arguments: str) -> tuple[dict[str, Any], float]:
    """Run a command with --json; return its answer and the seconds it took, start of Python included."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "kawara", *arguments, "--json"], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout), time.monotonic() - started


def as_it_is(shared: Path, folder: Path) -> dict[str, Any]:
    """Name the photos of imagenet_samples with the checkpoint's own 1,000 classes, straight from its file."""
    samples = shared / "data" / "imagenet_samples"
    index_of = dict(reversed(line.split("\t")[:2]) for line in (samples / "classes.tsv").read_text().splitlines() if line[:1].isdigit())
    manifest = folder / "imagenet_samples.csv"
    rows = [f"{photo.resolve()},{index_of[photo.name.split('_')[0]]}" for photo in sorted(samples.glob("*.JPEG"))]
    manifest.write_text("\n".join(["path,label", *rows]) + "\n")
    answer, seconds = kawara("evaluate", str(shared / WEIGHTS), str(manifest))
    return {name: answer[name] for name in ("num_images", "top1", "top1_ci95", "top5", "nll")} | {"wall_seconds": seconds}


def train(shared: Path, case: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train once, unless it was done before."""
    data, options = CASES[case]
    known = folder / "wall_seconds.json"
    if not known.exists():
        arguments = [str(shared / data), "--pretrained", str(shared / WEIGHTS), *options, "--seed", str(seed), "--out", str(folder)]
        _, seconds = kawara("train", *arguments)
        known.write_text(json.dumps(seconds))
    metrics = json.loads((folder / "metrics.json").read_text())
    kept = ("recipe", "split", "num_images", "top1", "top1_ci95", "nll", "ece", "epochs", "images_per_second", "peak_memory_bytes")
    return {"case": case, "seed": seed, "wall_seconds": json.loads(known.read_text()), **{name: metrics[name] for name in kept}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with data/ and weights/")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/pretrained"))
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    cases: list[dict[str, Any]] = [{"case": "imagenet_samples, as it is"} | as_it_is(options.shared, options.runs)]
    print(f"as it is: {cases[0]['top1']:.2%} of {cases[0]['num_images']}", flush=True)
    for case in CASES:
        for seed in range(options.seeds):
            slug = case.replace(", ", "-").replace(" ", "-")
            measured = train(options.shared, case, seed, options.runs / f"{slug}-s{seed}")
            print(f"{case}, seed {seed}: {measured['top1']:.2%} in {measured['wall_seconds']:.0f} s", flush=True)
            cases.append(measured)
            record.write("pretrained", cases)


if __name__ == "__main__":
    main()
