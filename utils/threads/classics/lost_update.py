"""The lost update on real threads: how many of several threads' additions arrive.

`count += 1` reads, adds and writes. Two threads that have read the same number write the same
number, and an addition is gone. Whether it *happens* depends on where the interpreter lets threads
change turns: CPython with the GIL does so when a function begins and when a loop goes round, which
is not between the reading and the writing of `count += 1`. That is how this interpreter is built,
not what the language promises: a call in between, or a build without the GIL, and additions vanish.

Source: E. W. Dijkstra, "Cooperating sequential processes", EWD 123, 1965, section 2.1: why two
processes that share a variable need a mutual exclusion.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from utils.core import machine, plots
from utils.core.experiment import Range, experiment, gather
from utils.core.workers import crew
from utils.threads.life.switching import switch_interval

Adder = Callable[["Counter", int], None]


class Counter:
    def __init__(self) -> None:
        self.value = 0
        self.lock = threading.Lock()  # the last adder holds it from reading value to writing it


def plain(counter: Counter, times: int) -> None:
    for _ in range(times):
        counter.value += 1


def one_more(value: int) -> int:
    return value + 1


def with_a_call(counter: Counter, times: int) -> None:
    for _ in range(times):
        counter.value = one_more(counter.value)


def with_a_lock(counter: Counter, times: int) -> None:
    for _ in range(times):
        with counter.lock:
            counter.value = one_more(counter.value)


ADDERS: dict[str, Adder] = {
    "value += 1": plain,
    "value = one_more(value)": with_a_call,
    "the same, with a lock": with_a_lock,
}


@dataclass(frozen=True)
class Counts:
    """What arrived of `expected` additions, for each way of adding."""

    threads: int
    expected: int
    arrived: dict[str, int]

    def lost(self, adder: str) -> int:
        return self.expected - self.arrived[adder]


@experiment
def count(
    threads: Annotated[int, Range(1, 8)] = 4,
    additions: Annotated[int, Range(10_000, 100_000, 10_000, "additions a thread")] = 50_000,
) -> Counts:
    """Let `threads` add `additions` times each to one counter, in three ways."""
    arrived = {}
    for number, (name, adder) in enumerate(ADDERS.items()):
        counter = Counter()
        # Turns far shorter than a thread's work: else one may be done before the next begins.
        with crew(threads) as pool, switch_interval(1e-4):
            futures = [pool.submit(adder, counter, additions) for _ in range(threads)]
            gather(
                futures, timeout=60, note=name, before=number * threads, total=len(ADDERS) * threads
            )
        arrived[name] = counter.value
    return Counts(threads, threads * additions, arrived)


def plot(result: Counts) -> plots.Picture:
    """A bar for each way: what arrived, and what is lost."""
    fig, ax = plots.figure(8, 2.4)
    names = list(result.arrived)
    arrived = [100 * result.arrived[name] / result.expected for name in names]
    ax.barh(names, arrived, color=plots.color("measured"), label="arrived")
    lost = [100 - share for share in arrived]
    ax.barh(names, lost, left=arrived, color=plots.color("lock"), label="lost")
    for row, name in enumerate(names):
        text = f"{result.lost(name):,} lost"
        ax.text(1, row, text, va="center", fontsize=9, color="white")
    ax.invert_yaxis()
    ax.set(xlim=(0, 100))
    ax.set_xlabel("% of all additions", fontsize=9)
    noun = "thread" if result.threads == 1 else "threads"
    title = f"{result.threads} {noun}, {result.expected:,} additions, the GIL is "
    ax.set_title(title + ("on" if machine.gil() else "off"), loc="left")
    fig.legend(loc="outside right upper", frameon=False, fontsize=9)
    return fig
