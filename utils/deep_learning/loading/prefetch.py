"""Prefetching from scratch: one thread fills a bounded queue while the caller computes.

The bound is what makes it safe: without it, a loader that is faster than the model would put the
whole data set into memory. `torch.utils.data.DataLoader` does the same with `num_workers`
processes, each `prefetch_factor` batches ahead, so that Python code does not share one GIL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from utils.core.workers import crew
from utils.threads.channels.message_queue import Closed, MessageQueue

T = TypeVar("T")
DEADLINE = 60.0  # seconds for anything that blocks


@contextmanager
def prefetched(batches: Iterable[T], ahead: int) -> Iterator[Iterator[T]]:
    """The same batches in the same order, with up to `ahead` of them ready, and one in the making.

    Raises what `batches` raises, after the batches before that. The thread has ended when the block
    has, wherever the caller stopped.
    """
    queue = MessageQueue[T](ahead)

    def fill() -> None:
        torch.set_num_threads(1)
        try:
            for batch in batches:
                queue.put(batch, timeout=DEADLINE)
        except Closed:  # nobody wants the rest
            pass
        finally:
            queue.close()

    def ready() -> Iterator[T]:
        try:
            while True:
                yield queue.get(timeout=DEADLINE)
        except Closed:
            filling.result(DEADLINE)  # raises what ended it

    with crew(1, "loader") as pool:
        filling = pool.submit(fill)
        try:
            yield ready()
        finally:
            queue.close()
