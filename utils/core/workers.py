"""A crew of threads that all exist before the clock starts, and how many threads torch adds.

`ThreadPoolExecutor` starts a thread only when a task finds nobody idle. That is thrifty, and wrong
for a measurement: the first tasks would pay for the last threads.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def crew(workers: int, noun: str = "worker") -> Iterator[ThreadPoolExecutor]:
    """A pool of `workers` threads that are there and wait, named "worker 1" and so on."""
    numbers = itertools.count(1)

    def christen() -> None:
        threading.current_thread().name = f"{noun} {next(numbers)}"

    everyone = threading.Barrier(workers)
    with ThreadPoolExecutor(workers, initializer=christen) as pool:
        for meeting in [pool.submit(everyone.wait, 10) for _ in range(workers)]:
            meeting.result(timeout=10)
        yield pool


def lanes(workers: int, noun: str = "worker") -> list[str]:
    """What a crew's threads are called: the rows of its timeline, idle ones included."""
    return [f"{noun} {number}" for number in range(1, workers + 1)]


@contextmanager
def intra_op(threads: int) -> Iterator[None]:
    """Let torch use `threads` threads inside one operation; the old number comes back after.

    Threads started inside the block inherit it, so eight workers × four threads means 32.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
