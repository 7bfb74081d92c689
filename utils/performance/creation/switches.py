"""Who leaves a core of its own accord, who is sent off it, and what a hand-over costs.

A context switch is *voluntary* when the thread has to wait (for a time, data, a lock, the GIL) and
*involuntary* when the scheduler gives its core to another. Linux counts both for each thread
(getrusage(2): RUSAGE_THREAD, ru_nvcsw, ru_nivcsw).

The cost of a hand-over is that of two threads which pass a byte to and fro through pipes, less that
of the same system calls by one thread alone, whose byte is always there. That is lmbench's method
(lat_ctx(8); L. McVoy, C. Staelin, "lmbench: Portable Tools for Performance Analysis", USENIX 1996).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, NamedTuple

from utils.core import bench, machine, plots
from utils.core.experiment import Range, checkpoint, experiment, gather
from utils.core.workers import crew

try:
    import resource

    COUNTED = hasattr(resource, "RUSAGE_THREAD")
except ImportError:  # Windows
    COUNTED = False

CAN_PIN = hasattr(os, "sched_setaffinity")
DEADLINE = 30.0  # seconds for anything that blocks
TURNS = 4  # each kind runs that often, in turns with the others
WAYS = {"voluntary": plots.GREEN, "involuntary": plots.VERMILION}
PASSING, ALONE, TASKS = "two pass a byte", "one passes it to itself", "two asyncio tasks"
_DATA = bytes(2**18)
_GO, _STOP = b"g", b"s"

Work = Callable[[float], int]  # until when (`perf_counter`) -> rounds done
Pipe = tuple[int, int]  # descriptors: read here, write there


class Part(NamedTuple):
    """What one thread did in `seconds`, and how often it was switched meanwhile."""

    rounds: int
    seconds: float
    voluntary: int
    involuntary: int


@dataclass(frozen=True)
class Kind:
    """A number of threads at once, in several turns: a part for each thread and turn."""

    threads: int
    parts: tuple[Part, ...]

    def total(self, what: str) -> float:
        """The sum of that field over all parts."""
        return sum(getattr(part, what) for part in self.parts)

    @property
    def each(self) -> float:
        """Seconds of wall time a round."""
        return self.total("seconds") / self.threads / self.total("rounds")

    @property
    def rate(self) -> float:
        """Switches in a second of a thread's life."""
        return sum(map(self.total, WAYS)) / self.total("seconds")


@dataclass(frozen=True)
class Switching:
    """The kinds by name. `counted` is False where the system doesn't count switches by thread."""

    one_core: bool
    counted: bool
    kinds: dict[str, Kind]

    @property
    def hand_over(self) -> float:
        """Seconds from thread to thread, without the system calls that bring it about."""
        return self.kinds[PASSING].each - self.kinds[ALONE].each


@experiment
def count(
    milliseconds: Annotated[int, Range(40, 800, 40, label="ms of each kind")] = 200,
    one_core: bool = CAN_PIN,
) -> Switching:
    """Let each kind of thread run, in turns, and count how often its threads were switched."""
    pin = machine.pinned(1) if one_core else contextlib.nullcontext()
    with pin, _pipe() as there, _pipe() as back, crew(2) as pool:
        works = _works(there, back)
        parts: dict[str, list[Part]] = {name: [] for name in works}
        for turn in range(TURNS):
            for name, threads in works.items():
                checkpoint(turn, TURNS, name)
                end = time.perf_counter() + milliseconds / 1e3 / TURNS
                futures = [pool.submit(_observed, work, end) for work in threads]
                parts[name] += gather(futures, timeout=DEADLINE)
    kinds = {name: Kind(len(works[name]), tuple(parts[name])) for name in works}
    return Switching(one_core, COUNTED, kinds)


def _works(there: Pipe, back: Pipe) -> dict[str, list[Work]]:
    """What the threads of each kind do."""

    def alone() -> None:
        os.write(there[1], _GO)
        os.read(there[0], 1)

    hashes = partial(_repeat, lambda: hashlib.sha256(_DATA).digest())  # outside the GIL
    return {
        "two hash": [hashes, hashes],
        "two run Python": [partial(_repeat, int)] * 2,
        "one sleeps 1 ms at a time": [partial(_repeat, partial(time.sleep, 0.001))],
        PASSING: [partial(_pass, there, back, True), partial(_pass, back, there, False)],
        ALONE: [partial(_repeat, alone)],
        TASKS: [_tasks],
    }


def _repeat(step: Callable[[], object], end: float) -> int:
    rounds = 0
    while time.perf_counter() < end:
        step()
        rounds += 1
    return rounds


def _pass(inbox: Pipe, outbox: Pipe, serves: bool, end: float) -> int:
    """Send a byte, wait for the answer, and so on. A round: one came and was answered."""
    rounds, last = 0, False
    try:
        if serves:
            os.write(outbox[1], _GO)
        while not last and os.read(inbox[0], 1) == _GO:
            last = time.perf_counter() > end
            os.write(outbox[1], _STOP if last else _GO)
            rounds += 1
    except BaseException:
        os.write(outbox[1], _STOP)  # or the other would wait for ever
        raise
    return rounds


def _tasks(end: float) -> int:
    async def play() -> int:
        rounds = 0
        while time.perf_counter() < end:
            await asyncio.sleep(0)  # gives the loop back; the other task is next
            rounds += 1
        return rounds

    async def both() -> int:
        return sum(await asyncio.gather(play(), play()))

    return asyncio.run(both())


@contextlib.contextmanager
def _pipe() -> Iterator[Pipe]:
    read, write = os.pipe()
    try:
        yield read, write
    finally:
        os.close(write)
        os.close(read)


def _observed(work: Work, end: float) -> Part:
    before, born = _switches(), time.perf_counter()
    rounds = work(end)
    seconds, after = time.perf_counter() - born, _switches()
    return Part(rounds, seconds, after[0] - before[0], after[1] - before[1])


def _switches() -> tuple[int, int]:
    """Voluntary and involuntary switches of this thread so far."""
    if not COUNTED:
        return 0, 0
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return usage.ru_nvcsw, usage.ru_nivcsw


def plot(result: Switching) -> plots.Picture:
    """Which switches each kind met, and what it takes to hand on once."""
    fig, (ax, costs) = plots.figure(9.5, 3.2, cols=2, gridspec_kw={"width_ratios": [3, 2]})
    for row, (name, kind) in enumerate(result.kinds.items()):
        counts, left = {way: kind.total(way) for way in WAYS}, 0.0
        for way, color in WAYS.items():
            share = 100 * counts[way] / max(1, sum(counts.values()))
            ax.barh(name, share, left=left, color=color, height=0.7, label=way if not row else "")
            left += share
        text = f"{kind.rate:,.0f} a second" if result.counted else "not counted here"
        ax.text(103, row, text, fontsize=9, va="center")
    ax.set_xlim(0, 100)
    ax.set_xlabel("% of a thread's switches", fontsize=9)
    ax.set_title(f"switches ({'one core for all' if result.one_core else 'all cores'})", loc="left")
    fig.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    names = {"thread to thread": PASSING, "its calls alone": ALONE, "task to task": TASKS}
    times = [result.kinds[name].each for name in names.values()]
    bars = costs.barh(list(names), times, color=plots.color("measured"), height=0.6)
    costs.bar_label(bars, [*map(bench.seconds, times)], padding=4, fontsize=9)
    costs.margins(x=0.3)
    costs.set_xticks([])
    costs.set_title("time to hand on once", loc="left")
    for axes in (ax, costs):
        axes.invert_yaxis()
        axes.grid(visible=False)
    return fig
