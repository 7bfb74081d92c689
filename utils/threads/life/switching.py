"""Who runs Python code, and for how long: the GIL's switch interval, measured.

A thread that wants the GIL waits for it; if it is still waiting after the switch interval, it asks
the holder to let go, and the holder does so between two bytecodes. So the interval is a lower bound
of a turn among computing threads, unless the system takes the core away: one long C call that keeps
the GIL makes a turn longer, and a call that blocks gives the GIL up at once.
Source: CPython, Python/ceval_gil.c, notes about the implementation; `sys.setswitchinterval`.

On an interpreter without a GIL nobody waits: every thread runs in a single long turn.
"""

from __future__ import annotations

import statistics
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from utils.core import machine, plots
from utils.core.experiment import Range, checkpoint, experiment, gather
from utils.core.trace import Span, Trace, now
from utils.core.workers import crew, lanes

INTERVALS = (0.5, 5.0, 20.0, 50.0)  # ms
DEADLINE = 30.0  # seconds for anything that blocks


@dataclass(frozen=True)
class Turns:
    """`trace` has a lane a thread and a span a turn."""

    interval: float  # seconds
    gil: bool
    trace: Trace

    @property
    def median(self) -> float:
        """Median length of a turn, in seconds."""
        return statistics.median(span.seconds for span in self.trace.spans)


@contextmanager
def switch_interval(seconds: float) -> Iterator[None]:
    """Set the interpreter's switch interval; the old one comes back after."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@experiment
def take_turns(
    milliseconds: Annotated[float, Range(0.5, 50, 0.5, label="switch interval [ms]")] = 5.0,
    threads: Annotated[int, Range(2, 4)] = 2,
) -> Turns:
    """Let `threads` threads read the clock for half a second, and see from the gaps who ran."""
    interval = milliseconds / 1e3
    seconds = max(0.5, 4 * threads * interval)  # some turns each, however long they are
    stop = threading.Event()
    with crew(threads, "thread") as pool, switch_interval(interval):
        # While the others run, a thread's clock readings have a gap of at least an interval.
        gap = int(interval / 2 * 1e9)
        try:
            futures = [pool.submit(_run, seconds, gap, stop) for _ in range(threads)]
            parts = gather(futures, timeout=DEADLINE)
        finally:
            stop.set()
    return Turns(interval, machine.gil(), Trace(span for part in parts for span in part))


def _run(seconds: float, gap: int, stop: threading.Event) -> list[Span]:
    lane, turns = threading.current_thread().name, []
    start = last = now()
    end = start + int(seconds * 1e9)
    while last < end and not stop.is_set():
        moment = now()
        if moment - last > gap:
            turns.append(Span(lane, "compute", "turn", start, last))
            start = moment
        last = moment
    turns.append(Span(lane, "compute", "turn", start, last))
    return turns


def sweep(intervals: Sequence[float] = INTERVALS) -> list[Turns]:
    """Two threads at each interval (in ms)."""
    results = []
    for done, interval in enumerate(intervals):
        checkpoint(done, len(intervals), f"{interval} ms")
        results.append(take_turns(interval))
    return results


def plot(result: Turns) -> plots.Picture:
    """The first stretch of the timeline: who ran when."""
    fig, ax = plots.figure(9, 1.3 + 0.35 * len(result.trace.lanes))
    gil = "" if result.gil else "; no GIL: nobody takes turns"
    title = f"interval {1e3 * result.interval:g} ms, median turn {1e3 * result.median:.3g} ms{gil}"
    until = min(result.trace.duration, 40 * result.interval)
    rows = lanes(len(result.trace.lanes), "thread")
    plots.timeline(ax, result.trace, lanes=rows, title=title, until=until)
    return fig


def plot_sweep(results: Sequence[Turns]) -> plots.Picture:
    """Median turn over interval; the dashed line is a turn of exactly one interval."""
    fig, ax = plots.figure(6, 3)
    intervals = [1e3 * result.interval for result in results]
    turns = [1e3 * result.median for result in results]
    ax.loglog(intervals, intervals, "--", color=plots.color("theory"), label="theory")
    ax.loglog(intervals, turns, "o-", color=plots.color("measured"), label="measured")
    ax.set_xticks(intervals, [f"{interval:g}" for interval in intervals])
    ax.set_yticks(intervals, [f"{interval:g}" for interval in intervals])
    ax.minorticks_off()
    ax.set_xlabel("switch interval [ms]", fontsize=9)
    ax.set_title("median turn [ms]", loc="left")
    ax.legend(frameon=False, fontsize=9)
    return fig
