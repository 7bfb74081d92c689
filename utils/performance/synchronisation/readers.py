"""When a reader/writer lock pays: not when reading is short.

Readers share an `RWLock`, so with k threads and a share r of reads the holds of a long section take
1 - r + r/k of the time they take one after the other: Amdahl's law, with the writes as the serial
part. (G. Amdahl, "Validity of the single processor approach to achieving large scale computing
capabilities", AFIPS 1967.) At most that: it needs k readers at once, all the time.

But the lock has to count its readers, under a mutex of its own, twice for each visit. When the
section is short, that costs more than the sharing can gain. Nor does a lock make cores: on one
core, or in Python code under the GIL, readers that are let in together still take turns. The
threads here sleep inside, which needs neither core nor GIL.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import current_thread
from typing import Annotated

from utils.core import bench, plots
from utils.core.experiment import Range, checkpoint, current, experiment, gather
from utils.core.trace import Recorder, Trace, now
from utils.core.workers import crew, lanes
from utils.performance.laws.formulas import amdahl
from utils.threads.primitives.mutex import Mutex
from utils.threads.primitives.rwlock import RWLock

SHARES = (0.0, 0.5, 0.9, 1.0)  # of reads
HOLDS = (0.0, 0.0001, 0.0005, 0.002)  # seconds asleep inside; 0: only a look at a dictionary
VISITS = 40  # of all threads together, and more when they are short
DEADLINE = 20.0  # seconds for anything that blocks

Visit = tuple[bool, float]  # does it read, and for how many seconds
Doors = Mapping[bool, tuple[Callable[[], object], Callable[[], object]]]  # how to get in and out


def _mutex() -> Doors:
    mutex = Mutex("mutex")
    return dict.fromkeys((True, False), (mutex.acquire, mutex.release))


def _rwlock() -> Doors:
    lock = RWLock("writer", "rwlock")
    return {
        True: (lock.acquire_read, lock.release_read),
        False: (lock.acquire_write, lock.release_write),
    }


KINDS: dict[str, Callable[[], Doors]] = {"Mutex": _mutex, "RWLock": _rwlock}


def _visits(reads: float, hold: float, threads: int) -> list[list[Visit]]:
    """What each thread does: the shares exact, the order random and the same for both locks."""
    each = round(VISITS / threads) if hold else 500
    plan = [(number < round(reads * each * threads), hold) for number in range(each * threads)]
    random.Random(each).shuffle(plan)
    return [plan[first::threads] for first in range(threads)]


def _run(doors: Doors, plan: list[list[Visit]], recorder: Recorder | None = None) -> float:
    """Seconds until every thread has made its visits."""
    control, table = current(), {"key": "value"}

    def work(visits: list[Visit]) -> None:
        lane = current_thread().name
        for read, hold in visits:
            if control.cancelled:
                return
            enter, leave = doors[read]
            came = now()
            enter()
            inside = now()
            if hold:
                time.sleep(hold)
            else:
                table["key"]
            left = now()
            leave()
            if recorder:
                recorder.add(lane, "lock", "waits", came, inside)
                recorder.add(lane, "decode" if read else "compute", "", inside, left)

    with crew(len(plan)) as pool:
        start = now()
        gather([pool.submit(work, visits) for visits in plan], timeout=DEADLINE)
        return (now() - start) / 1e9


@dataclass(frozen=True)
class Table:
    """`ratio[i][j]`: RWLock's throughput over Mutex's, for `HOLDS[i]` and `SHARES[j]`."""

    threads: int
    ratio: tuple[tuple[float, ...], ...]


@experiment
def table(threads: Annotated[int, Range(1, 8)] = 4) -> Table:
    """Each hold with each share of reads, under both locks in turns."""
    total, ratio = len(HOLDS) * len(SHARES), []
    for row, hold in enumerate(HOLDS):
        ratio.append(())
        for column, reads in enumerate(SHARES):
            checkpoint(row * len(SHARES) + column, total, f"{reads:.0%} reads")
            plan = _visits(reads, hold, threads)
            turns = [
                _run(_mutex(), plan) / _run(_rwlock(), plan) for _ in range(3 if hold < 1e-3 else 1)
            ]
            ratio[-1] += (statistics.median(turns),)
    return Table(threads, tuple(ratio))


def plot_table(result: Table) -> plots.Picture:
    """The grid, with what Amdahl's law promises for long holds below the shares."""
    fig, ax = plots.figure(7, 3)
    rows = [bench.seconds(hold) if hold else "a look-up" for hold in HOLDS]
    columns = [f"{r:.0%} reads\n(→ {amdahl(result.threads, 1 - r):.3g})" for r in SHARES]
    texts = [[f"{value:.2f}" for value in row] for row in result.ratio]
    plots.heat_map(ax, result.ratio, texts, rows, columns, top=max(1.0, result.threads))
    ax.set_ylabel("one hold", fontsize=9)
    title = f"threads: {result.threads}; throughput of RWLock ÷ Mutex (→ for long holds)"
    ax.set_title(title, loc="left")
    return fig


@dataclass(frozen=True)
class Visits:
    """The same visits under both locks: waits are "lock", reads "decode", writes "compute"."""

    threads: int
    reads: float
    hold: float
    trace: dict[str, Trace]

    @property
    def ratio(self) -> float:
        """Throughput of RWLock over Mutex."""
        return self.trace["Mutex"].duration / self.trace["RWLock"].duration

    @property
    def expected(self) -> float:
        return amdahl(self.threads, 1 - self.reads)


@experiment
def visit(
    reads: Annotated[float, Range(0, 1, 0.05, label="share of reads")] = 0.9,
    hold_ms: Annotated[float, Range(0.1, 10, 0.1, label="ms inside")] = 5.0,
    threads: Annotated[int, Range(1, 8)] = 4,
) -> Visits:
    """The same visits, once through a Mutex and once through an RWLock (writers first)."""
    plan, traces = _visits(reads, hold_ms / 1e3, threads), {}
    for done, (kind, make) in enumerate(KINDS.items()):
        checkpoint(done, len(KINDS), kind)
        recorder = Recorder()
        _run(make(), plan, recorder)
        traces[kind] = recorder.trace()
    return Visits(threads, reads, hold_ms / 1e3, traces)


def plot(result: Visits) -> plots.Picture:
    """Who reads, writes and waits, one lock above the other on one scale."""
    fig, axes = plots.figure(9, 1.6 + 0.5 * result.threads, rows=2, sharex=True)
    until = max(trace.duration for trace in result.trace.values())
    titles = {
        "Mutex": "Mutex: one at a time",
        "RWLock": f"RWLock: {result.ratio:.2f} times as fast (theory {result.expected:.2f})",
    }
    for ax, (kind, trace) in zip(axes, result.trace.items(), strict=True):
        plots.timeline(ax, trace, lanes=lanes(result.threads), title=titles[kind], until=until)
    axes[0].set_xlabel("")
    names = {"lock": "waits", "decode": "reads", "compute": "writes"}
    plots.legend(fig, list(names), names)
    return fig
