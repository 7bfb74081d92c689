"""The engine on the virtual clock: the same policy object, and a formula instead of a model.

The virtual clock knows no caller that is held up and no core that is shared: each worker brings its
own. What is left is what the policy decides.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from utils.deep_learning.serving.batching import Batcher
from utils.deep_learning.serving.engine import Batch, Fate
from utils.deep_learning.serving.served import Record
from utils.performance.balance.virtual import VirtualClock
from utils.performance.queueing.requests import SECOND

Service = Callable[[int, int], float]  # seconds that a batch takes, from its worker and its size


@dataclass(eq=False, slots=True)
class _Request:
    number: int
    arrival: int
    deadline: float


def simulate(
    policy: Batcher,
    planned: Sequence[int],
    service: Service,
    *,
    workers: Sequence[int] = (0,),
    capacity: int = 1024,
    timeout: float | None = None,
) -> tuple[Record, ...]:
    """Serve requests that come at the `planned` moments (ns) by an empty `policy`."""
    clock, idle = VirtualClock(), deque(workers)
    records: dict[int, Record] = {}

    def arrive(request: _Request) -> None:
        if len(policy) >= capacity:
            end([request], "rejected")
            return
        policy.arrive(request)
        offer()

    def offer() -> None:
        while idle:
            batch, late = policy.take(clock.now)
            end(late, "timed out")
            if batch:
                worker = idle.popleft()
                took = round(service(worker, len(batch)) * SECOND)
                done = Batch(worker, len(batch), clock.now, clock.now, clock.now + took)
                clock.at(done.ended, finish, batch, done)
            elif not late:
                if (due := policy.due()) is not None:
                    clock.at(due, offer)
                return

    def finish(requests: list[_Request], batch: Batch) -> None:
        end(requests, "answered", batch)
        idle.append(batch.worker)
        offer()

    def end(requests: list[_Request], fate: Fate, batch: Batch | None = None) -> None:
        for request in requests:
            moment = request.arrival
            records[request.number] = Record(moment, moment, clock.now, fate, batch)

    limit = math.inf if timeout is None else timeout * SECOND
    for number, moment in enumerate(planned):
        clock.at(moment, arrive, _Request(number, moment, moment + limit))
    clock.run()
    return tuple(records[number] for number in range(len(planned)))
