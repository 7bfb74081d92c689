"""What reusing threads saves: the same tasks by a new thread each, by a pool, and by one thread.

A thread is made, started, scheduled for the first time, ended and joined; all that happens once a
task, or once a worker. How much it matters depends on the task: a task far longer than it takes to
make a thread does not notice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from utils.core import machine, plots
from utils.core.experiment import Range, checkpoint, experiment, gather
from utils.performance import work
from utils.performance.pools.thread_pool import ThreadPool

TASKS, BATCH, ROUNDS = 300, 50, 3  # tasks a run, of which a batch is under way at once; runs
DEADLINE = 30.0  # seconds for anything that blocks

Task = Callable[[], None]


@dataclass(frozen=True)
class Way:
    """How the tasks of a run were done; the median of the runs, one of seconds."""

    seconds: float
    threads: int  # that did tasks, in one run
    switches: float | None  # voluntary, a task; None where the system doesn't count them

    @property
    def rate(self) -> float:
        """Tasks a second."""
        return TASKS / self.seconds


@dataclass(frozen=True)
class Reuse:
    """`TASKS` tasks of about `task_us` µs, by each way."""

    task_us: int
    workers: int
    ways: dict[str, Way]


@experiment
def reuse(
    task_us: Annotated[int, Range(0, 500, 10, label="µs a task")] = 20,
    workers: Annotated[int, Range(1, 16)] = 4,
) -> Reuse:
    """Do the same tasks by new threads, by a pool of `workers`, and by one worker."""
    size = round(task_us * 1e-6 * work.bytes_a_second(1))
    by = {
        "a new thread each": _by_new_threads,
        f"a pool of {workers}": partial(_by_pool, workers),
        "one thread": partial(_by_pool, 1),
    }
    runs: dict[str, list[Way]] = {name: [] for name in by}
    for round_ in range(ROUNDS):
        for name, way in by.items():
            checkpoint(round_, ROUNDS, name)
            runs[name].append(_observed(way, size))
    return Reuse(task_us, workers, {name: _median(ways) for name, ways in runs.items()})


def _observed(way: Callable[[Task], None], size: int) -> Way:
    who: list[str] = []  # a name is never given twice

    def task() -> None:
        work.hash_bytes(size)
        who.append(threading.current_thread().name)

    before, start = machine.switches(), time.perf_counter()
    way(task)
    seconds, after = time.perf_counter() - start, machine.switches()
    assert len(who) == TASKS
    slept = None if before is None or after is None else (after[0] - before[0]) / TASKS
    return Way(seconds, len(set(who)), slept)


def _by_new_threads(task: Task) -> None:
    for _ in range(0, TASKS, BATCH):
        threads = [threading.Thread(target=task) for _ in range(BATCH)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)


def _by_pool(workers: int, task: Task) -> None:
    with ThreadPool(workers) as pool:
        for _ in range(0, TASKS, BATCH):
            gather([pool.submit(task) for _ in range(BATCH)], timeout=DEADLINE)


def _median(ways: list[Way]) -> Way:
    return sorted(ways, key=lambda way: way.seconds)[len(ways) // 2]


def plot(result: Reuse) -> plots.Picture:
    """Tasks a second, the threads that did them, and how often somebody went to sleep."""
    fig, axes = plots.figure(9, 2.3, cols=3, sharey=True)
    ways = result.ways
    counted = all(way.switches is not None for way in ways.values())
    for ax, title, values, form in (
        (axes[0], "tasks a second", [way.rate for way in ways.values()], "{:,.0f}"),
        (axes[1], "threads that did them", [way.threads for way in ways.values()], "{:,.0f}"),
        (
            axes[2],
            "voluntary switches a task" if counted else "switches: not counted here",
            [way.switches or 0.0 for way in ways.values()],
            "{:.2f}" if counted else "",
        ),
    ):
        bars = ax.barh(list(ways), values, color=plots.color("measured"), height=0.6)
        ax.bar_label(bars, [form.format(value) for value in values], fontsize=9, padding=3)
        ax.set_title(title, loc="left")
        ax.set_xticks([])
        ax.margins(x=0.3)
        ax.grid(visible=False)
    axes[0].invert_yaxis()
    fig.suptitle(f"{TASKS} tasks of about {result.task_us} µs", x=0.01, ha="left", fontsize=11)
    return fig
