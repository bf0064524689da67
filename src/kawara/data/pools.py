"""Threads for decoding and cropping, on which torch's operations run on one core each.

Torch gives every thread that computes a team of its own of as many threads as there are cores. A pool of workers would then start
cores² threads, which stand in each other's way and in the trainer's.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch


def num_cores() -> int:
    """Return how many cores this process may use, its part where a launcher started several here."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def use_one_core_here() -> None:
    """Make torch's operations in the calling thread run on it alone."""
    torch.get_num_threads()  # the first call in a thread adopts the number that was set last anywhere: let that happen before
    torch.set_num_threads(1)


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of `workers` threads; on leaving, tasks that have not begun are dropped and all threads have ended."""
    threads_here = torch.get_num_threads()
    started = threading.Barrier(workers + 1)

    def start() -> None:
        use_one_core_here()
        started.wait()

    pool = ThreadPoolExecutor(workers, thread_name_prefix="kawara-data")
    try:
        for _ in range(workers):
            pool.submit(start)
        started.wait()
        # The number is kept for each thread, but threads that torch has not seen yet take the last one that was set.
        torch.set_num_threads(threads_here)
        yield pool
    finally:
        started.abort()  # after Ctrl-C in front of the barrier, the threads would wait behind it for ever
        pool.shutdown(wait=True, cancel_futures=True)
