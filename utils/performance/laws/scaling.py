"""Measure a speed-up whose law is known, and see whether the fit finds the numbers that were set.

Every round has work for `ROUND` seconds of one worker. The share σ of it can be done by one at a
time only: it is behind a mutex. The rest is divided. Then all meet at a barrier, and each reads
what every other one found, which takes κ rounds a piece. With n workers a round so takes

    ROUND · (σ + (1 - σ) / n + κ (n - 1)),

and one worker's time divided by it *is* the law of universal scalability. Without the barrier
nobody waits for the round's end, so some can divide while others queue; then the mutex alone is
the limit, 1 / σ: Gunther's law is the *synchronous* bound (https://arxiv.org/abs/0808.1431).

What the workers share in is either a core (hashing, outside the GIL) or a wait for somebody else's
machine (sleep), which needs none: then eight workers scale on a laptop's two cores as well.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import numpy as np

from utils.core import machine, plots, trace
from utils.core.experiment import Range, experiment, gather
from utils.core.trace import Trace, now
from utils.core.workers import crew, lanes
from utils.performance import work
from utils.performance.laws.fit import Fit, fit
from utils.threads.primitives.mutex import Mutex
from utils.threads.primitives.rendezvous import Barrier

ROUND, ROUNDS, REPEATS = 0.02, 3, 3  # seconds, and how many
SHOWN = 4  # workers on the timeline
DEADLINE = 30.0  # seconds for anything that blocks


@dataclass(frozen=True)
class Scaling:
    """Seconds that 1, 2, … workers took, `REPEATS` times each; σ and κ as they were set."""

    serial: float  # σ
    exchange: float  # κ
    resource: str
    barrier: bool
    grows: bool  # the divided work with the workers (Gustafson) or not (Amdahl)
    seconds: dict[int, tuple[float, ...]]
    cores: int
    trace: Trace  # of one run with `SHOWN` workers

    def expected(self, workers: float) -> float:
        """Times as much work a second as one worker does, by the law."""
        divided = (1 - self.serial) * (workers if self.grows else 1)
        amount = self.serial + divided
        reading = self.exchange * (workers - 1)
        if self.barrier:
            return amount / (self.serial + divided / workers + reading)
        return amount / max(self.serial, amount / workers + reading)

    @property
    def law(self) -> str:
        """What `expected` is."""
        return "law" if self.barrier else "limit"

    def measured(self, workers: int) -> tuple[float, ...]:
        """The same as measured, a number a repeat."""
        amount = self.serial + (1 - self.serial) * (workers if self.grows else 1)
        alone = statistics.median(self.seconds[1])
        return tuple(amount * alone / seconds for seconds in self.seconds[workers])

    @cached_property
    def fit(self) -> Fit | None:
        """Universal scalability through the fastest repeats; it says nothing about growing work.

        Whatever else runs on the machine only ever slows a repeat down.
        """
        if self.grows:
            return None
        return fit("usl", [*self.seconds], seconds=[*map(min, self.seconds.values())])


@experiment
def scale(
    serial: Annotated[float, Range(0, 0.9, 0.05, label="serial share σ")] = 0.3,
    exchange: Annotated[float, Range(0, 0.1, 0.005, label="exchange κ")] = 0.0,
    resource: Literal["waiting", "cores"] = "waiting",
    barrier: bool = True,
    grows: bool = False,
) -> Scaling:
    """Measure the speed-up of up to eight workers, or up to four a core."""
    cores = machine.cores()
    sizes = sorted({1, 2, 3, 4, 6, 8} | {n for n in (cores, 2 * cores, 4 * cores) if n <= 64})
    spend = time.sleep if resource == "waiting" else _hashing()
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    done, total = 0, REPEATS * sum(sizes)
    shown = Trace()
    for _ in range(REPEATS):  # in turns, so that a bad moment of the machine meets all sizes
        for size in sizes:
            share = (1 - serial) * ROUND * (1 if grows else 1 / size)
            task = _Rounds(size, serial * ROUND / size, share, exchange * ROUND, barrier, spend)
            with trace.recording() as recorder, crew(size) as pool:
                futures = [pool.submit(task.run) for _ in range(size)]
                note = f"{size} workers"
                spans = gather(futures, timeout=DEADLINE, note=note, before=done, total=total)
            done += size
            starts, ends = zip(*spans, strict=True)
            seconds[size].append((max(ends) - min(starts)) / 1e9)
            if size == SHOWN:
                shown = Trace(s for s in recorder.trace().spans if s.category != "hold")
    measured = {size: tuple(values) for size, values in seconds.items()}
    return Scaling(serial, exchange, resource, barrier, grows, measured, cores, shown)


class _Rounds:
    """What each of `workers` does; all times in seconds."""

    def __init__(
        self,
        workers: int,
        serial: float,
        divided: float,
        reading: float,
        barrier: bool,
        work: Callable[[float], object],
    ) -> None:
        self._peers = workers - 1
        self._serial, self._divided, self._reading = serial, divided, reading
        self._work = work
        self._start = Barrier(workers, timeout=DEADLINE)
        self._meeting = Barrier(workers, timeout=DEADLINE) if barrier else None
        self._mutex = Mutex("serial part")  # must be held whenever somebody does the serial part

    def run(self) -> tuple[int, int]:
        """Do a worker's part of all rounds; return when it started and ended.

        If one fails the others, who wait for it at a barrier, fail too: BrokenBarrierError.
        """
        try:
            return self._run()
        except BaseException:
            for barrier in filter(None, (self._start, self._meeting)):
                barrier.abort()
            raise

    def _run(self) -> tuple[int, int]:
        self._start.wait()
        start = now()
        for _ in range(ROUNDS):
            if self._serial:
                with self._mutex, trace.span("serial"):
                    self._work(self._serial)
            with trace.span("compute", "divided part"):
                self._work(self._divided)
            if self._meeting is not None:
                self._meeting.wait()
            if self._reading:
                with trace.span("communicate", f"read {self._peers} results"):
                    for _ in range(self._peers):
                        self._work(self._reading)
        return start, now()


def _hashing() -> Callable[[float], object]:
    """Work for a number of seconds on one core: that much hashing at the speed measured now."""
    pace = work.bytes_a_second(1)
    return lambda seconds: work.hash_bytes(round(seconds * pace))


def plot(result: Scaling) -> plots.Picture:
    """Speed-up with law and fit, what the fit leaves over, and the rounds of four workers."""
    fig, axes = plots.figure(9, 5.6, rows=2, cols=2, height_ratios=[3, 2], width_ratios=[3, 2])
    grid = axes[1, 0].get_gridspec()
    for ax in axes[1]:
        ax.remove()
    _draw_speedup(axes[0, 0], result)
    _draw_residuals(axes[0, 1], result)
    for ax in axes[0]:
        ax.set_xlabel("workers", fontsize=9)
        ax.set_xticks(list(result.seconds))
    ax = plots.style(fig.add_subplot(grid[1, :]))
    plots.timeline(ax, result.trace, lanes=lanes(SHOWN), title=f"{ROUNDS} rounds, {SHOWN} workers")
    names = {
        "serial": "serial part",
        "compute": "divided part",
        "lock": "waits for the mutex or the others",
        "communicate": "reads the others' results",
    }
    done = {span.category for span in result.trace.spans}
    plots.legend(fig, [category for category in names if category in done], names)
    return fig


def _draw_speedup(ax: plots.Axes, result: Scaling) -> None:
    sizes = list(result.seconds)
    many = np.linspace(1, sizes[-1], 100)
    alone = 1 / statistics.median(result.seconds[1])
    ax.plot(
        many, [*map(result.expected, many)], "--", color=plots.color("theory"), label=result.law
    )
    found = result.fit
    if found is not None:
        text = f"fit: σ = {found.contention}\n     κ = {found.coherence}"
        ax.plot(many, found.throughput_at(many) / alone, color=plots.color("measured"), label=text)
        low, high = (edge / alone for edge in found.band(many))
        ax.fill_between(many, low, high, color=plots.color("measured"), alpha=0.15, linewidth=0)
        if found.coherence.low > 0 and found.optimum.value <= sizes[-1]:
            style = {"color": plots.ORANGE, "linewidth": 5, "alpha": 0.3, "label": "optimum"}
            ax.axvline(found.optimum.value, **style)
    for size in sizes:
        dots = result.measured(size)
        ax.plot([size] * len(dots), dots, "o", color=plots.color("measured"), markersize=4)
    if result.resource == "cores":
        ax.axvline(result.cores, color=plots.GREY, linewidth=0.8)
        ax.text(result.cores, 0.1, " cores", fontsize=9, color=plots.GREY)
    ax.set_ylim(bottom=0)
    ax.set_title("times as much work a second as one worker", loc="left")
    ax.legend(frameon=False, fontsize=9, loc="lower right")


def _draw_residuals(ax: plots.Axes, result: Scaling) -> None:
    for size in result.seconds:
        if result.fit is not None:
            expected = result.fit.throughput_at(size)
            dots = [100 * (1 / seconds / expected - 1) for seconds in result.seconds[size]]
        else:
            dots = 100 * (np.asarray(result.measured(size)) / result.expected(size) - 1)
        ax.plot([size] * len(dots), dots, "o", color=plots.color("measured"), markersize=4)
    ax.axhline(0, color=plots.INK, linewidth=0.8)
    ax.set_title(f"% above the {result.law if result.fit is None else 'fit'}", loc="left")
