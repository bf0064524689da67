"""Where and how the numbers are computed: seed, device, precision, threads, allocator, and a record of it all."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from kawara.errors import ConfigError

Precision = Literal["auto", "float32", "bfloat16", "float16"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_large_buffers() -> None:
    """Let glibc reuse large buffers instead of mapping and unmapping them at every step (10–17 % of a CPU training step)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another libc has no mallopt; nothing is lost but speed
            libc = ctypes.CDLL(None)
            libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  third-party code may draw from the global generator
    torch.manual_seed(seed)


def choose_device(name: str | None = None) -> torch.device:
    """Return the device named, or the best one there is. Raises ConfigError for one that is not there."""
    available = ["cpu"]
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if name is None:
        return torch.device(available[0])
    if name.split(":")[0] not in available:
        raise ConfigError(f"There is no device {name!r} here.", allowed=", ".join(available), remedy=f"--device {available[0]}")
    return torch.device(name)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Tell whether bfloat16 is computed by hardware; emulated on a CPU it is about 100 times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Return the autocast type for `precision`, None for plain float32. Raises ConfigError where it would crawl."""
    if precision == "float32":
        return None
    fast_bfloat16 = has_fast_bfloat16(device)
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if fast_bfloat16 else torch.float16
        return None
    if device.type == "cpu" and not (precision == "bfloat16" and fast_bfloat16):
        raise ConfigError(
            f"This CPU computes {precision} in software, about 100 times slower than float32.", remedy="--set precision=float32"
        )
    return torch.bfloat16 if precision == "bfloat16" else torch.float16


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Use `count` intra-op threads inside the block; 0 keeps what torch chose."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def num_threads_that_pay(seconds: float = 0.5) -> int:
    """Return how many threads to compute with: all that torch would take, unless a single one is faster, which takes `seconds` to find out.

    Threads wait for each other in every product. Where another program keeps one of their cores busy, that takes longer than to go alone.
    """
    most = torch.get_num_threads()
    counts = [most]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    matrix = torch.randn(384, 384)
    taken, products = dict.fromkeys(counts, 0.0), dict.fromkeys(counts, 0)
    with threads(most):
        until = time.monotonic() + seconds
        while len(counts) > 1 and (time.monotonic() < until or not products[1]):
            for count in counts:  # in turn and for many products each, so that all meet the same neighbours
                torch.set_num_threads(count)
                torch.mm(matrix, matrix)  # the first with other threads starts them
                started = time.monotonic()
                while (lasted := time.monotonic() - started) < seconds / 20:
                    torch.mm(matrix, matrix)
                    products[count] += 1
                taken[count] += lasted
    speed = {count: products[count] / max(taken[count], 1e-9) for count in counts}
    return most if speed[most] >= speed[1] else max(speed, key=lambda count: speed[count])


def peak_memory_bytes(device: torch.device) -> int:
    """Return the largest amount of memory in use so far: of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def mark_memory() -> int:
    """Set the high-water mark of this process's memory back where that can be done (Linux), and return what a growth is counted from."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _high_water()
    return _status_bytes("VmRSS") or _high_water()


def memory_growth(mark: int) -> int:
    """Return how far the memory of this process has risen above a mark at most, in bytes.

    Where the high-water mark cannot be set back, what fits into memory that had been used and given back before is missed.
    """
    return max(0, _high_water() - mark)


def _high_water() -> int:
    return _status_bytes("VmHWM") or peak_memory_bytes(torch.device("cpu"))


def _status_bytes(name: str) -> int:
    """Return a field of /proc/self/status in bytes, 0 where there is none."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def environment() -> dict[str, Any]:
    """Return versions, machine and threads: what a number must carry to be believed."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    packages = ("kawara", "torch", "numpy", "pillow", "simplejpeg", "safetensors", "scikit-learn")
    record: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": {package: installed(package) for package in packages},
    }
    if torch.cuda.is_available():
        record["gpu"] = torch.cuda.get_device_name()
        record["cuda"] = torch.version.cuda
    return record


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
