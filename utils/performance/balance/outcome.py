"""What came of a policy: who did which task when, and how far that is from the best possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from utils.core.trace import Trace
from utils.core.workers import lanes
from utils.performance.balance.tasks import Task, lower_bound


@dataclass(frozen=True)
class Outcome:
    """All tasks done, on a virtual or a real clock.

    `trace` has a lane a worker ("worker 1", …), a span a task of category "compute" with the task's
    number in `args`, and a span "queue" for each visit to a queue. `began` is
    second 0 of the arrivals, in ns of the trace's clock.
    """

    clock: str
    workers: int
    tasks: tuple[Task, ...]
    trace: Trace
    began: int
    moves: int

    @property
    def makespan(self) -> float:
        """Seconds until the last task was done."""
        return (self.trace.end - self.began) / 1e9

    @property
    def bound(self) -> float:
        """Seconds that no schedule can beat if all tasks are there at once."""
        return lower_bound([task.cost for task in self.tasks], self.workers)

    @property
    def excess(self) -> float:
        """How many times longer than the bound it took."""
        return self.makespan / self.bound

    @cached_property
    def busy(self) -> tuple[float, ...]:
        """Seconds that each worker computed."""
        totals = dict.fromkeys(lanes(self.workers), 0.0)
        for span in self.trace.spans:
            if span.category == "compute":
                totals[span.lane] += span.seconds
        return tuple(totals.values())

    @property
    def imbalance(self) -> float:
        """The busiest worker beside the mean: 1 is perfect, `workers` the worst."""
        return max(self.busy) * self.workers / sum(self.busy)

    @property
    def idle(self) -> float:
        """Share of all workers' time in which they had nothing to do, or waited at a queue."""
        return 1 - sum(self.busy) / (self.workers * self.makespan)

    def waits(self, priority: int | None = None) -> Sequence[float]:
        """Seconds from each task's arrival to its start; only those of one priority, if given."""
        tasks = {task.number: task for task in self.tasks}
        return [
            (span.start - self.began) / 1e9 - task.arrival
            for span in self.trace.spans
            if span.category == "compute"
            and (task := tasks[span.args["task"]])
            and priority in (None, task.priority)
        ]
