"""Write docs/results.md from the records in benchmarks/measured/. Numbers there are never written by hand.

python benchmarks/write_results.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ROOT / "benchmarks" / "measured"

HEAD = """\
# Results

Written by `benchmarks/write_results.py` from `benchmarks/measured/*.json`; each section names the command that measures it.
Accuracies are of test images that took no part in training or in choosing. What did not work is in the [lab log](lab-log.md).
"""


def timed_training(path: Path) -> str:
    """Return the section on what N minutes of training give."""
    records: list[dict[str, Any]] = json.loads(path.read_text())
    name = path.stem.removeprefix("timed_training-")
    environment = records[0]["environment"]
    text = f"## {name}: N minutes on {environment['cores']} CPU cores\n\n"
    text += "| minutes | median top-1 of the seeds | each seed | 95 % interval (first seed) | model | epochs | wall time, s |\n|---|---|---|---|---|---|---|\n"
    for minutes in sorted({record["minutes"] for record in records}):
        of_length = [record for record in records if record["minutes"] == minutes]
        each = ", ".join(f"{100 * record['top1']:.2f}" for record in of_length)
        median = statistics.median(record["top1"] for record in of_length)
        low, high = of_length[0]["top1_ci95"]
        models = ", ".join(sorted({f"`{record['model']}`" for record in of_length}))
        epochs = " – ".join(dict.fromkeys(f"{pick(record['epochs'] for record in of_length):.1f}" for pick in (min, max)))
        wall = " – ".join(dict.fromkeys(f"{pick(record['seconds'] for record in of_length):.0f}" for pick in (min, max)))
        text += f"| {minutes:g} | **{100 * median:.2f} %** | {each} | {100 * low:.1f} – {100 * high:.1f} | {models} | {epochs} | {wall} |\n"
    speed = statistics.median(record["images_per_second"] for record in records)
    memory = max(record["peak_memory_bytes"] for record in records) / 2**30
    text += (
        f"\n{records[0]['num_images']:,} {records[0]['split']} images. Median {speed:,.0f} images/s in training, at most {memory:.1f} GB of memory. "
        f"{hardware(environment)}; commit {', '.join(sorted({record['commit'] for record in records}))}.\n\n"
        f"```sh\npython benchmarks/timed_training.py ../shared/data/{name}\n```\n"
    )
    return text


def training_step(path: Path) -> str:
    """Return the section on the training step against timm."""
    record = json.loads(path.read_text())
    text = "## One training step of the same ViT, against timm\n\n"
    text += "| model | kawara, ms | timm, ms | ratio (range) | memory kawara / timm, MB | share of the matrix-product peak |\n|---|---|---|---|---|---|\n"
    for case in record["cases"]:
        low, high = case["ratio_range"]
        text += (
            f"| {case['case']} | {case['kawara_ms']:.1f} | {case['timm_ms']:.1f} | **{case['ratio']:.2f}×** ({low:.2f} – {high:.2f}) | "
            f"{case['kawara_peak_mb']:.0f} / {case['timm_peak_mb']:.0f} | {case['share_of_peak']:.0%} of {case['peak_gflops']:.0f} GFLOP/s |\n"
        )
    cases = record["cases"][0]
    text += (
        f"\nForward, backward and AdamW on a made-up batch; {cases['threads']} threads, {cases['rounds']} alternating rounds, medians, "
        f"each side in a process of its own. {hardware(record['environment'])}; commit {record['commit']}.\n\n"
        "```sh\nmake peers && .venv-peers/bin/python benchmarks/training_step.py\n```\n"
    )
    return text


def input_pipeline(path: Path) -> str:
    """Return the section on the input pipeline against timm."""
    record = json.loads(path.read_text())
    text = "## Input pipeline, against timm's loader, on one core\n\n"
    text += "| case | kawara, images/s | timm, images/s | ratio (range) | memory kawara / timm, MB |\n|---|---|---|---|---|\n"
    for case in record["cases"]:
        low, high = case["ratio_range"]
        text += (
            f"| {case['case']} | {case['kawara_images_per_second']:,.0f} | {case['timm_images_per_second']:,.0f} | "
            f"**{case['ratio']:.2f}×** ({low:.2f} – {high:.2f}) | {case['kawara_peak_mb']:.0f} / {case['timm_peak_mb']:.0f} |\n"
        )
    text += (
        f"\nDeiT's augmentation on both sides, alternating rounds, one thread. {hardware(record['environment'])}; commit {record['commit']}.\n\n"
        "```sh\nmake peers && .venv-peers/bin/python benchmarks/input_pipeline.py\n```\n"
    )
    return text


def hardware(environment: dict[str, Any]) -> str:
    """Return the machine in words."""
    packages = environment["packages"]
    return f"{environment['cpu']}, {environment['cores']} cores, Python {environment['python']}, torch {packages['torch']}"


SECTIONS = {"timed_training-*.json": timed_training, "training_step.json": training_step, "input_pipeline.json": input_pipeline}


def main() -> None:
    sections = [section(path) for pattern, section in SECTIONS.items() for path in sorted(MEASURED.glob(pattern))]
    (ROOT / "docs" / "results.md").write_text("\n".join([HEAD, *sections]), encoding="utf-8")


if __name__ == "__main__":
    main()
