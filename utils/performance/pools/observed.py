"""A process in which nobody else makes threads: what it reports goes to `stack_cache`.

    python -m utils.performance.pools.observed

prints, as JSON, its address space while some threads live and after they have ended, twice, and the
voluntary switches of doing tasks by new threads, and by a pool in two ways.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from utils.core import machine
from utils.performance.pools.thread_pool import ThreadPool

THREADS, STACK = 4, 8 << 20  # at once, and bytes of each: they fit into glibc's cache
TASKS = 200
DEADLINE = 20.0  # seconds for anything that blocks


def observe() -> tuple[list[float], list[int]]:
    """MiB at each step, and the voluntary switches of each way."""
    threading.stack_size(STACK)
    sizes = [address_space()]
    for _ in range(2):
        alone, may_end = kernel_threads(), threading.Event()
        threads = [threading.Thread(target=may_end.wait, args=(DEADLINE,)) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        sizes.append(address_space())
        may_end.set()
        for thread in threads:
            thread.join(DEADLINE)
        end = time.monotonic() + DEADLINE
        while kernel_threads() > alone and time.monotonic() < end:
            time.sleep(0.001)  # Python has joined them a moment before the system has
        sizes.append(address_space())
    return sizes, [switches(way) for way in (by_threads, by_round_trips, by_backlog)]


def address_space() -> float:
    """MiB of this process's address space (VmSize, proc_pid_status(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmSize"))


def kernel_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def switches(work: Callable[[], None]) -> int:
    """How often a thread of this process went to sleep meanwhile (getrusage(2), ru_nvcsw)."""
    before, _ = machine.switches()
    work()
    return machine.switches()[0] - before


def by_threads() -> None:
    for _ in range(TASKS):
        thread = threading.Thread(target=int)
        thread.start()
        thread.join(DEADLINE)


def by_round_trips() -> None:
    """Each task is submitted when the one before is done: its worker sleeps meanwhile."""
    with ThreadPool(1) as pool:
        for _ in range(TASKS):
            pool.submit(int).result(DEADLINE)


def by_backlog() -> None:
    """All tasks are submitted at once: the worker finds the next one without sleeping."""
    with ThreadPool(1) as pool:
        for future in [pool.submit(int) for _ in range(TASKS)]:
            future.result(DEADLINE)


if __name__ == "__main__":
    json.dump(observe(), sys.stdout)
