"""Write docs/results.md and the table of the READMEs from the records in benchmarks/measured/. Numbers there are never written by hand.

python benchmarks/write_results.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
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
    first = record["cases"][0]
    text = "## One training step of the same ViT, against timm\n\n"
    text += "| model, precision | kawara, ms | timm, ms | ratio (range) | memory kawara / timm, MB |\n|---|---|---|---|---|\n"
    for case in record["cases"]:
        for precision, found in case["precisions"].items():
            low, high = found["ratio_range"]
            text += (
                f"| {case['case']}{_precisions(case, precision)} | {found['kawara_ms']:.1f} | {found['timm_ms']:.1f} | "
                f"**{found['ratio']:.2f}×** ({low:.2f} – {high:.2f}) | {found['kawara_peak_mb']:.0f} / {found['timm_peak_mb']:.0f} |\n"
            )
    shares = " and ".join(f"{case['share_of_peak']:.0%}" for case in record["cases"])
    text += (
        f"\nForward, backward and AdamW on a made-up batch; kawara's last block computes the class token alone, which is all that the head "
        f"reads. In float32, kawara does {shares} of the {first['peak_gflops']:.0f} GFLOP/s of a large matrix product. "
        f"{first['threads']} threads, {first['rounds']} alternating rounds, medians, "
        f"each side in a process of its own. {hardware(record['environment'])}; commit {record['commit']}.\n\n"
        "```sh\nmake peers && .venv-peers/bin/python benchmarks/training_step.py\n```\n"
    )
    return text


def _precisions(case: dict[str, Any], which: str, english: bool = True) -> str:
    if which != "as they come":
        return f", both {which}" if english else f"、ともに {which}"
    each = f"kawara {case['kawara_trains_in']}, timm float32"
    return f", as they come ({each})" if english else f"、初期設定どうし（{each}）"


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


def pretrained(path: Path) -> str:
    """Return the section on what a pretrained model gives."""
    record = json.loads(path.read_text())
    first, *runs = record["cases"]
    low, high = first["top1_ci95"]
    text = "## DeiT-Ti, pretrained on ImageNet-1k\n\n"
    text += "| what | images | median top-1 of the seeds | each seed | 95 % interval (first seed) | time, s |\n|---|---|---|---|---|---|\n"
    text += (
        f"| {first['case']} | {first['num_images']} | **{100 * first['top1']:.2f} %** | – | {100 * low:.1f} – {100 * high:.1f} | "
        f"{first['wall_seconds']:.0f} |\n"
    )
    for case in dict.fromkeys(run["case"] for run in runs):
        of_case = [run for run in runs if run["case"] == case]
        each = ", ".join(f"{100 * run['top1']:.2f}" for run in of_case)
        low, high = of_case[0]["top1_ci95"]
        wall = " – ".join(dict.fromkeys(f"{pick(run['wall_seconds'] for run in of_case):.0f}" for pick in (min, max)))
        median = statistics.median(run["top1"] for run in of_case)
        text += (
            f"| {case} | {of_case[0]['num_images']} | **{100 * median:.2f} %** | {each} | {100 * low:.1f} – {100 * high:.1f} | {wall} |\n"
        )
    text += (
        "\nTimes are of the whole command. imagenet_samples: 800 photos of as many classes, which may be among those that the model was trained "
        f"on. {hardware(record['environment'])}; commit {record['commit']}.\n\n"
        "```sh\npython benchmarks/pretrained.py ../shared\n```\n"
    )
    return text


def frozen_head(path: Path) -> str:
    """Return the section on features that are computed once."""
    record = json.loads(path.read_text())
    case = record["cases"][0]
    low, high = case["ratio_range"]
    return (
        "## An epoch of a new head: features kept, against features computed anew\n\n"
        "| model, data | kept, ms | anew, ms | ratio (range) | computing them once, ms |\n|---|---|---|---|---|\n"
        f"| {case['case']} | {case['kept_ms']:.1f} | {case['anew_ms']:,.0f} | **{case['ratio']:,.0f}×** ({low:,.0f} – {high:,.0f}) | {case['once_ms']:,.0f} |\n"
        f"\nThe same steps in one process, {case['rounds']} alternating rounds, {case['threads']} threads. {hardware(record['environment'])}; "
        f"commit {record['commit']}.\n\n"
        "```sh\npython benchmarks/frozen_head.py ../shared/data/hymenoptera --pretrained ../shared/weights/deit_tiny_patch16_224_in1k.safetensors\n```\n"
    )


def distillation(path: Path) -> str:
    """Return the section on learning from a teacher."""
    record = json.loads(path.read_text())
    teacher, *students = record["cases"]
    low, high = teacher["top1_ci95"]
    text = "## A CNN teaches a ViT: Fashion-MNIST\n\n"
    text += "| student | median top-1 of the seeds | each seed | agrees with the teacher | epochs | time, s |\n|---|---|---|---|---|---|\n"
    for kind in dict.fromkeys(student["kind"] for student in students):
        of_kind = [student for student in students if student["kind"] == kind]
        each = ", ".join(f"{100 * student['top1']:.2f}" for student in of_kind)
        median = statistics.median(student["top1"] for student in of_kind)
        shares = [share for student in of_kind if "agreement" in student for share in [agreement_with_teacher(student["agreement"])]]
        agrees = f"{100 * statistics.median(shares):.1f} %" if shares else "–"
        wall = statistics.median(student["wall_seconds"] for student in of_kind)
        what = "alone" if kind == "none" else f"`--distill {kind}`"
        text += (
            f"| `{of_kind[0]['model']}`, {what} | **{100 * median:.2f} %** | {each} | {agrees} | {of_kind[0]['epochs']:g} | {wall:.0f} |\n"
        )
    text += (
        f"\nTeacher: a narrow ResNet-20 after {teacher['epochs']:g} epochs, {100 * teacher['top1']:.2f} % ({100 * low:.1f} – {100 * high:.1f}). "
        f"{teacher['num_images']:,} test images. {hardware(record['environment'])}; commit {record['commit']}.\n\n"
        "```sh\npython benchmarks/distillation.py ../shared/data/fashion_mnist\n```\n"
    )
    return text


def comparison(path: Path) -> str:
    """Return the section on a ViT and the CNN of its size."""
    record = json.loads(path.read_text())
    case = record["cases"][0]
    verdict, sides = case["verdict"], case["sides"]
    named = {"first": f"{sides[0]['label']} is better", "second": f"{sides[1]['label']} is better"}
    better = named.get(verdict["decision"], verdict["decision"])
    low, high = (100 * value for value in verdict["difference_ci95"])

    def row(what: str, show: Callable[[dict[str, Any]], str]) -> str:
        return f"| {what} | {' | '.join(show(side) for side in sides)} |\n"

    text = f"## A ViT with a convolutional stem, and the CNN of its size: {case['data']}\n\n"
    text += row("", lambda side: f"`{side['label']}`") + "|---|---|---|\n"
    text += row(
        "top-1, 95 % interval (images and seeds)",
        lambda side: f"**{100 * side['top1']:.2f} %** ({100 * side['top1_ci95'][0]:.1f} – {100 * side['top1_ci95'][1]:.1f})",
    )
    text += row("each seed", lambda side: ", ".join(f"{100 * value:.2f}" for value in side["top1_of_seeds"]))
    text += row("calibration error", lambda side: f"{100 * side['ece']:.1f} %")
    text += row("parameters", lambda side: f"{side['parameters']:,}")
    text += row("multiply-adds an image", lambda side: f"{side['macs'] / 1e6:.1f} M")
    text += row("latency p50 / p95, batch 1", lambda side: f"{side['latency_p50_ms']:.2f} / {side['latency_p95_ms']:.2f} ms")
    text += row("throughput at the best batch", lambda side: f"{side['images_per_second']:,.0f} images/s (batch {side['batch_size']})")
    for name, title in (("noise", "noise"), ("blur", "blur"), ("shift", "shift"), ("drop_random", "tiles dropped")):
        levels = case["robustness"][name]
        strength, (one, other) = levels[len(levels) // 2]["strength"], levels[len(levels) // 2]["top1"]
        text += f"| {title}, {strength:g}: top-1 | {100 * one:.1f} % | {100 * other:.1f} % |\n"
    text += (
        f"\nVerdict: **{better}**. {sides[0]['label']} minus {sides[1]['label']}: {100 * verdict['difference']:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}, "
        f"on {case['num_images']:,} images and {verdict['num_seeds'][0]} runs of each. Same data, augmentation, recipe `{case['training']['recipe']}` and {case['training']['length']}. "
        f"Times on {case['threads']} thread. {hardware(record['environment'])}; commit {record['commit']}.\n\n"
        f"```sh\npython benchmarks/comparison.py ../shared/data/{case['data']}\n```\n"
    )
    return text


def edge(path: Path) -> str:
    """Return the section on exported files."""
    record = json.loads(path.read_text())
    text = "## At the edge: DeiT-Ti, one photo at a time, one thread\n\n"
    text += "| | top-1 lost, points | same answer | size, MB | p50 / p95, ms | against timm | against ONNX Runtime fp32 |\n|---|---|---|---|---|---|---|\n"
    for case in record["cases"]:
        accuracy = case.get("accuracy")
        lost = f"{accuracy['drop_points']:+.2f}" if accuracy else "–"
        same = f"{100 * case['agreement']:.1f} %" if accuracy else "–"
        size = f"{case['num_bytes'] / 1e6:.1f}" if accuracy else "–"
        ratios = " | ".join(
            f"**{case[name]['median']:.2f}×** ({case[name]['range'][0]:.2f} – {case[name]['range'][1]:.2f})"
            for name in ("faster_than_timm", "faster_than_onnx_fp32")
        )
        text += f"| {case['side']} | {lost} | {same} | {size} | {case['p50_ms']:.1f} / {case['p95_ms']:.1f} | {ratios} |\n"
    compared = next(case for case in record["cases"] if case.get("merging"))
    text += (
        f"\nFrom decoded pixels to probabilities, preprocessing included; {NUM_EDGE_PHOTOS} photos a turn, sides in turn, in processes of their own; ratios of medians, "
        f"their range over the turns. Accuracy against torch on {compared['num_images']} photos that the export was not calibrated on; the same answer as torch that merges alike. "
        f"`--merge auto` took r = {compared['merging']['r']}. {hardware(record['environment'])}; commit {record['commit']}.\n\n"
        "```sh\nmake peers && .venv-peers/bin/python benchmarks/edge.py ../shared\n```\n"
    )
    return text


RUN_TIMES = {"torch": "PyTorch", "compile": "torch.compile", "onnx": "ONNX Runtime", "openvino": "OpenVINO"}


def run_times(path: Path) -> str:
    """Return the section on a ViT and a CNN of its size in each run time."""
    record = json.loads(path.read_text())
    every, over_size = record["cases"]
    text = "## A ViT against the CNN of its size, on this machine\n\n| | parameters | multiply-adds | attention overtakes the linear layers at |\n|---|---|---|---|\n"
    for model in every["models"]:
        side = f"{model['attention_overtakes_px']:,} px" if model["attention_overtakes_px"] else "–"
        text += f"| `{model['label']}` | {model['parameters']:,} | {model['macs'] / 1e9:.2f} G | {side} |\n"
    text += "\nMilliseconds of one batch at 224 px, median (95th percentile); in brackets the share of the fastest matrix product.\n\n"
    text += "| model | run time | 1 thread, batch 1 | 1 thread, batch 8 | 2 threads, batch 1 | 2 threads, batch 8 | memory |\n|---|---|---|---|---|---|---|\n"
    for label in [model["label"] for model in every["models"]]:
        for name in every["run_times"]:
            rows = {(row["threads"], row["batch"]): row for row in every["rows"] if (row["model"], row["run_time"]) == (label, name)}
            cells = [
                f"{row['p50_ms']:.1f} ({row['p95_ms']:.1f}) [{100 * row['share_of_peak']:.0f} %]" if (row := rows.get(case)) else "–"
                for case in ((1, 1), (1, 8), (2, 1), (2, 8))
            ]
            memory = next((row["memory_bytes"] for row in rows.values() if row["memory_bytes"]), None)
            text += f"| `{label}` | {RUN_TIMES[name]} | {' | '.join(cells)} | {f'{memory / 1e6:.0f} MB' if memory else '–'} |\n"
    sides = sorted({row["image_size_px"] for row in over_size["rows"]})
    text += (
        "\nOver the size of the image, 1 thread, batch 1, milliseconds (median).\n\n| model | run time | "
        + " | ".join(f"{side} px" for side in sides)
        + " |\n"
    )
    text += "|---|---|" + "---|" * len(sides) + "\n"
    for label in [model["label"] for model in over_size["models"]]:
        for name in over_size["run_times"]:
            rows = {row["image_size_px"]: row for row in over_size["rows"] if (row["model"], row["run_time"]) == (label, name)}
            cells = [f"{rows[side]['p50_ms']:.1f}" if side in rows else "–" for side in sides]
            text += f"| `{label}` | {RUN_TIMES[name]} | {' | '.join(cells)} |\n"
    text += (
        f"\nThe network alone, float32, all in turn. {hardware(record['environment'])}; commit {record['commit']}.\n\n"
        "```sh\npython benchmarks/run_times.py\n```\n"
    )
    return text


def agreement_with_teacher(agreement: dict[str, Any]) -> float:
    """Return how often the student's answer is the teacher's."""
    answer = "both heads" if "both heads" in agreement["who"] else "student"
    return agreement["same"][agreement["who"].index(answer)][agreement["who"].index("teacher")]


def inspection(path: Path) -> str:
    """Return the section on looking inside."""
    record = json.loads(path.read_text())
    case = record["cases"][0]
    text = "## How far the heads of DeiT-Ti look\n\n"
    text += "| block | " + " | ".join(str(block) for block in range(1, len(case["distance_px"]) + 1)) + " |\n"
    text += "|---|" + "---|" * len(case["distance_px"]) + "\n"
    for name, pick in (("nearest head, px", min), ("farthest head, px", max)):
        text += f"| {name} | " + " | ".join(f"{pick(heads):.0f}" for heads in case["distance_px"]) + " |\n"
    text += (
        f"\nMean attention distance over {case['num_photos']} photos of 224 px; uniform attention would give {case['uniform_distance_px']:.1f} px. "
        "Low blocks hold near and far heads, the last ones look everywhere (ViT, 2010.11929, figure 7). "
        f"The whole page of `kawara inspect`, {case['page_bytes'] / 1e6:.1f} MB, took {case['wall_seconds']:.0f} s and {case['peak_memory_bytes'] / 2**30:.1f} GB; "
        f"recomputed attention differs from the model's own output by at most {case['attention_deviation']:.1e}. {hardware(record['environment'])}; "
        f"commit {record['commit']}.\n\n```sh\npython benchmarks/inspection.py ../shared\n```\n"
    )
    return text


def promises(path: Path) -> str:
    """Return the section on the tests behind docs/promises.md."""
    record = json.loads(path.read_text())
    text = "## Promises put to the test\n\n| what | outcome | measured | s |\n|---|---|---|---|\n"
    for case in record["cases"]:
        measured = ", ".join(f"{name.replace('_', ' ')} {shortened(value)}" for name, value in case["measured"].items()) or "–"
        text += f"| {case['promise']} | {case['outcome']} | {measured} | {case['seconds']:.0f} |\n"
    text += (
        "\nEach row is a test of docs/promises.md, which fails where the promise does not hold. "
        f"{hardware(record['environment'])}; commit {record['commit']}.\n\n```sh\npython benchmarks/promises.py\n```\n"
    )
    return text


def shortened(value: str) -> str:
    """Return a number as people write it."""
    number = float(value)
    return f"{number:,.0f}" if number.is_integer() else f"{number:.3g}"


def hardware(environment: dict[str, Any]) -> str:
    """Return the machine in words."""
    packages = environment["packages"]
    return f"{environment['cpu']}, {environment['cores']} cores, Python {environment['python']}, torch {packages['torch']}"


def readme_table(language: str) -> str:
    """Return the few numbers that the README shows."""
    english = language == "en"
    rows = []
    for path in sorted(MEASURED.glob("timed_training-*.json")):
        records = json.loads(path.read_text())
        name, cores = path.stem.removeprefix("timed_training-"), records[0]["environment"]["cores"]
        for minutes in sorted({record["minutes"] for record in records}):
            of_length = [record["top1"] for record in records if record["minutes"] == minutes]
            what = (
                f"{name}, `--minutes {minutes:g}`, {cores} CPU cores: median top-1 of {len(of_length)} seeds"
                if english
                else f"{name}、`--minutes {minutes:g}`、CPU {cores} コア：top-1（{len(of_length)} シードの中央値）"
            )
            rows.append((what, f"{100 * statistics.median(of_length):.1f} %"))
    rows += pretrained_rows(english)
    for file, english_text, japanese_text in (
        ("training_step", "training step against timm, {case}", "学習 1 歩、timm との比、{case}"),
        ("input_pipeline", "input pipeline against timm, one core, {case}", "入力、timm との比、1 コア、{case}"),
    ):
        path = MEASURED / f"{file}.json"
        for case in json.loads(path.read_text())["cases"] if path.exists() else []:
            what = (english_text if english else japanese_text).format(case=case["case"])
            for precision, found in case.get("precisions", {"": case}).items():
                low, high = found["ratio_range"]
                how = _precisions(case, precision, english) if precision else ""
                rows.append((what + how, f"{found['ratio']:.2f}× ({low:.2f} – {high:.2f})"))
    path = MEASURED / "edge.json"
    for case in json.loads(path.read_text())["cases"] if path.exists() else []:
        if case["side"].startswith("ONNX Runtime") and "int8" in case["side"]:
            low, high = case["faster_than_timm"]["range"]
            options = case["side"].removeprefix("ONNX Runtime, ")
            lost = -case["accuracy"]["drop_points"]
            what = (
                f"DeiT-Ti, {options}, ONNX Runtime, one photo, against timm eager; top-1"
                if english
                else f"DeiT-Ti、{options}、ONNX Runtime、写真 1 枚、timm（eager）との比と top-1 の差"
            )
            rows.append((what, f"{case['faster_than_timm']['median']:.2f}× ({low:.2f} – {high:.2f}); {lost:+.1f}"))
    head = ("what", "measured") if english else ("何を", "測定値")
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)])


def pretrained_rows(english: bool) -> list[tuple[str, str]]:
    """Return what a pretrained model gives, for the README."""
    path = MEASURED / "pretrained.json"
    if not path.exists():
        return []
    words = {"new head": "新しいヘッドのみ", "fine-tuned": "ファインチューニング"}
    _, *runs = json.loads(path.read_text())["cases"]
    rows = []
    for case in dict.fromkeys(run["case"] for run in runs):
        of_case = [run for run in runs if run["case"] == case]
        data, what = case.split(", ")
        median = f"{100 * statistics.median(run['top1'] for run in of_case):.1f} %"
        seconds = statistics.median(run["wall_seconds"] for run in of_case)
        if english:
            rows.append(
                (f"DeiT-Ti, {data}, {what}: median top-1 of {len(of_case)} seeds, time of the whole command", f"{median}, {seconds:.0f} s")
            )
        else:
            rows.append(
                (
                    f"DeiT-Ti、{data}、{words[what]}：top-1（{len(of_case)} シードの中央値）、コマンド全体の時間",
                    f"{median}、{seconds:.0f} 秒",
                )
            )
    return rows


def fill_in(path: Path, text: str) -> None:
    """Put `text` between the two marks in a file."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


NUM_EDGE_PHOTOS = 20
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
SECTIONS = {
    "timed_training-*.json": timed_training,
    "pretrained.json": pretrained,
    "frozen_head.json": frozen_head,
    "distillation.json": distillation,
    "comparison.json": comparison,
    "edge.json": edge,
    "run_times.json": run_times,
    "promises.json": promises,
    "inspection.json": inspection,
    "training_step.json": training_step,
    "input_pipeline.json": input_pipeline,
}


def main() -> None:
    sections = [section(path) for pattern, section in SECTIONS.items() for path in sorted(MEASURED.glob(pattern))]
    (ROOT / "docs" / "results.md").write_text("\n".join([HEAD, *sections]), encoding="utf-8")
    fill_in(ROOT / "README.md", readme_table("en"))
    fill_in(ROOT / "README.ja.md", readme_table("ja"))


if __name__ == "__main__":
    main()
