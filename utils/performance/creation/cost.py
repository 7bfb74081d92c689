"""What a start costs: of a call, a coroutine, a task, work for a pool, a thread, a process.

Each is started, does nothing, and is waited for, one after the other. What is included:

- call: the loop around it as well. coroutine: the object and one `await`.
- task: a coroutine that an event loop has to schedule. The loop asks the kernel for events each
  time round, but no other thread takes part.
- pool round trip: a future and two hand-overs between threads, but no creation.
- thread: a stack, the kernel's part, Python's part, the first dispatch, and `join`.
- process: a new interpreter ("spawn"), what `multiprocessing` imports in it, the program's main
  module, which is imported again (in a notebook, the kernel's small launcher), and its end. The
  target, `int`, needs no import.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from utils.core import bench, plots
from utils.core.bench import Sample
from utils.core.experiment import Range, experiment
from utils.core.workers import crew

COLORS = {
    "call": plots.GREY,
    "coroutine": plots.SKY,
    "task": plots.BLUE,
    "pool round trip": plots.GREEN,
    "thread": plots.VERMILION,
    "process": plots.PURPLE,
}
DEADLINE = 30.0  # seconds for anything that blocks


@dataclass(frozen=True)
class Costs:
    """`each[kind]`: seconds for one start."""

    each: dict[str, Sample]

    def share(self, kind: str, work: float) -> float:
        """What the start takes of the whole when it is followed by `work` seconds."""
        cost = self.each[kind].median
        return cost / (cost + work)

    def work_for(self, kind: str, share: float) -> float:
        """Seconds of work after which the start took only `share` of the whole."""
        if not 0 < share < 1:
            raise ValueError(f"share={share!r} is not allowed: give a number between 0 and 1")
        return self.each[kind].median * (1 - share) / share


@experiment
def start(count: Annotated[int, Range(50, 1000, 50, label="starts of each kind")] = 300) -> Costs:
    """Start `count` of each kind, five times in turns (of processes only one each time)."""
    runner = asyncio.Runner()  # in the crew's thread: a notebook's own loop is busy
    with crew(1) as pool:
        try:
            works: dict[str, Callable[[], object]] = {
                "call": partial(calls, count),
                "coroutine": partial(coroutines, count),
                "task": lambda: pool.submit(runner.run, tasks(count)).result(DEADLINE),
                "pool round trip": partial(round_trips, pool, count),
                "thread": partial(threads, count),
                "process": process,
            }
            took = bench.compare(works)
        finally:
            pool.submit(runner.close).result(DEADLINE)
    number = dict.fromkeys(works, count) | {"process": 1}
    return Costs(
        {kind: Sample(tuple(t / number[kind] for t in took[kind].values)) for kind in works}
    )


def nothing() -> None: ...


async def nothing_async() -> None: ...


def calls(count: int) -> None:
    for _ in range(count):
        nothing()


def coroutines(count: int) -> None:
    async def awaits() -> None:
        for _ in range(count):
            await nothing_async()

    with contextlib.suppress(StopIteration):  # its return; what never pauses needs no event loop
        awaits().send(None)


async def tasks(count: int) -> None:
    for _ in range(count):
        await asyncio.create_task(nothing_async())


def round_trips(pool: ThreadPoolExecutor, count: int) -> None:
    for _ in range(count):
        pool.submit(nothing).result(DEADLINE)


def threads(count: int, work: Callable[[], object] = nothing) -> None:
    for _ in range(count):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(DEADLINE)


def process() -> None:
    child = multiprocessing.get_context("spawn").Process(target=int)
    child.start()
    try:
        child.join(DEADLINE)
        if child.exitcode != 0:
            raise RuntimeError(f"a process that does nothing: exit code {child.exitcode}")
    finally:
        child.kill()
        child.join(DEADLINE)


def plot(result: Costs) -> plots.Picture:
    """What one start costs, and which share of the whole that is when work follows."""
    fig, (ax, shares) = plots.figure(9.5, 3.2, cols=2, gridspec_kw={"width_ratios": [5, 4]})
    costs = [sample.median for sample in result.each.values()]
    bars = ax.barh(list(result.each), costs, color=[COLORS[kind] for kind in result.each])
    ax.bar_label(bars, [*map(bench.seconds, costs)], padding=4, fontsize=9)
    ax.set_xlim(min(costs) / 2, max(costs) * 20)
    ax.invert_yaxis()
    ax.set_title("start one and wait for its end", loc="left")
    lengths = [10 ** (power / 10) for power in range(-60, -9)]
    for kind in ("task", "pool round trip", "thread"):
        curve = [100 * result.share(kind, length) for length in lengths]
        shares.plot(lengths, curve, color=COLORS[kind], label=kind)
    shares.axhline(10, color=plots.GREY, linewidth=0.8, linestyle="--", label="10 %")
    shares.set_title("share of the start [%]", loc="left")
    shares.legend(frameon=False, fontsize=9)
    for axes, what in ((ax, "seconds"), (shares, "seconds of work after the start")):
        axes.set_xscale("log")
        axes.set_xlabel(what, fontsize=9)
    return fig
