"""What cores share although the program doesn't: cache lines, and the way to the memory.

*False sharing*: caches hold whole lines (64 bytes on most machines, 128 on Apple's), and a core
that writes needs the line for itself. Two counters in one line make it travel between the cores,
though neither thread ever touches the other's counter. Results stay right; only the time shows it.
(W. Bolosky, M. Scott, "False sharing and its effect on shared memory performance", SEDMS 1993.)

*Bandwidth*: all cores read from one memory. Threads that stream through big arrays share what it
gives; threads that compute in their own caches don't.

Both loops run in torch, outside the GIL.
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import psutil
import torch

from utils.core import machine, plots
from utils.core.experiment import Range, checkpoint, current, experiment, gather
from utils.core.workers import crew, intra_op

MOST = max(2, 2 * machine.cores())  # threads
DISTANCES = (8, 16, 32, 64, 128, 256)  # bytes from one counter to the next
PIECE, PIECES = 2**14, 400  # increments of a call, and calls of each thread in one measurement
ROUNDS = 5  # measurements of each kind, in turns
DEADLINE = 30.0  # seconds for anything that blocks
SIBLINGS = "topology/thread_siblings_list"
_WORD = 8  # bytes of a counter
# CPU time of this thread in ns. Windows counts it in steps of 16 ms, so there the clock must do.
_cpu_time = time.perf_counter_ns if sys.platform == "win32" else time.thread_time_ns


@dataclass(frozen=True)
class Counters:
    """ns of CPU time of an increment: one thread alone, and `threads` at each distance (bytes).

    `wrong` is how many counters did not end at the number of their increments. Two hardware
    threads of one physical core share its cache, so between them no line has to travel.
    """

    threads: int
    physical_cores: int | None  # None: not known
    alone: float
    together: dict[int, float]
    wrong: int


@experiment
def false_sharing(
    threads: Annotated[int, Range(1, MOST)] = 2,
) -> Counters:
    """Let each thread increment its own counter; vary how far apart the counters are."""
    cells = torch.zeros(DISTANCES[-1] // _WORD * (MOST + 1), dtype=torch.int64)
    # The allocator may begin in the middle of a line.
    first = -(cells.data_ptr() // _WORD) % (DISTANCES[-1] // _WORD)
    alone: list[float] = []
    together: dict[int, list[float]] = {distance: [] for distance in DISTANCES}
    wrong = 0
    with intra_op(1), crew(threads) as pool:
        for round_ in range(ROUNDS):
            checkpoint(round_, ROUNDS, "counting")
            alone.append(_count(pool, cells, [first]))
            for distance, taken in together.items():
                where = [first + index * distance // _WORD for index in range(threads)]
                taken.append(_count(pool, cells.zero_(), where))
                wrong += sum(int(cells[cell]) != PIECE * PIECES for cell in where)
    medians = {distance: statistics.median(taken) for distance, taken in together.items()}
    physical = psutil.cpu_count(logical=False)
    return Counters(threads, physical, statistics.median(alone), medians, wrong)


def _count(pool: Executor, cells: torch.Tensor, where: Sequence[int]) -> float:
    """ns of CPU time an increment, when a thread for each cell of `where` increments it.

    While a core waits for a line, its thread counts as running; while other programs have the
    core, it doesn't.
    """
    ones = torch.ones(PIECE, dtype=torch.int64)
    everyone, cores = threading.Barrier(len(where)), _cores()

    def increment(cell: int) -> float:
        target = torch.full_like(ones, cell)
        _keep_to(cores, where.index(cell))
        everyone.wait(DEADLINE)
        start = _cpu_time()
        for _ in range(PIECES):
            cells.index_add_(0, target, ones)  # a loop in C++: cells[target[i]] += ones[i]
        return (_cpu_time() - start) / (PIECE * PIECES)

    futures = [pool.submit(increment, cell) for cell in where]
    return statistics.mean(gather(futures, timeout=DEADLINE))


def _cores() -> list[int]:
    """The cores this process may use, one of each physical core first.

    Two hardware threads of one core share its cache: between them nothing has to travel. Empty
    where Python cannot tell (macOS, Windows).
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    ranks: dict[str, int] = {}  # how many of a physical core's threads came before
    order = []
    for core in sorted(os.sched_getaffinity(0)):
        try:
            siblings = Path(f"/sys/devices/system/cpu/cpu{core}/{SIBLINGS}").read_text()
        except OSError:
            siblings = str(core)
        ranks[siblings] = rank = ranks.get(siblings, -1) + 1
        order.append((rank, core))
    return [core for _, core in sorted(order)]


def _keep_to(cores: Sequence[int], number: int) -> None:
    """Keep this thread on one of `cores`, so that no two share one while another is idle."""
    if cores:
        os.sched_setaffinity(0, {cores[number % len(cores)]})


def plot_false_sharing(result: Counters) -> plots.Picture:
    """ns of an increment over the distance of the counters."""
    fig, ax = plots.figure(6.5, 3)
    distances = list(result.together)
    label = f"{result.threads} threads, a counter each"
    measured = plots.color("measured")
    ax.plot(distances, list(result.together.values()), "o-", color=measured, label=label)
    ax.axhline(result.alone, linestyle="--", color=plots.GREY, label="one thread alone")
    ax.set_xscale("log", base=2)
    ax.set_xticks(distances, distances)
    ax.set_ylim(0, 1.1 * max(result.alone, *result.together.values()))
    cores = f" ({result.physical_cores} physical cores)" if result.physical_cores else ""
    ax.set_xlabel(f"bytes from one counter to the next{cores}", fontsize=9)
    ax.set_title("ns of CPU time for one increment", loc="left")
    fig.legend(loc="outside lower center", frameon=False, fontsize=9, ncols=2)
    return fig


# -------------------------------------------------------------------------------- bandwidth
Work = Literal["stream", "multiply"]
SIDE = 160  # of a matrix: the two of a thread are 200 kB
SECONDS = 0.2  # of one measurement


@dataclass(frozen=True)
class Scaling:
    """Rates over the number of threads: GB/s of streaming, GFLOP/s of small matrix products.

    A thread's rate is its work by its CPU time, so other programs on its core don't count.
    """

    megabytes: float
    threads: tuple[int, ...]
    rates: dict[Work, tuple[float, ...]]

    def speedup(self, work: Work) -> list[float]:
        """Times as fast as one thread."""
        return [rate / self.rates[work][0] for rate in self.rates[work]]


@experiment
def bandwidth(megabytes: Literal[1, 8, 64] = 64) -> Scaling:
    """Let one thread, two, … one a core read arrays of `megabytes`, and multiply small matrices."""
    cores = machine.cores()
    threads = tuple(sorted({1, min(2, cores), (cores + 1) // 2, cores}))
    rates: dict[Work, list[float]] = {work: [] for work in get_args(Work)}
    with intra_op(1):
        for done, count in enumerate(threads):
            checkpoint(done, len(threads), f"{count} threads")
            for work, taken in rates.items():
                taken.append(_rate(work, count, megabytes))
    return Scaling(megabytes, threads, {work: tuple(taken) for work, taken in rates.items()})


def _rate(work: Work, threads: int, megabytes: float) -> float:
    """10⁹ bytes or operations a second, all threads together."""
    control, everyone, cores = current(), threading.Barrier(threads), _cores()

    def run(number: int) -> float:
        call, amount = _call(work, megabytes)
        torch.get_num_threads()  # a new thread doesn't know of `intra_op(1)` before it asks
        _keep_to(cores, number)
        call()  # the library's first call sets things up
        everyone.wait(DEADLINE)
        calls, end, start = 0, time.monotonic() + SECONDS, _cpu_time()
        while time.monotonic() < end and not control.cancelled:
            call()
            calls += 1
        return calls * amount / max(_cpu_time() - start, 1)

    with crew(threads) as pool:
        futures = [pool.submit(run, number) for number in range(threads)]
        return sum(gather(futures, timeout=DEADLINE))


def _call(work: Work, megabytes: float) -> tuple[Callable[[], object], float]:
    """What a thread does over and over, with memory of its own, and how much that is."""
    if work == "stream":
        array = torch.ones(int(megabytes * 2**18))
        return array.sum, array.nbytes
    square, out = torch.ones(SIDE, SIDE), torch.empty(SIDE, SIDE)
    return lambda: torch.mm(square, square, out=out), 2 * SIDE**3


def plot_bandwidth(result: Scaling) -> plots.Picture:
    """Speed-up of both kinds of work over the number of threads."""
    fig, ax = plots.figure(6.5, 3)
    kinds: dict[Work, tuple[str, str]] = {
        "multiply": ("GFLOP/s", plots.BLUE),
        "stream": (f"GB/s, {result.megabytes:g} MB", plots.ORANGE),
    }
    for work, (unit, color) in kinds.items():
        rates = " → ".join(f"{rate:.3g}" for rate in result.rates[work])
        label = f"{work}: {rates} {unit}"
        ax.plot(result.threads, result.speedup(work), "o-", color=color, label=label)
    ax.plot(result.threads, result.threads, "--", color=plots.GREY, label="ideal")
    ax.set_xticks(result.threads)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("threads, each on a core of its own", fontsize=9)
    ax.set_title("times as fast as one thread", loc="left")
    fig.legend(loc="outside lower center", frameon=False, fontsize=9, ncols=3)
    return fig
