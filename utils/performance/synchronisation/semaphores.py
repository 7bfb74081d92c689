"""What a semaphore costs: to make one, to use one, and to wait for another thread.

A semaphore is made once and used often, so a pool or a cache of semaphores spares what hardly ever
happens; and since the pool is shared, it needs a lock itself. The expensive part is to *wait*: two
context switches. So what helps is to wait less often: one permit for k items instead of one for
each. Then an item costs a + b / k seconds, where a is its own work and b that of a permit. The
price is latency: the first item of a batch waits for the last one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from utils.core import bench, plots
from utils.core.bench import Sample
from utils.core.experiment import Range, checkpoint, experiment, gather
from utils.core.workers import crew

DEADLINE = 20.0  # seconds for anything that blocks
CALLS = 2000  # in one measurement
HANDOVERS = 400
ITEMS = 4096
BATCHES = (1, 4, 16, 64, 256)  # besides the chosen one


class SemaphorePool:
    """Semaphores with one permit each, made beforehand, for any number of threads."""

    def __init__(self, size: int) -> None:
        self._mutex = threading.Lock()  # must be held whenever free changes
        self._free = [threading.Semaphore() for _ in range(size)]

    def take(self) -> threading.Semaphore:
        """One that nobody uses. IndexError if there is none."""
        with self._mutex:
            return self._free.pop()

    def give_back(self, semaphore: threading.Semaphore) -> None:
        with self._mutex:
            self._free.append(semaphore)


@dataclass(frozen=True)
class Costs:
    """Seconds of one operation, by its name."""

    samples: dict[str, Sample]


@experiment
def costs(repeats: Annotated[int, Range(3, 25)] = 9) -> Costs:
    """Make, use, borrow, and hand over, in turns; each `repeats` times."""
    shared, pool = threading.Semaphore(), SemaphorePool(4)

    def use() -> None:
        shared.acquire()
        shared.release()

    def fresh() -> None:
        semaphore = threading.Semaphore()
        semaphore.acquire()
        semaphore.release()

    def pooled() -> None:
        semaphore = pool.take()
        semaphore.acquire()
        semaphore.release()
        pool.give_back(semaphore)

    works = {
        "P and V": _many(use),
        "make": _many(threading.Semaphore),
        "make, P and V": _many(fresh),
        "from a pool: P and V": _many(pooled),
    }
    with crew(1) as other:
        works["P waits for another's V"] = lambda: _ping_pong(other.submit)
        samples = bench.compare(works, repeats=repeats)
    calls = dict.fromkeys(works, CALLS) | {"P waits for another's V": 2 * HANDOVERS}
    return Costs(
        {
            name: Sample(tuple(value / calls[name] for value in sample.values))
            for name, sample in samples.items()
        }
    )


def _many(call: Callable[[], object]) -> Callable[[], None]:
    def work() -> None:
        for _ in range(CALLS):
            call()

    return work


def _ping_pong(submit: Callable[..., object]) -> None:
    """Two threads in turns: each P waits until the other thread has run."""
    ping, pong = threading.Semaphore(0), threading.Semaphore(0)

    def turns(mine: threading.Semaphore, yours: threading.Semaphore) -> None:
        for _ in range(HANDOVERS):
            yours.release()
            if not mine.acquire(timeout=DEADLINE):
                raise TimeoutError(f"no permit for {DEADLINE:g} s")

    future = submit(turns, ping, pong)
    turns(pong, ping)
    gather([future], timeout=DEADLINE)


def plot_costs(result: Costs) -> plots.Picture:
    """Time of one operation."""
    fig, ax = plots.figure(9, 2.5)
    for row, (name, sample) in enumerate(result.samples.items()):
        color = plots.VERMILION if "waits" in name else plots.BLUE
        ax.barh(row, 1e6 * sample.median, color=color)
        text = "  " + bench.seconds(sample.median)
        ax.text(1e6 * sample.median, row, text, va="center", fontsize=9)
    ax.set_yticks(range(len(result.samples)), result.samples)
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("µs", fontsize=9)
    return fig


@dataclass(frozen=True)
class Batch:
    """`ITEMS` items, one permit for `size` of them."""

    size: int
    permits: int
    received: int
    seconds: float

    @property
    def rate(self) -> float:
        """Items a second."""
        return self.received / self.seconds


@dataclass(frozen=True)
class Batches:
    """Sizes in order; `chosen` is among them."""

    chosen: int
    runs: tuple[Batch, ...]

    def expected_rate(self, size: int) -> float:
        """Items a second by 1 / (a + b / size), with a and b from the first and last run."""
        first, last = self.runs[0], self.runs[-1]
        b = (1 / first.rate - 1 / last.rate) / (1 / first.size - 1 / last.size)
        return 1 / (1 / last.rate + b * (1 / size - 1 / last.size))


@experiment
def batch(
    size: Annotated[int, Range(1, 256, label="items for one permit")] = 8,
) -> Batches:
    """Hand `ITEMS` items from one thread to another, `size` (and others) for each permit."""
    sizes = sorted({*BATCHES, size})
    runs = []
    for done, each in enumerate(sizes):
        checkpoint(done, len(sizes), f"{each} items a permit")
        runs.append(min((_hand_over(each) for _ in range(2)), key=lambda run: run.seconds))
    return Batches(size, tuple(runs))


def _hand_over(size: int) -> Batch:
    slots, full = threading.Semaphore(2), threading.Semaphore(0)  # two batches under way
    line: deque[list[int]] = deque()  # append and popleft are atomic
    sizes = [min(size, ITEMS - start) for start in range(0, ITEMS, size)]

    def acquire(semaphore: threading.Semaphore) -> None:
        if not semaphore.acquire(timeout=DEADLINE):
            raise TimeoutError(f"no permit for {DEADLINE:g} s")

    def produce() -> None:
        for count in sizes:
            items = list(range(count))
            acquire(slots)
            line.append(items)
            full.release()

    def consume() -> int:
        received = 0
        for _ in sizes:
            acquire(full)
            items = line.popleft()
            slots.release()
            for _ in items:
                received += 1
        return received

    with crew(2) as pool:
        start = time.perf_counter()
        futures = [pool.submit(produce), pool.submit(consume)]
        _, received = gather(futures, timeout=DEADLINE)
        return Batch(size, len(sizes), received, time.perf_counter() - start)


def plot_batch(result: Batches) -> plots.Picture:
    """Items a second over the batch size."""
    fig, ax = plots.figure(6.5, 3.2)
    sizes = [run.size for run in result.runs]
    expected = [result.expected_rate(size) for size in sizes]
    ax.loglog(sizes, expected, "--", color=plots.color("theory"), label="1 / (a + b / size)")
    rates = [run.rate for run in result.runs]
    ax.loglog(sizes, rates, "o-", color=plots.color("measured"), label="measured")
    ax.axvline(result.chosen, color=plots.ORANGE, linewidth=6, alpha=0.25)
    ax.set_xticks(sizes, [f"{size}" for size in sizes])
    ax.xaxis.minorticks_off()
    ax.set_xlabel("items for one permit", fontsize=9)
    ax.set_title("items a second", loc="left")
    ax.legend(frameon=False, fontsize=9)
    return fig
