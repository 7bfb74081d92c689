"""Thread models: whose threads are they, and how many does the operating system see?

- 1:1 (kernel-level): every thread is one that the system schedules. Linux (pthreads(7): "each
  thread maps to a kernel scheduling entity"), and so CPython's `threading` there.
- N:1 (user-level): the program switches among N tasks on one kernel thread. Cheap and concurrent,
  but never parallel. An asyncio event loop is this; a coroutine that computes stops all others.
- M:N: M tasks on N kernel threads. Go's goroutines (runtime/HACKING.md: G, M and P) and Java's
  virtual threads (JEP 444) move a task from one kernel thread to another. The M:N here is the
  smallest: N event loops, each coroutine bound to one of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import psutil

from utils.core import bench, machine, plots
from utils.core.bench import Sample
from utils.core.experiment import Range, checkpoint, experiment, gather
from utils.core.workers import crew

Model = Literal["1:1", "M:N", "N:1"]
DEADLINE = 30.0  # seconds for anything that blocks
_DATA = bytes(2**20)  # hashed outside the GIL in a millisecond or so
_BLOCKS = 24  # of _DATA, a task


@dataclass(frozen=True)
class Census:
    """`ran_on[task]` is the native id of the thread that ran it.

    `counted` is how many threads of this process the system listed meanwhile, ours and others.
    """

    model: Model
    ran_on: tuple[int, ...]
    counted: int

    @property
    def kernel_threads(self) -> int:
        return len(set(self.ran_on))


@experiment
def census(
    tasks: Annotated[int, Range(1, 24)] = 12,
    loops: Annotated[int, Range(1, 4, label="event loops (M:N)")] = 2,
) -> dict[Model, Census]:
    """Run `tasks` tasks in each model, all in progress at once, and note who ran them."""
    return {"1:1": one_to_one(tasks), "M:N": m_to_n(tasks, loops), "N:1": m_to_n(tasks, 1)}


def one_to_one(tasks: int) -> Census:
    """A thread a task, all alive at once: so no native id can be used twice."""
    everyone = threading.Barrier(tasks + 1)
    ran_on: list[int] = []

    def task() -> None:
        ran_on.append(threading.get_native_id())
        everyone.wait(DEADLINE)  # I have noted my id
        everyone.wait(DEADLINE)  # all have been counted

    threads = [threading.Thread(target=task) for _ in range(tasks)]
    for thread in threads:
        thread.start()
    everyone.wait(DEADLINE)
    counted = _counted_by_system()
    everyone.wait(DEADLINE)
    for thread in threads:
        thread.join(DEADLINE)
    return Census("1:1", tuple(ran_on), counted)


def m_to_n(tasks: int, loops: int) -> Census:
    """Coroutines dealt out to `loops` event loops; with one loop this is N:1."""
    if tasks < 1 or loops < 1:
        raise ValueError(f"tasks={tasks}, loops={loops}: give at least 1 of each")

    async def task() -> int:
        await asyncio.sleep(0)  # let the others of this loop begin
        return threading.get_native_id()

    everyone = threading.Barrier(loops)

    async def loop(number: int) -> tuple[list[int], int]:
        ran_on = await asyncio.gather(*(task() for _ in range(number, tasks, loops)))
        counted = _counted_by_system()
        everyone.wait(DEADLINE)  # no loop ends before all have counted
        return ran_on, counted

    parts = _on_loops([loop(number) for number in range(loops)])
    ran_on = tuple(ident for ids, _ in parts for ident in ids)
    return Census("N:1" if loops == 1 else "M:N", ran_on, parts[0][1])


def _counted_by_system() -> int:
    return psutil.Process().num_threads()


def _on_loops(coroutines: list[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Run each coroutine in an event loop and thread of its own (a notebook's own loop is busy)."""
    with ThreadPoolExecutor(len(coroutines), thread_name_prefix="event-loop") as pool:
        return gather([pool.submit(asyncio.run, c) for c in coroutines], timeout=DEADLINE)


def plot(result: dict[Model, Census]) -> plots.Picture:
    """Tasks above, kernel threads below, a line from each task to the thread that ran it."""
    fig, axes = plots.figure(9, 2.3, cols=len(result))
    for ax, (model, census) in zip(axes, result.items(), strict=True):
        tasks = len(census.ran_on)
        threads = list(dict.fromkeys(census.ran_on))
        below = {ident: (n + 0.5) / len(threads) * tasks - 0.5 for n, ident in enumerate(threads)}
        for task, ident in enumerate(census.ran_on):
            ax.plot([task, below[ident]], [1, 0], color=plots.GREY, linewidth=0.8, zorder=1)
        ax.scatter(range(tasks), [1] * tasks, s=36, color=plots.ORANGE)
        ax.scatter(below.values(), [0] * len(below), s=90, marker="s", color=plots.BLUE)
        ax.set_title(f"{model}: {tasks} on {len(threads)}", loc="left")
        ax.set(xlim=(-1, tasks), ylim=(-0.4, 1.4), xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.grid(visible=False)
    axes[0].set_yticks([0, 1], ["kernel\nthreads", "tasks"])
    return fig


@dataclass(frozen=True)
class Tradeoff:
    """Per model: seconds to create and finish one task, seconds a switch, and the speed-up."""

    tasks: int
    create: dict[Model, Sample]
    switch: dict[Model, Sample]
    speedup: dict[Model, Sample]

    def expected_speedup(self, model: Model) -> float:
        """As many hashes at once as there are tasks and cores; on one kernel thread, one."""
        return 1 if model == "N:1" else min(self.tasks, machine.cores())


@experiment
def tradeoff(
    count: Annotated[int, Range(100, 2000, 100, label="tasks to create, switches")] = 500,
    tasks: Annotated[int, Range(1, 8, label="tasks that hash")] = min(8, machine.cores()),
) -> Tradeoff:
    """Measure what a task costs in each model, and what it gains when it computes.

    The computing is hashing, which CPython does outside the GIL, so only the model limits it.
    """
    loops = min(tasks, machine.cores())
    create = bench.compare(
        {"1:1": lambda: _create_threads(count), "N:1": lambda: _on_loops([_create(count)])},
        repeats=3,
    )
    switch = bench.compare(
        {"1:1": lambda: _switch_threads(count), "N:1": lambda: _on_loops([_switch(count)])},
        repeats=3,
    )
    checkpoint(0, 0, "hashing")
    with crew(tasks) as pool:
        works: dict[str, Callable[[], object]] = {
            "alone": lambda: [_hash() for _ in range(tasks)],
            "1:1": lambda: gather([pool.submit(_hash) for _ in range(tasks)], timeout=DEADLINE),
            "M:N": lambda: _on_loops([_hashes(range(n, tasks, loops)) for n in range(loops)]),
            "N:1": lambda: _on_loops([_hashes(range(tasks))]),
        }
        took = bench.compare(works, repeats=3)
    return Tradeoff(
        tasks,
        {model: _each(sample, count) for model, sample in create.items()},
        {model: _each(sample, count) for model, sample in switch.items()},
        {model: bench.ratio(took["alone"], took[model]) for model in get_args(Model)},
    )


def _each(sample: Sample, count: int) -> Sample:
    return Sample(tuple(value / count for value in sample.values))


def _create_threads(count: int) -> None:
    for _ in range(count):
        thread = threading.Thread(target=int)
        thread.start()
        thread.join(DEADLINE)


async def _create(count: int) -> None:
    for _ in range(count):
        await asyncio.create_task(asyncio.sleep(0))


def _switch_threads(count: int) -> None:
    """Two threads hand a token to and fro: each waits until the other has handed it over."""
    mine, yours = threading.Lock(), threading.Lock()
    yours.acquire()

    def play(wait_for: threading.Lock, hand_to: threading.Lock) -> None:
        for _ in range(count // 2):
            if not wait_for.acquire(timeout=DEADLINE):
                raise TimeoutError(f"the token did not come within {DEADLINE} s")
            hand_to.release()

    threads = [threading.Thread(target=play, args=pair) for pair in ((mine, yours), (yours, mine))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)


async def _switch(count: int) -> None:
    async def play() -> None:
        for _ in range(count // 2):
            await asyncio.sleep(0)  # gives the loop back; the other task is next

    await asyncio.gather(play(), play())


def _hash() -> None:
    for _ in range(_BLOCKS):
        hashlib.sha256(_DATA).digest()


async def _hashes(tasks: range) -> None:
    async def one() -> None:
        _hash()  # nothing to await in a computation

    await asyncio.gather(*(one() for _ in tasks))


def plot_tradeoff(result: Tradeoff) -> plots.Picture:
    """What a task costs (left, middle: less is better) and what it gains (right)."""
    fig, axes = plots.figure(9, 2.8, cols=3)
    for ax, title, samples in (
        (axes[0], "create and finish: µs a task", result.create),
        (axes[1], "µs a switch", result.switch),
    ):
        values = [1e6 * sample.median for sample in samples.values()]
        bars = ax.bar(list(samples), values, color=plots.color("measured"), width=0.6)
        ax.bar_label(bars, fmt="%.1f", fontsize=9, padding=2)
        ax.set_title(title, loc="left")
        ax.margins(y=0.15)
    ax = axes[2]
    models = list(result.speedup)
    bars = ax.bar(
        models,
        [sample.median for sample in result.speedup.values()],
        color=plots.color("measured"),
        width=0.6,
    )
    ax.bar_label(bars, fmt="%.2f", fontsize=9, label_type="center", color="white")
    for place, model in enumerate(models):
        expected = result.expected_speedup(model)
        ax.hlines(expected, place - 0.4, place + 0.4, color=plots.color("theory"), linestyle="--")
    ax.set_title(f"{result.tasks} tasks hash: times as fast", loc="left")
    ax.margins(y=0.15)
    return fig
