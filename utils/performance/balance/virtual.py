"""The virtual clock: time that jumps from event to event, so that an hour takes a moment.

A simulation is a list of events in order of time; what happens at an event may add later ones.
Thousands of workers cost no more than their events. (A. Law, "Simulation Modeling and Analysis",
chapter 1: next-event time advance.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

from utils.core.experiment import checkpoint
from utils.core.trace import Span, Trace
from utils.core.workers import lanes
from utils.performance.balance.outcome import Outcome
from utils.performance.balance.policies import Policy
from utils.performance.balance.tasks import Task


class VirtualClock:
    """`now` in seconds; `at` says what is to happen when, `run` lets it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()  # what is due at the same time happens in order of `at`

    def at(self, time: float, action: Callable[..., None], *args: Any) -> None:
        """Call `action(*args)` at second `time`. ValueError: that is over."""
        if not time >= self.now:  # nan too
            raise ValueError(f"time={time!r} is not allowed: it is {self.now} already")
        heappush(self._events, (time, next(self._numbers), action, args))

    def run(self) -> None:
        """Go from event to event until there is none."""
        while self._events:
            self.now, number, action, args = heappop(self._events)
            if number % 1024 == 0:
                checkpoint()
            action(*args)


def simulate(policy: Policy, tasks: Sequence[Task], overhead: float = 0.0) -> Outcome:
    """Let `policy` do `tasks` on a virtual clock.

    Each visit to a queue takes `overhead` seconds; a shared queue lets in one visitor at a time.
    """
    if not 0 <= overhead < math.inf:
        raise ValueError(f"overhead={overhead!r} is not allowed: give seconds, 0 or more")
    clock, spans, names = VirtualClock(), [], lanes(policy.workers)
    idle = dict.fromkeys(range(policy.workers))  # in order: who idles longest is asked first
    offered = -1.0  # the last moment at which the idle were asked
    queue_free = 0.0  # when the last visitor of a shared queue leaves it

    def arrive(task: Task) -> None:
        nonlocal offered
        policy.arrive(task)
        if offered != clock.now:
            offered = clock.now
            clock.at(clock.now, offer)  # after all that arrive at this very moment

    def offer() -> None:
        for worker in list(idle):
            serve(worker)

    def serve(worker: int) -> None:
        nonlocal queue_free
        batch = policy.take(worker)
        if not batch:
            idle[worker] = None
            return
        idle.pop(worker, None)
        start = max(clock.now, queue_free) if policy.shared else clock.now
        time = queue_free = start + overhead
        if time > clock.now:
            note(worker, "queue", "take", clock.now, time)
        for task in batch:
            note(worker, "compute", f"task {task.number}", time, time + task.cost, task=task.number)
            time += task.cost
            clock.at(time, finish, worker, task, task is batch[-1])

    def finish(worker: int, task: Task, last: bool) -> None:
        policy.finish(worker, task)
        if last:
            serve(worker)

    def note(worker: int, kind: str, name: str, start: float, end: float, **args: int) -> None:
        ends = round(start * 1e9), round(end * 1e9)
        spans.append(Span(names[worker], kind, name, *ends, args or None))

    for task in tasks:
        clock.at(task.arrival, arrive, task)
    clock.run()
    return Outcome("virtual", policy.workers, tuple(tasks), Trace(spans), 0, policy.moves)
