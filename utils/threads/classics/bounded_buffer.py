"""The bounded buffer: producers must wait when it is full, consumers when it is empty.

Two semaphores count what there is: `free` slots and `full` ones. P (acquire) takes one or waits
for one, V (release) gives one back; each item moves a count from `free` to `full` and back. A mutex
protects the list itself. The order of the two P's is everything: whoever waits for a slot while
holding the mutex shuts out those who would free one.

Source: E. W. Dijkstra, "Cooperating sequential processes", EWD 123, 1965, section 4.3.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Annotated

from utils.core import plots
from utils.core.experiment import Range, experiment, gather
from utils.core.trace import Recorder, Trace, now
from utils.core.workers import crew, lanes
from utils.threads.bugs.pair import Pair, together
from utils.threads.primitives.semaphore import Semaphore

ITEMS = 36  # divides by every number of producers and consumers, 1 to 4
DEADLINE = 20.0  # seconds for anything that blocks


def wrong() -> None:
    buffer: list[int] = []
    free, full = Semaphore(1), Semaphore(0)
    mutex = threading.Lock()  # held whenever buffer changes

    def put_two() -> None:
        for item in (1, 2):
            with mutex:
                free.acquire()
                buffer.append(item)
            full.release()

    def take_two() -> None:
        for _ in range(2):
            full.acquire()
            with mutex:
                buffer.pop()
            free.release()

    together(put_two, take_two)


def right() -> None:
    buffer: list[int] = []
    free, full = Semaphore(1), Semaphore(0)
    mutex = threading.Lock()  # held whenever buffer changes

    def put_two() -> None:
        for item in (1, 2):
            free.acquire()
            with mutex:
                buffer.append(item)
            full.release()

    def take_two() -> None:
        for _ in range(2):
            full.acquire()
            with mutex:
                buffer.pop()
            free.release()

    together(put_two, take_two)


PAIR = Pair(
    "bounded buffer: mutex before semaphore",
    "deadlock",
    wrong,
    right,
    "Wait for a resource before you take the mutex, never while holding it.",
)


class Buffer:
    """A bounded buffer for any number of threads, by Dijkstra's semaphores.

    `levels` keeps (moment, number of items) after every change, for the picture.
    """

    def __init__(self, capacity: int) -> None:
        self._items: deque[int] = deque()
        self._free, self._full = Semaphore(capacity), Semaphore(0)
        self._mutex = threading.Lock()  # held whenever _items changes
        self.levels: list[tuple[int, int]] = [(now(), 0)]

    def put(self, item: int) -> None:
        if not self._free.acquire(timeout=DEADLINE):  # P: wait for a free slot
            raise TimeoutError(f"no free slot after {DEADLINE:g} s")
        with self._mutex:
            self._items.append(item)
            self.levels.append((now(), len(self._items)))
        self._full.release()  # V: one more item

    def get(self) -> int:
        if not self._full.acquire(timeout=DEADLINE):  # P: wait for an item
            raise TimeoutError(f"no item after {DEADLINE:g} s")
        with self._mutex:
            item = self._items.popleft()
            self.levels.append((now(), len(self._items)))
        self._free.release()  # V: one more free slot
        return item


@dataclass(frozen=True)
class Run:
    """`received`: the items in the order they were taken; `levels`: (moment, items in it)."""

    producers: int
    consumers: int
    capacity: int
    make: float  # seconds an item
    use: float
    trace: Trace
    levels: tuple[tuple[int, int], ...]
    received: tuple[int, ...]

    @property
    def rate(self) -> float:
        """Items a second."""
        return ITEMS / self.trace.duration

    @property
    def expected_rate(self) -> float:
        """Items a second if the slower side never had to wait."""
        return min(self.producers / self.make, self.consumers / self.use)


@experiment
def pass_on(
    producers: Annotated[int, Range(1, 4)] = 2,
    consumers: Annotated[int, Range(1, 4)] = 1,
    capacity: Annotated[int, Range(1, 8)] = 3,
    make_ms: Annotated[int, Range(1, 10, label="ms to make one")] = 4,
    use_ms: Annotated[int, Range(1, 10, label="ms to use one")] = 4,
) -> Run:
    """Pass `ITEMS` items through a buffer; making and using one takes a while each."""
    buffer, recorder = Buffer(capacity), Recorder()
    received: list[int] = []  # append is atomic

    def produce(first: int) -> None:
        lane = threading.current_thread().name
        for item in range(first, ITEMS, producers):
            with recorder.span("compute", f"make {item}", lane=lane):
                time.sleep(make_ms / 1e3)
            with recorder.span("lock", f"put {item}", lane=lane):
                buffer.put(item)

    def consume() -> None:
        lane = threading.current_thread().name
        for _ in range(ITEMS // consumers):
            with recorder.span("queue", "get", lane=lane):
                item = buffer.get()
            received.append(item)
            with recorder.span("decode", f"use {item}", lane=lane):
                time.sleep(use_ms / 1e3)

    with crew(producers, "producer") as makers, crew(consumers, "consumer") as users:
        futures = [makers.submit(produce, first) for first in range(producers)]
        futures += [users.submit(consume) for _ in range(consumers)]
        gather(futures, timeout=DEADLINE)
    return Run(
        producers,
        consumers,
        capacity,
        make_ms / 1e3,
        use_ms / 1e3,
        recorder.trace(),
        tuple(buffer.levels),
        tuple(received),
    )


def plot(result: Run) -> plots.Picture:
    """Who works and who waits, above how full the buffer is."""
    rows = lanes(result.producers, "producer") + lanes(result.consumers, "consumer")
    fig, (who, level) = plots.figure(
        9, 2.6 + 0.32 * len(rows), rows=2, height_ratios=[len(rows) + 1, 2.2], sharex=True
    )
    title = f"{result.rate:.0f} items a second (at most {result.expected_rate:.0f})"
    plots.timeline(who, result.trace, lanes=rows, title=title)
    who.set_xlabel("")
    moments = [(moment - result.trace.start) / 1e9 for moment, _ in result.levels]
    counts = [count for _, count in result.levels]
    level.fill_between(moments, counts, step="post", color=plots.YELLOW)
    level.step(moments, counts, where="post", color=plots.INK, linewidth=0.8)
    level.axhline(result.capacity, color=plots.INK, linestyle="--", linewidth=0.8)
    level.set(ylim=(0, result.capacity * 1.15), yticks=[result.capacity])
    level.set_title(f"items in the buffer, {result.capacity} at most", loc="left")
    level.set_xlabel("seconds", fontsize=9)
    names = {
        "compute": "makes",
        "lock": "waits for a free slot",
        "queue": "waits for an item",
        "decode": "uses",
    }
    plots.legend(fig, list(names), names)
    return fig
