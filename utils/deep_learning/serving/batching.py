"""When to release a batch: the policy of a micro-batcher, which knows no clock and no threads.

A batch is due when it is full, or when its oldest request has waited `max_wait`. With a `max_wait`
of 0 a free worker takes whatever is there: batches then grow by themselves under load, because
requests gather while all workers are busy. (D. Crankshaw et al., "Clipper: A Low-Latency Online
Prediction Serving System", NSDI 2017: adaptive and delayed batching.)

Times are whole nanoseconds. Who runs the policy tells it what time it is: the engine asks the
machine's clock, the simulation a virtual one, and both ask the very same object.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

from utils.performance.queueing.requests import SECOND


class Waiting(Protocol):
    """What the policy needs to know of a request, in ns; `deadline` may be `math.inf`."""

    arrival: int
    deadline: float


T = TypeVar("T", bound=Waiting)


class Batcher(Generic[T]):
    """One line; batches of at most `max_batch`, due after `max_wait` seconds at the latest.

    Not safe for threads: its runner holds one lock around every call.
    """

    def __init__(self, max_batch: int = 32, max_wait: float = 0.0) -> None:
        if max_batch < 1 or max_batch != int(max_batch):
            raise ValueError(f"max_batch={max_batch!r} is not allowed: give 1 or more requests")
        if not 0 <= max_wait < math.inf:  # nan too
            raise ValueError(f"max_wait={max_wait!r} is not allowed: give seconds, 0 or more")
        self.max_batch = max_batch
        self._patience = round(max_wait * SECOND)
        self._line: OrderedDict[T, None] = OrderedDict()  # first come first, and any may leave

    def __len__(self) -> int:
        return len(self._line)

    def arrive(self, request: T) -> bool:
        """Stand in line. Whether a worker should look now: there was nobody, or a batch is full."""
        self._line[request] = None
        return len(self._line) == 1 or len(self._line) % self.max_batch == 0

    def leave(self, request: T) -> bool:
        """Whether the request was still in line; it is not any more."""
        return self._line.pop(request, self) is None

    def due(self) -> int | None:
        """From when on (ns) a batch can be taken; None: nobody waits."""
        if not self._line:
            return None
        oldest = next(iter(self._line)).arrival
        return oldest if len(self._line) >= self.max_batch else oldest + self._patience

    def take(self, now: int, flush: bool = False) -> tuple[list[T], list[T]]:
        """The batch that is due, and the requests met on the way whose deadline has passed.

        Both are empty if none is due; `flush` makes it due, however few there are.
        """
        due, batch, late = self.due(), [], []
        if due is not None and (flush or due <= now):
            while self._line and len(batch) < self.max_batch:
                request, _ = self._line.popitem(last=False)
                (late if request.deadline <= now else batch).append(request)
        return batch, late

    def clear(self) -> list[T]:
        """Send everybody home; return who was there."""
        everybody = list(self._line)
        self._line.clear()
        return everybody
