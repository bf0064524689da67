"""Images to ready batches with the DeiT augmentation: kawara against timm's own loader, one thread each, in turn.

    make peers && .venv-peers/bin/python benchmarks/input_pipeline.py

    cold    500×375 JPEG bytes → random resized crop 224 (bicubic), flip, rand-m9-mstd0.5-inc1, normalise, erasing 0.25
    cached  the same from kawara's cache (uint8, shorter side 256, memory-mapped); timm has no cache and starts from the JPEG
    small   32×32 images in memory → pad 4 and crop, flip, the same RandAugment, normalise, erasing (as DeiT does for small images)

Each side runs in a process of its own. The parent lets them work in turn, A B A B …, and reports the ratio of each pair. Times are
processor times of the one thread, so that other work on the machine counts little. Mixing is left out on both sides. timm runs with
its prefetching loader or without, whichever is faster here.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import record

CASES = {
    "cold": {"image": 224, "images": 128, "batch": 64},
    "cached": {"image": 224, "images": 128, "batch": 64},
    "small": {"image": 32, "images": 4096, "batch": 512},
}
RAND_AUGMENT, ERASING = "m9-mstd0.5-inc1", 0.25
JPEG_SIZE, JPEG_QUALITY = (500, 375), 90
Pass = Callable[[int], int]
"""Serves every image once and returns how many there were; the argument numbers the passes."""


def data_folder() -> Path:
    """Return where the photos are: $KAWARA_DATA, else ../shared/data beside the repository."""
    return Path(os.environ.get("KAWARA_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def photos(count: int, size: tuple[int, int]) -> Iterator[Any]:
    """Yield `count` PIL images (width, height): real photos where there are some, smooth noise elsewhere."""
    from PIL import Image

    found = 0
    for path in sorted((data_folder() / "hymenoptera").glob("*/*/*.jpg")):
        image = Image.open(path)
        if found < count and image.width >= size[0] * 0.9 and image.height >= size[1] * 0.8:
            found += 1
            yield image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    random = np.random.default_rng(0)
    for _ in range(found, count):
        coarse = random.integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
        yield Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def jpegs(count: int) -> list[bytes]:
    """Return `count` JPEG files of 500×375."""
    files = []
    for image in photos(count, JPEG_SIZE):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
        files.append(buffer.getvalue())
    return files


def kawara_pass(name: str, case: dict[str, int]) -> Pass:
    """Return kawara's pass: what its training loader does in one worker."""
    import torch

    from kawara.data.augment import Augmentation, AugmentConfig
    from kawara.data.decode import decode
    from kawara.data.preprocessing import Preprocessing
    from kawara.runtime import keep_large_buffers

    keep_large_buffers()
    side = (case["image"], case["image"])
    config = AugmentConfig(crop="pad" if name == "small" else "random_resized", rand_augment=RAND_AUGMENT, erasing=ERASING)
    preprocessing = Preprocessing(image_size=side, crop_fraction=1.0 if name == "small" else 0.875)
    augmentation = Augmentation(config, preprocessing, seed=0)
    place: Callable[[np.ndarray, int], torch.Tensor]

    def fill(load: Callable[[int], np.ndarray], indices: np.ndarray, epoch: int) -> torch.Tensor:
        batch = torch.empty(len(indices), 3, *side, dtype=torch.uint8)
        for row, index in zip(batch, indices.tolist()):
            augmentation.place(load(index), epoch, index, out=row)
        return batch

    if name == "small":
        images = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in photos(case["images"], side)])

        def place(indices: np.ndarray, epoch: int) -> torch.Tensor:
            return augmentation.place_batch(images.index_select(0, torch.from_numpy(indices)), epoch, indices)

    elif name == "cached":
        stored = [preprocessing.shrink(decode(data, "benchmark")) for data in jpegs(case["images"])]
        file = tempfile.NamedTemporaryFile()  # noqa: SIM115  lives as long as the pass
        for image in stored:
            file.write(image.tobytes())
        file.flush()
        mapped = np.memmap(file.name, dtype=np.uint8, mode="r")
        ends = np.cumsum([image.size for image in stored])
        views = [mapped[end - image.size : end].reshape(image.shape) for image, end in zip(stored, ends.tolist())]
        del stored

        def place(indices: np.ndarray, epoch: int) -> torch.Tensor:
            assert file
            return fill(lambda index: views[index], indices, epoch)

    else:
        files = jpegs(case["images"])

        def place(indices: np.ndarray, epoch: int) -> torch.Tensor:
            return fill(lambda index: decode(files[index], "benchmark"), indices, epoch)

    def serve(epoch: int) -> int:
        for start in range(0, case["images"], case["batch"]):
            indices = np.arange(start, start + case["batch"])
            augmentation.transform(place(indices, epoch), epoch, indices, overwrite=True)
        return case["images"]

    return serve


def timm_pass(name: str, case: dict[str, int], prefetch: bool) -> Pass:
    """Return timm's pass: its transform and loader without workers, as DeiT configures them."""
    import peer_environment  # noqa: F401  makes timm importable beside a CPU build of torch: must come first

    # isort: split
    import torch
    from PIL import Image
    from timm.data import create_loader
    from torchvision import transforms

    decoded = list(photos(case["images"], (32, 32))) if name == "small" else []
    files = [] if name == "small" else jpegs(case["images"])

    class Images(torch.utils.data.Dataset):
        transform: Any = None

        def __len__(self) -> int:
            return case["images"]

        def __getitem__(self, index: int) -> tuple[Any, int]:
            image = decoded[index] if decoded else Image.open(io.BytesIO(files[index])).convert("RGB")
            return self.transform(image), 0

    loader = create_loader(
        Images(), (3, case["image"], case["image"]), case["batch"], is_training=True, use_prefetcher=prefetch, re_prob=ERASING,
        re_mode="pixel", auto_augment="rand-" + RAND_AUGMENT, interpolation="bicubic", num_workers=0, device=torch.device("cpu"),
    )  # fmt: skip
    if name == "small":
        loader.dataset.transform.transforms[0] = transforms.RandomCrop(case["image"], padding=4)
    return lambda _: sum(len(images) for images, _ in loader)


def work(side: str, name: str) -> None:
    """Serve the parent: for each line read, one pass; answer with images per processor second, at the end with the peak memory."""
    import torch

    torch.set_num_threads(1)
    case = CASES[name]
    if side == "kawara":
        serve = kawara_pass(name, case)
    else:
        candidates = [timm_pass(name, case, prefetch) for prefetch in (True, False)]
        for candidate in candidates:
            candidate(0)
        serve = min(candidates, key=lambda candidate: min(timed(candidate, 1), timed(candidate, 2)))
        candidates.clear()
    serve(0)
    print("ready", flush=True)
    for number, _ in enumerate(sys.stdin, start=1):
        started = time.process_time()
        count = serve(number)
        print(count / (time.process_time() - started), flush=True)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024, flush=True)


def timed(serve: Pass, number: int) -> float:
    """Return the processor seconds of one pass."""
    started = time.process_time()
    serve(number)
    return time.process_time() - started


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Run both sides in turn and return medians, ratio and memory."""
    sides = {}
    for side in ("kawara", "timm"):
        command = [sys.executable, __file__, "--side", side, "--case", name]
        sides[side] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert answer(sides[side]) == "ready", f"{side} did not start"
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, process in sides.items():
            assert process.stdin is not None
            process.stdin.write("pass\n")
            process.stdin.flush()
            speeds[side].append(float(answer(process)))
    peaks = {side: int(process.communicate()[0]) / 2**20 for side, process in sides.items()}
    ratios = sorted(ours / theirs for ours, theirs in zip(speeds["kawara"], speeds["timm"]))
    return {
        "case": name,
        "rounds": rounds,
        "kawara_images_per_second": round(statistics.median(speeds["kawara"]), 1),
        "timm_images_per_second": round(statistics.median(speeds["timm"]), 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(ratios[0], 2), round(ratios[-1], 2)],
        "kawara_peak_mb": round(peaks["kawara"]),
        "timm_peak_mb": round(peaks["timm"]),
    }


def answer(process: subprocess.Popen[str]) -> str:
    """Read one line from a side."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--case", choices=list(CASES), action="append", help="one case alone (default: all)")
    parser.add_argument("--side", choices=["kawara", "timm"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work(options.side, options.case[0])
        return
    cases = []
    for name in options.case or CASES:
        cases.append(measure(name, options.rounds))
        print(json.dumps(cases[-1], ensure_ascii=False), flush=True)
    if not options.case:
        record.write("input_pipeline", cases)


if __name__ == "__main__":
    main()
