"""How fast is a ViT against a CNN of the same size, in each run time, over the size of the image? With `kawara bench`.

    python benchmarks/run_times.py --runs runs/run_times

torch.compile is measured at 224 px alone, where compiling each case takes up to a minute. Cases that are there already are not measured
again. The record goes to benchmarks/measured/run_times.json, from which benchmarks/write_results.py makes docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import record

CASES = {
    "every-run-time": ["--image-size", "224", "--threads", "1,2", "--batch", "1,8"],
    "over-size": ["--image-size", "224,384,512,640", "--runtime", "torch,onnx,openvino"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_16")
    parser.add_argument("--match", default="params")
    parser.add_argument("--runs", type=Path, default=Path("runs/run_times"))
    options = parser.parse_args()
    cases = []
    for name, arguments in CASES.items():
        out = options.runs / name
        twin = [options.model, "--twin", "--match", options.match]
        if not (out / "bench.json").exists():
            subprocess.run([sys.executable, "-m", "kawara", "bench", *twin, *arguments, "--out", str(out)], check=True)
        cases.append({"case": name, **json.loads((out / "bench.json").read_text())})
    record.write("run_times", cases)


if __name__ == "__main__":
    main()
