"""How many schedules there are, and how few of them have only some preemptions.

n threads of k steps each can be interleaved in (nk)! / (k!)^n ways. With at most c preemptions it
is polynomial in k (Musuvathi & Qadeer, PLDI 2007: at most C(nk, c) · (n + c)!), which is why a
bound makes the search possible.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.threads.schedules.report import Report
from utils.threads.schedules.search import check


@dataclass(frozen=True)
class Growth:
    """`report` of `threads` that add `additions` times each, in `steps` steps a thread."""

    threads: int
    steps: int
    report: Report

    @property
    def interleavings(self) -> int:
        """All orders of the threads' steps."""
        return (
            math.factorial(self.threads * self.steps) // math.factorial(self.steps) ** self.threads
        )

    @property
    def cumulative(self) -> list[int]:
        """Schedules with up to 0, 1, 2, … preemptions."""
        counts = self.report.counts
        return [sum(counts[: bound + 1]) for bound in range(len(counts))]


@experiment
def grow(
    threads: Annotated[int, Range(1, 3)] = 2,
    additions: Annotated[int, Range(1, 4, label="additions each")] = 2,
    preemptions: Annotated[int, Range(0, 3)] = 2,
    locked: bool = False,
) -> Growth:
    """Try every schedule within the bound; a step is a read, a write or taking the lock."""
    program = _adding(threads, additions, locked)
    report = check(program, preemptions=preemptions, seconds=10, random=0)
    return Growth(threads, additions * (1 if locked else 2), report)


def _adding(threads: int, additions: int, locked: bool) -> Callable[[], None]:
    def program() -> None:
        count, lock = 0, threading.Lock()

        def add() -> None:
            nonlocal count
            for _ in range(additions):
                count += 1

        def add_locked() -> None:
            nonlocal count
            for _ in range(additions):
                with lock:
                    count += 1

        work = add_locked if locked else add
        crew = [threading.Thread(target=work) for _ in range(threads)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()

    return program


def plot(result: Growth) -> plots.Picture:
    """Schedules tried with up to so many preemptions, beside all interleavings."""
    fig, ax = plots.figure(8, 2.9)
    names = [f"up to {bound}" for bound in range(len(result.cumulative))]
    bars = ax.bar(names, result.cumulative, color=plots.color("measured"), width=0.6)
    ax.bar_label(bars, [f"{count:,}" for count in result.cumulative], fontsize=9, padding=2)
    total = ax.bar(["all interleavings"], result.interleavings, color=plots.GREY, width=0.6)
    ax.bar_label(total, [f"{result.interleavings:,}"], fontsize=9, padding=2)
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.8, top=8 * max(*result.cumulative, result.interleavings))
    ax.set_xlabel("preemptions", fontsize=9)
    over = "" if result.report.verdict != "inconclusive" else ", time was up"
    seconds = f"{result.report.seconds:.1f} s{over}"
    ax.set_title(
        f"schedules of {result.threads} threads with {result.steps} steps each ({seconds})",
        loc="left",
    )
    return fig
