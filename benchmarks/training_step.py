"""One training step of the same ViT, kawara against timm, alternating on the same machine.

    make peers && .venv-peers/bin/python benchmarks/training_step.py

Each side runs in a process of its own (allocator settings belong to a process), both with the same number of threads,
the same made-up batch and AdamW. The parent lets them work in turn, A B A B …, and reports the ratio of each pair.
timm is used as its own training script uses it: eager, its AdamW, softmax attention fused by torch.
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


def kawara_step(case: dict[str, int]) -> Any:
    """Return a function that does one training step, as `kawara train` does it."""
    import torch

    from kawara.models import ViTConfig, build
    from kawara.runtime import keep_large_buffers
    from kawara.tasks.classification import soft_target_cross_entropy
    from kawara.training.optimizer import OptimizerConfig, build_optimizers

    keep_large_buffers()
    config = ViTConfig(
        image_size=(case["image"], case["image"]), num_classes=case["classes"], patch_size=case["patch"], width=case["width"],
        depth=case["depth"], heads=case["heads"], mlp_hidden=4 * case["width"],
    )  # fmt: skip
    model = build(config).train()
    optimizers = build_optimizers(model, OptimizerConfig(name="adamw", lr=1e-4), case["batch"])
    image, target = made_up_batch(case)
    targets = torch.nn.functional.one_hot(target, case["classes"]).float()

    def step() -> None:
        soft_target_cross_entropy(model(image), targets).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def timm_step(case: dict[str, int]) -> Any:
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
        criterion(model(image), target).backward()
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
    step = {"kawara": kawara_step, "timm": timm_step}[side](case)
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
    """Run both sides in turn and return medians, ratio and memory."""
    command = [sys.executable, __file__, "--threads", str(threads), "--case", name, "--side"]
    sides = {
        side: subprocess.Popen([*command, side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for side in ("kawara", "timm")
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
    memory = {}
    for side, process in sides.items():
        memory[side] = json.loads(process.communicate()[0])
    ratios = sorted(theirs / ours for ours, theirs in zip(medians["kawara"], medians["timm"]))
    return {
        "case": name,
        "threads": threads,
        "rounds": rounds,
        "kawara_ms": 1000 * statistics.median(medians["kawara"]),
        "timm_ms": 1000 * statistics.median(medians["timm"]),
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
        "kawara_peak_mb": memory["kawara"] / 2**20,
        "timm_peak_mb": memory["timm"] / 2**20,
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
    parser.add_argument("--side", choices=["kawara", "timm"], help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work(options.side, CASES[options.case], options.threads)
        return
    peak = matrix_product_peak(options.threads)
    cases = []
    for name, case in CASES.items():
        measured = measure(name, case, options.threads, options.rounds, options.steps)
        measured |= {"peak_gflops": peak, "share_of_peak": step_gflop(case) / measured["kawara_ms"] * 1000 / peak}
        cases.append(measured)
        print(json.dumps(measured, ensure_ascii=False), flush=True)
    record.write("training_step", cases)


if __name__ == "__main__":
    main()
