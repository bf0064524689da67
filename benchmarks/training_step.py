"""One training step of the same ViT, kawara against timm, alternating on the same machine.

    make peers && .venv-peers/bin/python benchmarks/training_step.py

Each side runs in a process of its own (allocator settings belong to a process), both with the same number of threads,
the same made-up batch and AdamW. The parent lets them work in turn, A B A B …, and reports the ratio of each pair.
timm is used as its own training script uses it: eager, its AdamW, softmax attention fused by torch, float32 unless asked for autocast.
kawara is measured as it trains by itself (`precision=auto`), which is bfloat16 on CPUs that have it, and both sides in each precision.
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

CASES = {
    "ViT 192×9, patch 4, 32 px, batch 64": {"width": 192, "depth": 9, "heads": 3, "patch": 4, "image": 32, "batch": 64, "classes": 10},
    "ViT-Ti/16, 224 px, batch 8": {"width": 192, "depth": 12, "heads": 3, "patch": 16, "image": 224, "batch": 8, "classes": 1000},
}
SIDES = {"kawara": "auto", "kawara, float32": "float32", "timm": "float32", "timm, bfloat16": "bfloat16"}
PAIRS = {"as they come": ("kawara", "timm"), "float32": ("kawara, float32", "timm"), "bfloat16": ("kawara", "timm, bfloat16")}


def kawara_step(case: dict[str, int], precision: Any) -> Any:
    """Return a function that does one training step, as `kawara train` does it."""
    import torch

    from kawara.models import ViTConfig, build
    from kawara.runtime import keep_large_buffers
    from kawara.tasks.classification import soft_target_cross_entropy
    from kawara.training.optimizer import OptimizerConfig, build_optimizers
    from kawara.training.precision import training_dtype

    keep_large_buffers()
    config = ViTConfig(
        image_size=(case["image"], case["image"]), num_classes=case["classes"], patch_size=case["patch"], width=case["width"],
        depth=case["depth"], heads=case["heads"], mlp_hidden=4 * case["width"],
    )  # fmt: skip
    model = build(config).train()
    optimizers = build_optimizers(model, OptimizerConfig(name="adamw", lr=1e-4), case["batch"])
    image, target = made_up_batch(case)
    targets = torch.nn.functional.one_hot(target, case["classes"]).float()
    dtype = training_dtype(precision, image.device, model)

    def step() -> None:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss = soft_target_cross_entropy(model(image), targets)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def timm_step(case: dict[str, int], precision: Any) -> Any:
    """Return a function that does one training step with timm's model and optimiser."""
    import peer_environment  # noqa: F401  makes timm importable beside a CPU build of torch: must come first

    # isort: split
    import timm.optim
    import torch
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=case["image"], patch_size=case["patch"], embed_dim=case["width"], depth=case["depth"], num_heads=case["heads"],
        num_classes=case["classes"],
    ).train()  # fmt: skip
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05)
    criterion = torch.nn.CrossEntropyLoss()
    image, target = made_up_batch(case)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            loss = criterion(model(image), target)
        loss.backward()
        optimizer.step()

    return step


def made_up_batch(case: dict[str, int]) -> tuple[Any, Any]:
    """Return the same image batch and labels on both sides."""
    import torch

    torch.manual_seed(0)
    image = torch.randn(case["batch"], 3, case["image"], case["image"])
    return image, torch.randint(0, case["classes"], (case["batch"],))


def work(side: str, case: dict[str, int], threads: int) -> None:
    """Serve the parent: read a number of steps, answer with the seconds of each; at the end with the peak memory."""
    import torch

    torch.set_num_threads(threads)
    step = (kawara_step if side.startswith("kawara") else timm_step)(case, SIDES[side])
    for _ in range(3):
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
        print(json.dumps(seconds), flush=True)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps(int(peak.split()[1]) * 1024), flush=True)


def measure(name: str, case: dict[str, int], threads: int, rounds: int, steps: int) -> dict[str, Any]:
    """Run all sides in turn and return medians, ratios and memory."""
    import torch

    from kawara.runtime import has_fast_bfloat16

    has_bfloat16 = has_fast_bfloat16(torch.device("cpu"))
    pairs = PAIRS if has_bfloat16 else {"as they come": PAIRS["as they come"]}
    command = [sys.executable, __file__, "--threads", str(threads), "--case", name, "--side"]
    sides = {
        side: subprocess.Popen([*command, side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for side in dict.fromkeys(side for pair in pairs.values() for side in pair)
    }
    for side, process in sides.items():
        assert process.stdout is not None
        answer = process.stdout.readline().strip()
        assert answer == "ready", f"{side} did not start: {answer}"
    medians: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, process in sides.items():
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
            medians[side].append(statistics.median(json.loads(process.stdout.readline())))
    memory = {side: json.loads(process.communicate()[0]) / 2**20 for side, process in sides.items()}

    def compared(ours: str, theirs: str) -> dict[str, Any]:
        ratios = sorted(their / our for our, their in zip(medians[ours], medians[theirs]))
        return {
            "kawara_ms": 1000 * statistics.median(medians[ours]),
            "timm_ms": 1000 * statistics.median(medians[theirs]),
            "ratio": statistics.median(ratios),
            "ratio_range": [ratios[0], ratios[-1]],
            "kawara_peak_mb": memory[ours],
            "timm_peak_mb": memory[theirs],
        }

    return {
        "case": name,
        "threads": threads,
        "rounds": rounds,
        "kawara_trains_in": "bfloat16" if has_bfloat16 else "float32",
        "precisions": {title: compared(*pair) for title, pair in pairs.items()},
    }


def matrix_product_peak(threads: int) -> float:
    """Return the GFLOP/s of a large float32 matrix product with `threads` threads, the best of ten."""
    import torch

    torch.set_num_threads(threads)
    side = 2048
    left, right = torch.randn(side, side), torch.randn(side, side)
    times = []
    for _ in range(10):
        started = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times) / 1e9


def step_gflop(case: dict[str, int]) -> float:
    """Return the floating-point operations of a training step: forward once, backward twice, two for each multiply-accumulate."""
    from kawara.analysis.cost import vit_macs
    from kawara.models import ViTConfig

    config = ViTConfig(
        image_size=(case["image"], case["image"]), num_classes=case["classes"], patch_size=case["patch"], width=case["width"],
        depth=case["depth"], heads=case["heads"], mlp_hidden=4 * case["width"],
    )  # fmt: skip
    n, d, f = config.num_prefix + config.grid[0] * config.grid[1], config.width, config.mlp_hidden
    whole_block = 4 * n * d**2 + 2 * n**2 * d + 2 * n * d * f
    last_block = 2 * n * d**2 + 2 * d**2 + 2 * n * d + 2 * d * f  # one query
    return 3 * 2 * (vit_macs(config) - whole_block + last_block) * case["batch"] / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work(options.side, CASES[options.case], options.threads)
        return
    peak = matrix_product_peak(options.threads)
    cases = []
    for name, case in CASES.items():
        measured = measure(name, case, options.threads, options.rounds, options.steps)
        float32 = measured["precisions"]["float32" if "float32" in measured["precisions"] else "as they come"]
        measured |= {"peak_gflops": peak, "share_of_peak": step_gflop(case) / float32["kawara_ms"] * 1000 / peak}
        cases.append(measured)
        print(json.dumps(measured, ensure_ascii=False), flush=True)
    record.write("training_step", cases)


if __name__ == "__main__":
    main()
