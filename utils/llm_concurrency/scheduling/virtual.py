"""The engine on a virtual clock: its own core, scheduler and policies; the model only costs time.

A step takes `base` seconds, whatever it does (the weights are read once), `token` seconds for every
token (arithmetic), and `pair` seconds for every token that one looks back at (attention).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from utils.core.experiment import checkpoint
from utils.core.trace import Recorder
from utils.llm_concurrency.engine.core import Core
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.sampler import Drawn
from utils.llm_concurrency.engine.scheduler import Plan, Scheduler
from utils.llm_concurrency.engine.sequence import Sequence


@dataclass(frozen=True)
class Cost:
    """What a step takes, in seconds."""

    base: float
    token: float
    pair: float = 0.0

    def __call__(self, plan: Plan) -> float:
        base, tokens, pairs = features(plan)
        return self.base * base + self.token * tokens + self.pair * pairs


def features(plan: Plan) -> tuple[int, int, int]:
    """What the cost of a step depends on: 1, its tokens, and the tokens these look back at."""
    pairs = sum(work.count * work.start + work.count * (work.count + 1) // 2 for work in plan.work)
    return 1, plan.tokens, pairs


class VirtualRunner:
    """Every sequence goes on with token 0; only time passes."""

    def __init__(self, cost: Cost) -> None:
        self.cost, self.time = cost, 0  # ns

    def run(self, plan: Plan) -> list[Drawn]:
        self.time += round(1e9 * self.cost(plan))
        return [Drawn([0] if work.rows else [], []) for work in plan.work]


def simulate(
    arrivals: Iterable[tuple[float, Request]],
    scheduler: Scheduler,
    cost: Cost,
    recorder: Recorder | None = None,
) -> list[Sequence]:
    """Serve requests that arrive at the given seconds, in that order; all of them, ended.

    An answer has as many tokens as its request's `limit`.
    """
    runner = VirtualRunner(cost)
    core = Core(runner, scheduler, clock=lambda: runner.time, recorder=recorder)
    coming = deque(
        (round(1e9 * second), Sequence(number, request))
        for number, (second, request) in enumerate(arrivals)
    )
    everybody = [sequence for _, sequence in coming]
    while coming or not scheduler.idle:
        checkpoint(len(everybody) - len(coming), len(everybody), "requests")
        if scheduler.idle:
            runner.time = max(runner.time, coming[0][0])
        while coming and coming[0][0] <= runner.time:
            planned, sequence = coming.popleft()
            core.add(sequence)
            sequence.arrived = planned  # and not the end of the step in which it came
        core.step()
    return everybody
