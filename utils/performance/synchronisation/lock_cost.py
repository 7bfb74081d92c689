"""What a lock costs: next to nothing while it is free, a sleep and a wake-up when it is not.

Uncontended, to acquire and release a lock is an atomic operation each. Contended, the loser goes to
sleep and has to be woken: the *hand-over* is a context switch, tens of times dearer. How much
that hurts depends on how long the lock is held: the longer, the less the hand-over counts.

Above both stands the bottleneck: when a share s of the work is inside one lock, the lock lets
at most 1/s times one thread's throughput through (P. Denning, J. Buzen, "The Operational Analysis
of Queueing Network Models", ACM Computing Surveys 10(3), 1978).
"""

from __future__ import annotations

import hashlib
import math
import statistics
import threading
from _thread import LockType, allocate_lock
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import repeat
from typing import Annotated

from utils.core import bench, machine, plots
from utils.core.bench import Sample
from utils.core.experiment import Range, checkpoint, current, experiment, gather
from utils.core.trace import now
from utils.core.workers import crew
from utils.threads.primitives.mutex import Mutex
from utils.threads.primitives.semaphore import Semaphore

DEADLINE = 20.0  # seconds for anything that blocks
HANDED = "Lock, handed to a sleeper"


def _nothing() -> None: ...


def _loop(rounds: int) -> None:
    for _ in repeat(None, rounds):
        pass


def _call(rounds: int) -> None:
    for _ in repeat(None, rounds):
        _nothing()


def _enter(block: AbstractContextManager, rounds: int) -> None:
    for _ in repeat(None, rounds):
        with block:
            pass


def _ping_pong(hand_overs: int) -> None:
    """Two threads wake each other in turns, each with a lock that the other one waits for."""
    ping, pong = allocate_lock(), allocate_lock()
    ping.acquire()
    pong.acquire()

    def wait(lock: LockType) -> None:
        if not lock.acquire(timeout=DEADLINE):
            raise TimeoutError(f"not woken within {DEADLINE:g} s")

    def answer() -> None:
        for _ in repeat(None, hand_overs // 2):
            wait(ping)
            pong.release()

    with crew(1) as pool:
        other = pool.submit(answer)
        for _ in repeat(None, hand_overs // 2):
            ping.release()
            wait(pong)
        other.result(DEADLINE)


@dataclass(frozen=True)
class Prices:
    """Seconds of one acquire and release by kind of lock, the loop around it taken off."""

    seconds: dict[str, Sample]

    def of(self, kind: str) -> float:
        """Median seconds."""
        return self.seconds[kind].median


@experiment
def price(rounds: Annotated[int, Range(1_000, 100_000, 1_000)] = 20_000) -> Prices:
    """Acquire and release each kind of lock with nobody else there, and hand one over."""
    free = {
        "an empty with": nullcontext(),
        "Lock": threading.Lock(),
        "RLock": threading.RLock(),
        "our Mutex": Mutex(),
        "our Semaphore": Semaphore(),
    }
    works: dict[str, Callable[[], object]] = {
        "loop": lambda: _loop(rounds),
        "a function call": lambda: _call(rounds),
        **{name: lambda block=block: _enter(block, rounds) for name, block in free.items()},
    }
    taken = bench.compare(works, repeats=7)
    loops = taken.pop("loop").values
    net = {
        name: Sample(tuple((a - b) / rounds for a, b in zip(sample.values, loops, strict=True)))
        for name, sample in taken.items()
    }
    hand_overs = rounds // 20
    slow = bench.measure(lambda: _ping_pong(hand_overs), repeats=3)
    return Prices({**net, HANDED: Sample(tuple(value / hand_overs for value in slow.values))})


def plot_prices(result: Prices) -> plots.Picture:
    """Nanoseconds, on a logarithmic scale."""
    fig, ax = plots.figure(8, 2.8)
    nanoseconds = [max(1e9 * sample.median, 0.1) for sample in result.seconds.values()]
    colors = [plots.color("lock" if kind == HANDED else "measured") for kind in result.seconds]
    bars = ax.barh(list(result.seconds), nanoseconds, color=colors, height=0.66)
    ax.bar_label(bars, [bench.seconds(ns / 1e9) for ns in nanoseconds], padding=5, fontsize=9)
    ax.set_xscale("log")
    ax.set_xlim(1, 12 * max(nanoseconds))
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.set_xlabel("nanoseconds, each step ten times the one before", fontsize=9)
    ax.set_title("acquire and release, once", loc="left")
    return fig


SIZES = (2**12, 2**16, 2**20)  # bytes hashed inside the lock
THREADS = (1, 2, 4, 8)
CELL, TURNS = 0.05, 3  # seconds of a measurement, and how often each is made
SMALLEST = 0.1  # share inside, but for 0
_DATA = memoryview(bytes(round((1 - SMALLEST) / SMALLEST) * SIZES[-1]))


@dataclass(frozen=True)
class Contended:
    """`speedup[i][j]`: throughput of `THREADS[j]` over one thread's, `held[i]` seconds inside.

    `waits[i][j]` is the share of acquisitions that found the mutex taken.
    """

    share: float  # of the work that is inside the mutex
    cores: int
    held: tuple[float, ...]
    speedup: tuple[tuple[float, ...], ...]
    waits: tuple[tuple[float, ...], ...]

    def bound(self, threads: int) -> float:
        """The most that threads, cores and the mutex allow."""
        return min(threads, self.cores, 1 / self.share if self.share else math.inf)


@experiment
def contend(
    share: Annotated[float, Range(0, 0.6, 0.1, label="share inside the lock")] = 0.5,
) -> Contended:
    """Hash outside and inside one mutex; both let go of the GIL (`hashlib`: over 2047 bytes).

    With share 0 there is no mutex, and what keeps the threads from their bound is the GIL.
    ValueError for a share between 0 and 0.1: the work outside would be too long.
    """
    if 0 < share < SMALLEST:
        raise ValueError(f"share={share} is not allowed: give 0, or {SMALLEST} or more")
    held = [  # when nothing disturbs: hence the shortest
        bench.measure(lambda n=n: hashlib.sha256(_DATA[:n]), repeats=9).spread[0] for n in SIZES
    ]
    speedup, waits = [], []
    total = len(SIZES) * TURNS * len(THREADS)
    for row, size in enumerate(SIZES):
        outside = _DATA[: round(size * (1 - share) / share)] if share else _DATA[:size]
        inside = _DATA[:size] if share else None
        turns = []  # of pairs, one for each number of threads: rounds a second, share that waited
        for turn in range(TURNS):
            turns.append([])
            for threads in THREADS:
                before = (row * TURNS + turn) * len(THREADS) + len(turns[-1])
                checkpoint(before, total, f"{threads} threads")
                turns[-1].append(_run(threads, outside, inside))
        ratios = [[rate / cells[0][0] for rate, _ in cells] for cells in turns]
        speedup.append(tuple(map(statistics.median, zip(*ratios, strict=True))))
        shares = [[waited for _, waited in cells] for cells in turns]
        waits.append(tuple(map(statistics.median, zip(*shares, strict=True))))
    return Contended(share, machine.cores(), tuple(held), tuple(speedup), tuple(waits))


def _run(threads: int, outside: memoryview, inside: memoryview | None) -> tuple[float, float]:
    """Rounds a second, and the share of them that found the mutex taken."""
    mutex, control = Mutex("hot"), current()

    def work() -> int:
        rounds = 0
        while rounds == 0 or (now() < end and not control.cancelled):
            hashlib.sha256(outside)
            if inside is not None:
                with mutex:
                    hashlib.sha256(inside)
            rounds += 1
        return rounds

    with crew(threads) as pool:
        start = now()
        end = start + int(CELL * 1e9)
        rounds = sum(gather([pool.submit(work) for _ in range(threads)], timeout=DEADLINE))
        elapsed = (now() - start) / 1e9
    return rounds / elapsed, mutex.contended / rounds


def plot(result: Contended) -> plots.Picture:
    """Two grids, length × threads: speed-up, and how often the mutex was not free."""
    fig, (left, right) = plots.figure(9, 2.7, cols=2)
    rows = [bench.seconds(held) for held in result.held]
    columns = [f"{n}\n(≤ {result.bound(n):.3g})" for n in THREADS]
    texts = [[f"{value:.2f}" for value in row] for row in result.speedup]
    plots.heat_map(left, result.speedup, texts, rows, columns, top=max(map(result.bound, THREADS)))
    left.set_title("times one thread's throughput (at most)", loc="left")
    left.set_ylabel("one hold", fontsize=9)
    texts = [[f"{value:.0%}" for value in row] for row in result.waits]
    plots.heat_map(right, result.waits, texts, rows, [str(threads) for threads in THREADS], top=1)
    right.set_title("acquisitions that had to wait", loc="left")
    for ax in (left, right):
        ax.set_xlabel("threads", fontsize=9)
    return fig
