"""What a queue is asked, and what became of it: the same types for the virtual and the real clock.

Times are whole nanoseconds, so that sums are exact. A run begins and ends empty. So the area under
the number of requests present is the sum of their stays, and divided by the run's length that is
L = λ W with nothing left over. (J. Little, "Little's Law as Viewed on Its 50th Anniversary",
Operations Research 59(3), 2011.)
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

from utils.core.trace import Span, Trace
from utils.overview.rates import percentile

SECOND = 10**9


class Job(NamedTuple):
    """A request to come: `due` at this moment, and `service` of work; both in ns."""

    due: int
    service: int


class Request(NamedTuple):
    """One that was served: when it was due, sent, begun and answered (ns), and by which server."""

    due: int
    sent: int
    start: int
    end: int
    server: int


def poisson(
    rate: float, service: float, count: int, *, variability: float = 1.0, seed: int = 0
) -> tuple[Job, ...]:
    """`count` jobs that come at random, `rate` a second, and take `service` seconds on average.

    `variability` is the standard deviation of the service time in units of its mean: 0 makes all
    equal, 1 exponential, another one lognormal. The same seed gives the same jobs.
    """
    if not (0 < rate < math.inf and 0 < service < math.inf and count >= 1):
        raise ValueError(f"rate={rate}, service={service}, count={count}: give more than 0")
    if not 0 <= variability < math.inf:
        raise ValueError(f"variability={variability!r}: give a finite number, 0 or more")
    chance = random.Random(seed)
    spread = math.log(1 + variability**2)
    moments = accumulate(chance.expovariate(rate) for _ in range(count))
    jobs = []
    for moment in moments:
        if variability == 1:
            long = chance.expovariate(1 / service)
        else:
            long = service * chance.lognormvariate(-spread / 2, math.sqrt(spread))
        jobs.append(Job(round(moment * SECOND), round(long * SECOND)))
    return tuple(jobs)


@dataclass(frozen=True)
class Run:
    """What `servers` made of the requests, in the order in which they were sent."""

    servers: int
    requests: tuple[Request, ...]

    @property
    def seconds(self) -> float:
        """From the first request to the last answer."""
        return (max(r.end for r in self.requests) - self.requests[0].sent) / SECOND

    @property
    def arrival_rate(self) -> float:
        """Requests a second, λ."""
        return len(self.requests) / self.seconds

    @property
    def utilisation(self) -> float:
        """Share of the time that a server was busy, ρ."""
        busy = sum(r.end - r.start for r in self.requests) / SECOND
        return busy / (self.servers * self.seconds)

    @property
    def responses(self) -> list[float]:
        """Seconds from sending to answer, a request each."""
        return [(r.end - r.sent) / SECOND for r in self.requests]

    @property
    def mean_response(self) -> float:
        """Seconds, W."""
        return sum(r.end - r.sent for r in self.requests) / len(self.requests) / SECOND

    @property
    def mean_wait(self) -> float:
        """Seconds from sending to service, Wq."""
        return sum(r.start - r.sent for r in self.requests) / len(self.requests) / SECOND

    def response(self, percent: int) -> float:
        """Seconds that `percent` % of the requests did not take longer than."""
        return percentile(self.responses, percent)

    @cached_property
    def present(self) -> tuple[tuple[int, int], ...]:
        """Moments (ns) and how many requests there were from then on, waiting or served."""
        changes = Counter(r.sent for r in self.requests)
        changes.subtract(r.end for r in self.requests)
        moments = sorted(changes)
        counts = accumulate(changes[moment] for moment in moments)
        return tuple(zip(moments, counts, strict=True))

    @property
    def area(self) -> int:
        """Under `present`, in request · ns, added up over time and not over requests."""
        return sum(count * (then - at) for (at, count), (then, _) in pairwise(self.present))

    @property
    def mean_number(self) -> float:
        """Requests there at a time, L."""
        return self.area / SECOND / self.seconds

    def trace(self) -> Trace:
        """A lane a server, and one for the queue, where waits overlap."""
        begun = self.requests[0].sent
        spans = []
        for number, r in enumerate(self.requests):
            name, server = f"request {number}", f"server {r.server + 1}"
            spans.append(Span(server, "compute", name, r.start - begun, r.end - begun))
            if r.start > r.sent:
                spans.append(Span("queue", "queue", name, r.sent - begun, r.start - begun))
        return Trace(spans)


def merge(runs: Sequence[Run]) -> Run:
    """Several runs beside each other as one, the servers numbered through."""
    requests, before = [], 0
    for run in runs:
        requests += [r._replace(server=before + r.server) for r in run.requests]
        before += run.servers
    return Run(before, tuple(sorted(requests)))
