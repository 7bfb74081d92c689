"""Tasks that keep arriving, as requests do: who waits how long under which policy.

A batch is judged by its end; a stream by its waits. Arrivals are Poisson, lengths exponential, so
with a shared queue this is the M/M/c queue of section 3.5. Two choices take away most of what
random placement waits, though they look at two workers only (Mitzenmacher 2001); to look at all is
better still. A load balancer seldom knows how long tasks are: the shortest line counts them.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.overview.rates import percentile
from utils.performance.balance.policies import (
    LeastLoad,
    OwnQueue,
    Policy,
    RoundRobin,
    SharedQueue,
    TwoChoices,
    WorkStealing,
)
from utils.performance.balance.tasks import Task
from utils.performance.balance.virtual import simulate

MEAN, TASKS = 0.01, 9000
SETTLED = 3000  # of these, the first find the queues emptier than those after them


class Random(OwnQueue):
    """Anyone, by chance: what needs no knowledge and no memory."""

    def place(self, task: Task) -> int:
        return self.chance.randrange(self.workers)


class ShortestLine(TwoChoices):
    """The worker with the fewest tasks, whatever their lengths."""

    def place(self, task: Task) -> int:
        worker = min(range(self.workers), key=self.load.__getitem__)
        self.load[worker] += 1
        return worker

    def finish(self, worker: int, task: Task) -> None:
        self.load[worker] -= 1


POLICIES: Mapping[str, Callable[[int], Policy]] = {
    "random": Random,
    "round robin": RoundRobin,
    "two choices": TwoChoices,
    "shortest line": ShortestLine,
    "least load": LeastLoad,
    "work stealing": WorkStealing,
    "shared queue": SharedQueue,
}


@dataclass(frozen=True)
class Stream:
    """Seconds that each of the tasks waited, by policy, once things had settled."""

    workers: int
    utilisation: float
    waits: Mapping[str, tuple[float, ...]]


@experiment
def stream(
    workers: Annotated[int, Range(2, 32)] = 16,
    utilisation: Annotated[float, Range(0.3, 0.95, 0.05)] = 0.85,
) -> Stream:
    """Tasks of 10 ms on average arrive at random, and keep that share of the workers busy."""
    chance = random.Random(0)
    tasks, time = [], 0.0
    for number in range(TASKS):
        time += chance.expovariate(utilisation * workers / MEAN)
        cost = chance.expovariate(1 / MEAN)
        tasks.append(Task(number, cost, cost, arrival=time))
    waits = {}
    for done, (name, make) in enumerate(POLICIES.items()):
        checkpoint(done, len(POLICIES), name)
        waits[name] = tuple(simulate(make(workers), tasks).waits()[SETTLED:])
    return Stream(workers, utilisation, waits)


def plot(result: Stream) -> plots.Picture:
    """Mean and 99th percentile of the waits."""
    fig, axes = plots.figure(9, 2.9, cols=2, sharey=True)
    names = list(result.waits)
    for ax, title, of in (
        (axes[0], "mean wait [ms]", statistics.mean),
        (axes[1], "P99 of the wait [ms]", lambda waits: percentile(waits, 99)),
    ):
        drawn = ax.barh(names, [1e3 * of(result.waits[name]) for name in names], color=plots.BLUE)
        ax.bar_label(drawn, fmt="%.3g", fontsize=9, padding=3)
        ax.set_title(title, loc="left")
        ax.margins(x=0.14)
        ax.grid(visible=False)
    axes[0].invert_yaxis()
    busy = f"{100 * result.utilisation:.0f} % busy"
    fig.supxlabel(f"{result.workers} workers, {busy}, tasks of 10 ms on average", fontsize=9)
    return fig
