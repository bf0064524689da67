"""What `kawara inspect` costs on DeiT-Ti and 16 photos, and how far its heads look.

    python benchmarks/inspection.py ../shared

The folder holds data/imagenet_samples and weights/ as its READMEs describe them. The record goes to benchmarks/measured/inspection.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import record

WEIGHTS = "weights/deit_tiny_patch16_224_in1k.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with data/ and weights/")
    parser.add_argument("--photos", type=int, default=16)
    options = parser.parse_args()
    photos = sorted((options.shared / "data" / "imagenet_samples").glob("*.JPEG"))
    chosen = [str(photo) for photo in photos[:: len(photos) // options.photos][: options.photos]]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "page"
        command = [sys.executable, "-m", "kawara", "inspect", str(options.shared / WEIGHTS), *chosen, "--out", str(out), "--json"]
        started = time.monotonic()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds = time.monotonic() - started
        said = json.loads(done.stdout)
        distance = json.loads((out / "numbers" / "attention-distance.json").read_text())
        size = (out / "report.html").stat().st_size
    case = {
        "model": said["model"],
        "num_photos": said["num_photos"],
        "wall_seconds": seconds,
        "peak_memory_bytes": said["peak_memory_bytes"],
        "page_bytes": size,
        "attention_deviation": said["attention_deviation"],
        "distance_px": distance["distance_px"],
        "uniform_distance_px": distance["uniform_distance_px"],
    }
    print(json.dumps(case))
    record.write("inspection", [case])


if __name__ == "__main__":
    main()
