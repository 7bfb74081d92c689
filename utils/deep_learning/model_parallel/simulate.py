"""A schedule on the virtual clock: when each action happens if it takes what we say it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from utils.core.experiment import checkpoint
from utils.core.trace import Span, Trace
from utils.deep_learning.model_parallel.schedules import Action, Schedule, order

CATEGORIES = {"F": "forward", "B": "backward", "W": "weights"}


@dataclass(frozen=True)
class Run:
    """What happened when, on either clock: a lane a rank, a span an action."""

    schedule: Schedule
    trace: Trace
    peaks: tuple[int, ...]  # of each rank, see `peak`

    @property
    def bubble(self) -> float:
        """Idle share of all ranks' time from the first start to the last end."""
        busy = sum(span.seconds for span in self.trace.spans)
        return 1 - busy / (len(self.schedule.ranks) * self.trace.duration)

    def actions(self, rank: int) -> tuple[Action, ...]:
        """What a rank did, in the order in which it began."""
        return tuple(Action(**span.args) for span in self.trace.select(lane=f"rank {rank}").spans)


def simulate(schedule: Schedule, cost: Callable[[Action], float], hop: float = 0) -> Run:
    """Do each action as soon as its rank is free and what it needs has come.

    An action takes `cost(action)` seconds; what it makes reaches another rank `hop` s later.
    """
    free = [0.0] * len(schedule.ranks)
    ends: dict[Action, float] = {}
    spans = []
    for number, action in enumerate(order(schedule)):
        if number % 1024 == 0:
            checkpoint()
        rank = schedule.rank_of(action.stage)
        comes = [
            ends[need] + (hop if schedule.rank_of(need.stage) != rank else 0)
            for need in schedule.needs(action)
        ]
        start = max(free[rank], *comes) if comes else free[rank]
        free[rank] = ends[action] = start + cost(action)
        spans.append(span(rank, action, round(start * 1e9), round(free[rank] * 1e9)))
    return Run(schedule, Trace(spans), tuple(map(peak, schedule.ranks)))


def span(rank: int, action: Action, start: int, end: int) -> Span:
    """`action` of a rank on the timeline; `start` and `end` in ns."""
    kind = CATEGORIES[action.kind]
    return Span(f"rank {rank}", kind, str(action), start, end, action._asdict())


def peak(actions: Iterable[Action]) -> int:
    """The most forwards of a rank that wait for their backward at once.

    The activations of each are in memory: until W, where the schedule splits the backward.
    """
    actions = list(actions)
    last = "W" if any(action.kind == "W" for action in actions) else "B"
    live = most = 0
    for action in actions:
        live += (action.kind == "F") - (action.kind == last)
        most = max(most, live)
    return most
