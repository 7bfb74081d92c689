"""Who waits for whom at a mutex that many threads want.

A mutex lets one thread in at a time, so it is a *bottleneck*: whatever the number of threads, no
more rounds a second go through it than fit one after the other. A round of which a share s is spent
outside can be done at most min(workers, 1 / (1 - s)) times as fast as by one thread. (P. Denning,
J. Buzen, "The Operational Analysis of Queueing Network Models", ACM Computing Surveys 10(3), 1978.)

The threads here sleep, inside and outside: what they contend for is the lock, not a core.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

from utils.core import plots, trace
from utils.core.experiment import Range, current, experiment, gather
from utils.core.trace import Trace
from utils.core.workers import crew, lanes
from utils.threads.primitives.mutex import Mutex

ROUNDS = 8  # of each worker
DEADLINE = 30.0  # seconds for anything that blocks


@dataclass(frozen=True)
class Contention:
    """`workers` went `ROUNDS` rounds each: outside for a while, then `held` seconds inside."""

    workers: int
    held: float
    outside: float  # share of a round
    trace: Trace
    acquired: int
    contended: int
    waited: float  # seconds, all workers together

    @property
    def round(self) -> float:
        """Seconds of a round when nobody else is there."""
        return self.held / (1 - self.outside)

    @property
    def speedup(self) -> float:
        """Times as fast as one worker that does all rounds."""
        return self.workers * ROUNDS * self.round / self.trace.duration

    @property
    def expected(self) -> float:
        """What the bottleneck allows."""
        return min(self.workers, 1 / (1 - self.outside))


@experiment
def contend(
    workers: Annotated[int, Range(1, 8)] = 4,
    held_ms: Annotated[float, Range(1, 10, label="ms inside")] = 5,
    outside: Annotated[float, Range(0, 0.9, 0.05, label="share outside")] = 0.5,
) -> Contention:
    """Send workers through one mutex, again and again."""
    mutex, control = Mutex("mutex"), current()
    held = held_ms / 1e3
    away = held / (1 - outside) - held

    def work() -> None:
        for _ in range(ROUNDS):
            if control.cancelled:
                return
            with trace.span("sleep", "outside"):
                time.sleep(away)
            with mutex:
                time.sleep(held)

    with trace.recording() as recorder, crew(workers) as pool:
        gather([pool.submit(work) for _ in range(workers)], timeout=DEADLINE)
    return Contention(
        workers, held, outside, recorder.trace(), mutex.acquired, mutex.contended, mutex.waited
    )


def plot(result: Contention) -> plots.Picture:
    """Who was outside, waiting and inside when, and the speed-up beside the bottleneck's."""
    fig, (ax, bars) = plots.figure(
        9, 1.9 + 0.25 * result.workers, cols=2, gridspec_kw={"width_ratios": [5, 1]}
    )
    title = f"{result.contended} of {result.acquired} times the mutex was not free at once"
    plots.timeline(ax, result.trace, lanes=lanes(result.workers), title=title)
    numbers = {"theory": result.expected, "measured": result.speedup}
    drawn = bars.bar(list(numbers), list(numbers.values()), color=[*map(plots.color, numbers)])
    bars.bar_label(drawn, fmt="%.2f", fontsize=9, padding=2)
    bars.set_title("times as fast", loc="left")
    bars.margins(y=0.15)
    names = {"sleep": "outside", "lock": "waits for the mutex", "hold": "holds the mutex"}
    plots.legend(fig, ["sleep", "lock", "hold"], names)
    return fig
