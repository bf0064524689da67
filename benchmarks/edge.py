"""One photo, one answer, one thread: DeiT-Ti in timm, in kawara's torch, and as `kawara export` writes it, alternating on one machine.

    make peers && .venv-peers/bin/python benchmarks/edge.py ../shared --runs runs/edge

All begin with the same decoded pixels (H, W, 3) and end with probabilities. timm is used as its documentation shows: eager, with its own
evaluation transform. Each side runs in a process of its own; the parent lets them work in turn, A B C A B C …, and reports the ratio in
each turn.
Exports that are there already are not made again. Accuracies are those of the certificates, on photos that the export did not calibrate on.
The record goes to benchmarks/measured/edge.json, from which benchmarks/write_results.py makes docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record

WEIGHTS = "weights/deit_tiny_patch16_224_in1k.safetensors"
EXPORTS: dict[str, list[str]] = {
    "ONNX Runtime, fp32": ["--to", "onnx"],
    "ONNX Runtime, int8": ["--to", "onnx", "--precision", "int8"],
    "ONNX Runtime, int8, --merge auto --max-drop 1.0": ["--to", "onnx", "--precision", "int8", "--merge", "auto", "--max-drop", "1.0"],
    "OpenVINO, fp32": ["--to", "openvino"],
    "OpenVINO, int8": ["--to", "openvino", "--precision", "int8"],
    "OpenVINO, int8, --merge auto --max-drop 1.0": ["--to", "openvino", "--precision", "int8", "--merge", "auto", "--max-drop", "1.0"],
}
TIMM, TORCH = "timm, torch eager", "kawara, torch eager"
NUM_PHOTOS = 20


def export(shared: Path, folder: Path, name: str) -> Path:
    """Export once, unless it was done before, and return the file."""
    options = EXPORTS[name]
    made = folder / ("".join(letter if letter.isalnum() else "-" for letter in name) + (".onnx" if "onnx" in options else ".xml"))
    if not made.exists():
        samples = shared / "data" / "imagenet_samples"
        index_of = dict(reversed(line.split("\t")[:2]) for line in (samples / "classes.tsv").read_text().splitlines() if line[:1].isdigit())
        rows = [f"{photo.resolve()},{index_of[photo.name.split('_')[0]]}" for photo in sorted(samples.glob("*.JPEG"))]
        (folder / "photos.csv").write_text("\n".join(["path,label", *rows]) + "\n")
        command = [
            sys.executable,
            "-m",
            "kawara",
            "export",
            str(shared / WEIGHTS),
            "--data",
            str(folder / "photos.csv"),
            "--out",
            str(made),
        ]
        subprocess.run([*command, *options], check=True)
    return made


def answering(shared: Path, side: str, file: str) -> Callable[[Any], Any]:
    """Return a function from pixels (H, W, 3) of uint8 to probabilities."""
    import torch

    torch.set_num_threads(1)
    if side == TIMM:
        import peer_environment  # noqa: F401  makes timm importable beside a CPU build of torch: must come first

        # isort: split
        import timm
        from PIL import Image
        from safetensors.torch import load_file

        model = timm.create_model("deit_tiny_patch16_224").eval()
        model.load_state_dict(load_file(shared / WEIGHTS))
        transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))

        def answer(pixels: Any) -> Any:
            with torch.inference_mode():
                return model(transform(Image.fromarray(pixels))[None]).softmax(-1)

        return answer
    if side == TORCH:
        from kawara import load

        predictor = load(shared / WEIGHTS)
        place = predictor.card.preprocessing.place
        return lambda pixels: predictor.probabilities(place(pixels)[None])
    from kawara.edge.running import open_exported

    session, _ = open_exported(file, threads=1)
    return lambda pixels: session(pixels[None])


def work(shared: Path, side: str, file: str) -> None:
    """Serve the parent: at each line answer every photo, and say the seconds of each; at the end say the peak memory."""
    import numpy as np
    from PIL import Image

    photos = sorted((shared / "data" / "imagenet_samples").glob("*.JPEG"))
    photos = photos[:: len(photos) // NUM_PHOTOS][:NUM_PHOTOS]
    images = [np.asarray(Image.open(photo).convert("RGB")) for photo in photos]
    answer = answering(shared, side, file)
    for pixels in images[:3]:
        answer(pixels)
    print("ready", flush=True)
    for _ in sys.stdin:
        seconds = []
        for pixels in images:
            started = time.perf_counter()
            answer(pixels)
            seconds.append(time.perf_counter() - started)
        print(json.dumps(seconds), flush=True)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps(int(peak.split()[1]) * 1024), flush=True)


def measure(shared: Path, files: dict[str, Path | None], rounds: int) -> list[dict[str, Any]]:
    """Let all sides answer in turn; return a case for each."""
    command = [sys.executable, __file__, str(shared), "--side"]
    sides = {
        side: subprocess.Popen([*command, side, "--file", str(file or "")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for side, file in files.items()
    }
    for side, process in sides.items():
        assert process.stdout is not None
        answer = process.stdout.readline().strip()
        assert answer == "ready", f"{side} did not start: {answer}"
    seconds: dict[str, list[list[float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, process in sides.items():
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            seconds[side].append(json.loads(process.stdout.readline()))
    memory = {side: json.loads(process.communicate()[0]) for side, process in sides.items()}
    medians = {side: [statistics.median(turn) for turn in turns] for side, turns in seconds.items()}

    def faster(side: str, than: str) -> dict[str, Any]:
        ratios = sorted(other / own for own, other in zip(medians[side], medians[than]))
        return {"median": statistics.median(ratios), "range": [ratios[0], ratios[-1]]}

    return [
        {
            "side": side,
            "p50_ms": 1e3 * statistics.median(every := sorted(each for turn in seconds[side] for each in turn)),
            "p95_ms": 1e3 * every[int(0.95 * len(every))],
            "peak_memory_bytes": memory[side],
            "faster_than_timm": faster(side, TIMM),
            "faster_than_onnx_fp32": faster(side, "ONNX Runtime, fp32"),
        }
        for side in sides
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/edge"))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--file", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work(options.shared, options.side, options.file)
        return
    options.runs.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path | None] = {TIMM: None, TORCH: None}
    files |= {name: export(options.shared, options.runs, name) for name in EXPORTS}
    cases = measure(options.shared, files, options.rounds)
    for case in cases:
        file = files[case["side"]]
        if file is not None:
            certificate = json.loads(file.with_name(f"{file.name}.certificate.json").read_text())
            case |= {name: certificate[name] for name in ("num_images", "agreement", "max_difference", "accuracy", "num_bytes", "merging")}
            case["float_layers"] = certificate["int8"]["float_layers"] if certificate["int8"] else None
        print(f"{case['side']}: {case['p50_ms']:.1f} ms, {case['faster_than_timm']['median']:.2f} times timm", flush=True)
    record.write("edge", cases)


if __name__ == "__main__":
    main()
