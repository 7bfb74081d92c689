"""The same eight tasks, done by one worker and by several: who gains, and why the others don't.

Three kinds of work × three vehicles (threads, processes, coroutines) × a number of workers. The
theory is two questions: how many workers can run at the same time, and in how many rounds are
eight tasks done?
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from matplotlib.axes import Axes

from utils.core import machine, plots
from utils.core.experiment import Range, checkpoint, experiment, gather
from utils.core.trace import Span, Trace, now
from utils.core.workers import crew, intra_op, process_crew
from utils.overview import work as jobs

Kind = Literal["python", "waiting", "torch"]
Vehicle = Literal["threads", "processes", "asyncio"]
TASKS = 8
_NOUNS = {"threads": "thread", "processes": "process", "asyncio": "coroutine"}
DEADLINE = 60.0  # seconds for anything that blocks


@dataclass(frozen=True)
class Race:
    """`alone`: one worker, no vehicle at all. `together`: `workers` of them in the vehicle."""

    work: Kind
    vehicle: Vehicle
    workers: int
    cores: int
    gil: bool
    alone: Trace
    together: Trace
    startup: float  # seconds to get the workers ready, not part of the race
    cores_kept_busy: float  # CPU seconds a second, during `together`
    use: machine.CoreUse

    @property
    def speedup(self) -> float:
        return self.alone.duration / self.together.duration

    @property
    def expected(self) -> float:
        return expected_speedup(self.work, self.vehicle, self.workers, self.cores, self.gil)


def expected_speedup(work: Kind, vehicle: Vehicle, workers: int, cores: int, gil: bool) -> float:
    """The speed-up on an ideal machine.

    The tasks are done in rounds, one a worker. Waiting needs no core, so a round takes as long
    as one task. Computing needs cores, which the system shares out evenly among more workers than
    there are; and it needs the right to run: coroutines share one thread, and pure-Python threads
    share the GIL where there is one.
    """
    if work == "waiting":
        at_once = workers
    elif vehicle == "asyncio" or (vehicle == "threads" and work == "python" and gil):
        at_once = 1
    else:
        at_once = cores
    rounds = [workers] * (TASKS // workers) + [TASKS % workers]
    return TASKS / sum(max(1, busy / at_once) for busy in rounds if busy)


@experiment
def race(
    work: Kind = "python",
    vehicle: Vehicle = "threads",
    workers: Annotated[int, Range(1, 8)] = 4,
    one_core: bool = False,
) -> Race:
    """Do `TASKS` tasks of one kind alone, then with `workers`; `one_core` pins both to one core.

    Raises OSError where Python cannot pin (macOS, Windows).
    """
    names = [f"task {number}" for number in range(1, TASKS + 1)]
    torch_threads = intra_op(1) if work == "torch" else nullcontext()
    with torch_threads, machine.pinned(1) if one_core else nullcontext():
        jobs.prepare(work)
        alone = Trace(_alone(work, names))
        began = time.perf_counter()
        with _VEHICLES[vehicle](work, workers) as run:
            startup = time.perf_counter() - began
            with machine.CoreMeter(interval=0.05) as meter:
                cpu, start = machine.cpu_seconds(), time.perf_counter()
                spans = run(names)
                elapsed = time.perf_counter() - start
                cpu = machine.cpu_seconds() - cpu
    return Race(
        work,
        vehicle,
        workers,
        1 if one_core else machine.cores(),
        machine.gil(),
        alone,
        Trace(_number_lanes(spans, vehicle)),
        startup,
        cpu / elapsed,
        meter.use,
    )


def _alone(work: Kind, names: Sequence[str]) -> Iterator[Span]:
    for done, name in enumerate(names):
        checkpoint(done, 2 * TASKS, "alone")
        yield jobs.timed(work, name, "alone")


Run = Callable[[Sequence[str]], list[Span]]


@contextmanager
def _threads(work: Kind, workers: int) -> Iterator[Run]:
    with crew(workers) as pool:
        yield lambda names: _through(pool, work, names)


@contextmanager
def _processes(work: Kind, workers: int) -> Iterator[Run]:
    with process_crew(workers, jobs.prepare, work, before=TASKS, total=2 * TASKS) as pool:
        yield lambda names: _through(pool, work, names)


@contextmanager
def _asyncio(work: Kind, workers: int) -> Iterator[Run]:
    # A notebook's main thread already runs an event loop, and one thread holds only one: ours
    # runs in a thread of its own.
    with ThreadPoolExecutor(1, thread_name_prefix="event-loop") as pool:

        def run(names: Sequence[str]) -> list[Span]:
            future = pool.submit(asyncio.run, _coroutines(work, workers, names))
            return gather([future], timeout=DEADLINE)[0]

        yield run


async def _coroutines(work: Kind, workers: int, names: Sequence[str]) -> list[Span]:
    todo, spans = list(reversed(names)), []

    async def worker(lane: str) -> None:
        while todo:
            name = todo.pop()
            if work == "waiting":
                start = now()
                result = await asyncio.sleep(jobs.WAIT)
                spans.append(Span(lane, "sleep", name, start, now(), {"result": result}))
            else:  # nothing to await in a computation: the event loop stands still meanwhile
                spans.append(jobs.timed(work, name, lane))
                await asyncio.sleep(0)

    await asyncio.gather(*(worker(str(number)) for number in range(workers)))
    return spans


def _through(pool: Executor, work: Kind, names: Sequence[str]) -> list[Span]:
    futures = [pool.submit(jobs.timed, work, name) for name in names]
    return gather(futures, timeout=DEADLINE, note="together", before=TASKS, total=2 * TASKS)


def _number_lanes(spans: list[Span], vehicle: Vehicle) -> Iterator[Span]:
    """Call the workers 1, 2, 3 in order of appearance, whatever the system calls them."""
    numbers: dict[str, int] = {}
    for span in sorted(spans, key=lambda span: span.start):
        number = numbers.setdefault(span.lane, len(numbers) + 1)
        yield span._replace(lane=f"{_NOUNS[vehicle]} {number}")


_VEHICLES = {"threads": _threads, "processes": _processes, "asyncio": _asyncio}


def plot(result: Race) -> plots.Picture:
    """Both races on one scale, how busy the cores were, and the speed-up beside the theory."""
    lanes = len(result.together.lanes)
    fig = plots.Picture(figsize=(9, 2.9 + 0.22 * lanes), layout="constrained")
    grid = fig.add_gridspec(3, 2, height_ratios=[1.2, 0.7 + lanes * 0.55, 1.5], width_ratios=[5, 1])
    alone, together, busy = (plots.style(fig.add_subplot(grid[row, 0])) for row in range(3))
    bars = plots.style(fig.add_subplot(grid[:, 1]))
    until = max(result.alone.duration, result.together.duration) * 1.02
    where = "one core" if result.cores == 1 else f"{result.cores} cores"
    plots.timeline(alone, result.alone, until=until, title=f"{result.work} work, one worker")
    plural = ("es" if result.vehicle == "processes" else "s") if result.workers > 1 else ""
    title = f"{result.workers} {_NOUNS[result.vehicle]}{plural} on {where}"
    if result.vehicle == "processes":
        title += f" (not counted: {result.startup:.1f} s to start them)"
    plots.timeline(together, result.together, until=until, title=title)
    for ax in (alone, together):
        ax.set_xlabel("")
        ax.tick_params(labelbottom=False)
    _plot_use(busy, result, until)
    _plot_speedup(bars, result)
    return fig


def _plot_use(ax: Axes, result: Race, until: float) -> None:
    """A row a core, the darker the busier; other programs of the machine show as well."""
    edges = [(moment - result.together.start) / 1e9 for moment in result.use.at]
    for left, right, busy in zip(edges[:-1], edges[1:], result.use.busy, strict=True):
        for core, share in enumerate(busy):
            ax.broken_barh(
                [(left, right - left)], (core - 0.4, 0.8), color="black", alpha=share, lw=0
            )
    cores = len(result.use.busy[0]) if result.use.busy else 1
    ax.set(xlim=(0, until), ylim=(cores - 0.4, -0.6), yticks=range(cores))
    ax.set_yticklabels([f"core {core}" if cores <= 8 else "" for core in range(cores)])
    title = f"cores, the darker the busier; this race kept {result.cores_kept_busy:.1f} busy"
    ax.set_title(title, loc="left")
    ax.set_xlabel("seconds", fontsize=9)
    ax.grid(visible=False)


def _plot_speedup(ax: Axes, result: Race) -> None:
    numbers = {"theory": result.expected, "measured": result.speedup}
    drawn = ax.bar(list(numbers), list(numbers.values()), color=[*map(plots.color, numbers)])
    ax.bar_label(drawn, fmt="%.2f", fontsize=9, padding=2)
    ax.set_title("times as fast", loc="left")
    ax.margins(y=0.15)


Table = dict[tuple[Kind, Vehicle], Race]


def table(workers: int = 2) -> Table:
    """Every kind of work in every vehicle."""
    return {
        (work, vehicle): race(work, vehicle, workers)
        for work in get_args(Kind)
        for vehicle in get_args(Vehicle)
    }


def plot_table(races: Table) -> plots.Picture:
    """A row a kind of work, a column a vehicle: measured speed-up, and the theory's in brackets."""
    fig, ax = plots.figure(6.5, 2.8)
    kinds, vehicles = get_args(Kind), get_args(Vehicle)
    speedups = [[races[work, vehicle].speedup for vehicle in vehicles] for work in kinds]
    ax.imshow(speedups, cmap="Blues", vmin=0, vmax=1.5 * max(map(max, speedups)), aspect="auto")
    for (work, vehicle), result in races.items():
        text = f"{result.speedup:.2f} ×\n(theory {result.expected:g})"
        at = vehicles.index(vehicle), kinds.index(work)
        ax.text(*at, text, ha="center", va="center", fontsize=10, color=plots.INK)
    ax.set_xticks(range(len(vehicles)), vehicles)
    ax.set_yticks(range(len(kinds)), kinds)
    ax.xaxis.tick_top()
    ax.spines[:].set_visible(False)
    ax.grid(visible=False)
    return fig
