"""What waiting costs in the long run: c servers, one queue, arrivals independent of each other.

With Poisson arrivals and exponential service times (M/M/c) the share of requests that find every
server busy is Erlang's C formula. (A. Erlang, "Solution of some Problems in the Theory of
Probabilities of Significance in Automatic Telephone Exchanges", 1917.) If the service times vary
otherwise, the wait changes by (1 + V²) / 2, where V is their standard deviation in units of their
mean: exactly so for one server (Pollaczek and Khinchine), and roughly for several (W. Whitt,
"Approximations for the GI/G/m Queue", Production and Operations Management 2(2), 1993).

How many requests are there follows from how long they stay, whatever the arrivals and the service:
L = λ W. (J. Little, "A Proof for the Queuing Formula L = λW", Operations Research 9(3), 1961.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Steady:
    """A queue that has settled: `arrival_rate` a second, `service` seconds each on average.

    `variability` V of the service times: 0 all equal, 1 exponential, more a heavy tail.
    """

    arrival_rate: float
    service: float
    servers: int = 1
    variability: float = 1.0

    def __post_init__(self) -> None:
        for name in ("arrival_rate", "service"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)!r}: give a finite number above 0")
        if self.servers < 1 or self.servers != int(self.servers):
            raise ValueError(f"servers={self.servers!r}: give a whole number, 1 or more")
        if not 0 <= self.variability < math.inf:
            raise ValueError(f"variability={self.variability!r}: give a finite number, 0 or more")
        if self.utilisation >= 1:
            raise ValueError(
                f"arrival_rate={self.arrival_rate:g} asks for {self.load:g} busy servers and there "
                f"are {self.servers}: the queue grows for ever, and no mean exists"
            )

    @property
    def load(self) -> float:
        """Servers busy on average."""
        return self.arrival_rate * self.service

    @property
    def utilisation(self) -> float:
        """Share of the time that a server is busy, ρ."""
        return self.load / self.servers

    @property
    def waiting_share(self) -> float:
        """Share of requests that find all servers busy, for exponential service (Erlang C)."""
        lost = 1.0  # Erlang B, built up server by server: no factorials, no overflow
        for server in range(1, self.servers + 1):
            lost = self.load * lost / (server + self.load * lost)
        return lost / (1 - self.utilisation * (1 - lost))

    @property
    def mean_wait(self) -> float:
        """Seconds from arrival to service, Wq."""
        exponential = self.waiting_share * self.service / (self.servers - self.load)
        return exponential * (1 + self.variability**2) / 2

    @property
    def mean_response(self) -> float:
        """Seconds from arrival to answer, W."""
        return self.mean_wait + self.service

    @property
    def mean_queue(self) -> float:
        """Requests that wait, Lq, by Little's law."""
        return self.arrival_rate * self.mean_wait

    @property
    def mean_number(self) -> float:
        """Requests that wait or are served, L, by Little's law."""
        return self.arrival_rate * self.mean_response

    def wait_percentile(self, percent: float) -> float:
        """Seconds that `percent` % of the requests do not wait longer than.

        A wait, if there is one, is exponential. ValueError if the service is not.
        """
        if not 0 <= percent < 100:
            raise ValueError(f"percent={percent!r} is not allowed: give 0 or more and below 100")
        if self.variability != 1:
            raise ValueError(f"variability={self.variability:g}: percentiles are known for 1 only")
        beyond = 1 - percent / 100
        if beyond >= self.waiting_share:
            return 0.0
        return math.log(self.waiting_share / beyond) * self.service / (self.servers - self.load)
