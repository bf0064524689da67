"""Would a CNN of the same size have been better? A ViT with a convolutional stem and its twin, with `kawara compare`.

    python benchmarks/comparison.py ../shared/data/fashion_mnist --model vit_femto_conv_4 --epochs 3 --seeds 3 --runs runs/comparison

Runs that are finished are not repeated; times and answers are measured anew. The record goes to benchmarks/measured/comparison.json, from
which benchmarks/write_results.py makes docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", default="vit_femto_conv_4")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/comparison"))
    options = parser.parse_args()
    length = ["--epochs", f"{options.epochs:g}", "--seeds", str(options.seeds)]
    command = [sys.executable, "-m", "kawara", "compare", options.data, "--model", options.model, *length, "--out", str(options.runs)]
    subprocess.run(command, check=True)
    case = json.loads((options.runs / "comparison.json").read_text())
    record.write("comparison", [case | {"data": Path(options.data).name}])


if __name__ == "__main__":
    main()
