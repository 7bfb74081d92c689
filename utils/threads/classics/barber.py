"""The sleeping barber: a service with few chairs sleeps when idle and turns people away when full.

Customers who find a free chair wait for their turn, others leave at once: bounded admission. The
barber sleeps on a semaphore that counts the waiting. Whoever looks at the chairs and then sleeps or
leaves, in two steps, can miss the one who came in between.

Theory: with arrivals and cuts of exponentially distributed length this is the queue M/M/1/K, K =
chairs + the one being served; it turns away (1 - r) r^K / (1 - r^(K+1)) of the customers, r = cut
time / time between arrivals.

Source: E. W. Dijkstra, "Cooperating sequential processes", EWD 123, 1965, section 4.2. The formula:
L. Kleinrock, "Queueing Systems", volume 1, 1975, section 3.6.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import Annotated

from utils.core import plots
from utils.core.experiment import Range, experiment, gather
from utils.core.trace import Recorder, Trace, now
from utils.core.workers import crew
from utils.threads.bugs.pair import Pair, together
from utils.threads.primitives.condition import Condition
from utils.threads.primitives.semaphore import Semaphore

CUSTOMERS = 150
DEADLINE = 20.0  # seconds for anything that blocks


def wrong() -> None:
    waiting = 0
    asleep = False
    mutex = threading.Lock()  # held whenever waiting or asleep changes
    bell = Condition()

    def barber() -> None:
        nonlocal asleep
        with mutex:
            nobody = waiting == 0
            asleep = nobody
        if nobody:
            with bell:
                bell.wait()

    def customer() -> None:
        nonlocal waiting
        with mutex:
            waiting += 1
            wake = asleep
        if wake:
            with bell:
                bell.notify()

    together(barber, customer)


def right() -> None:
    customers = Semaphore(0)  # remembers who rang, whether or not the barber was asleep

    def barber() -> None:
        customers.acquire()

    def customer() -> None:
        customers.release()

    together(barber, customer)


PAIR = Pair(
    "sleeping barber",
    "deadlock",
    wrong,
    right,
    "A semaphore remembers the signal that a sleeper-to-be has not heard yet.",
)


@dataclass(frozen=True)
class Day:
    """Lane "barber" of `trace`: "compute" a cut, "idle" asleep. `turned_away`: moments."""

    chairs: int
    arrival: float  # mean seconds between two customers
    cut: float  # mean seconds of a cut
    trace: Trace
    waiting: tuple[tuple[int, int], ...]  # (moment, customers in chairs)
    turned_away: tuple[int, ...]

    @property
    def served(self) -> int:
        return len(self.trace.select(category="compute"))

    @property
    def share_turned_away(self) -> float:
        return len(self.turned_away) / CUSTOMERS

    @property
    def expected_share(self) -> float:
        places, load = self.chairs + 1, self.cut / self.arrival
        return load**places / sum(load**number for number in range(places + 1))


class Shop:
    """One barber and `chairs` to wait on; `customers` counts those whom he has not called yet."""

    def __init__(self, chairs: int) -> None:
        self.chairs = chairs
        self.customers = Semaphore(0, name="customers")
        self.mutex = threading.Lock()  # held whenever waiting changes
        self.waiting: list[tuple[int, int]] = [(now(), 0)]
        self.turned_away: list[int] = []
        self.recorder = Recorder()

    def enter(self) -> None:
        """A customer takes a chair and rings, or leaves if there is no chair."""
        with self.mutex:
            seated = self.waiting[-1][1]
            if seated == self.chairs:
                self.turned_away.append(now())
                return
            self.waiting.append((now(), seated + 1))
        self.customers.release()

    def close(self) -> None:
        """Wake the barber when nobody will come any more."""
        self.customers.release()

    def work(self, cut: float, chance: random.Random) -> None:
        """Serve customers, each for `cut` seconds on average, until the shop has closed."""
        while True:
            with self.recorder.span("idle", "sleep", lane="barber"):
                if not self.customers.acquire(timeout=DEADLINE):
                    raise TimeoutError(f"no customer for {DEADLINE:g} s")
            with self.mutex:
                seated = self.waiting[-1][1]
                if seated == 0:  # nobody waits: it was `close` that rang
                    return
                self.waiting.append((now(), seated - 1))
            with self.recorder.span("compute", "cut", lane="barber"):
                time.sleep(chance.expovariate(1 / cut))


@experiment
def open_shop(
    chairs: Annotated[int, Range(1, 6)] = 2,
    arrival_ms: Annotated[int, Range(2, 8, label="ms between customers")] = 3,
    cut_ms: Annotated[int, Range(2, 8, label="ms a cut")] = 3,
    seed: Annotated[int, Range(0, 9, label="another day")] = 0,
) -> Day:
    """`CUSTOMERS` come one by one at random; see how many find no chair."""
    shop, street = Shop(chairs), random.Random(seed)

    def arrive() -> None:
        for _ in range(CUSTOMERS):
            time.sleep(street.expovariate(1e3 / arrival_ms))
            shop.enter()
        shop.close()

    with crew(2) as pool:
        barber = pool.submit(shop.work, cut_ms / 1e3, random.Random(seed + 100))
        gather([barber, pool.submit(arrive)], timeout=DEADLINE, note="open")
    return Day(
        chairs,
        arrival_ms / 1e3,
        cut_ms / 1e3,
        shop.recorder.trace(),
        tuple(shop.waiting),
        tuple(shop.turned_away),
    )


def plot(result: Day) -> plots.Picture:
    """The barber, the chairs, and the share that found none."""
    fig = plots.Picture(figsize=(9, 3.4), layout="constrained")
    grid = fig.add_gridspec(2, 2, height_ratios=[1, 1.6], width_ratios=[5, 1])
    who, chairs = (plots.style(fig.add_subplot(grid[row, 0])) for row in range(2))
    bars = plots.style(fig.add_subplot(grid[:, 1]))
    trace = result.trace
    title = f"{result.served} of {CUSTOMERS} customers served"
    plots.timeline(who, trace, title=title)
    who.set_xlabel("")
    moments = [(moment - trace.start) / 1e9 for moment, _ in result.waiting]
    counts = [count for _, count in result.waiting]
    chairs.fill_between(moments, counts, step="post", color=plots.YELLOW)
    away = [(moment - trace.start) / 1e9 for moment in result.turned_away]
    above = [result.chairs + 0.5] * len(away)
    chairs.plot(away, above, "x", color=plots.VERMILION, markersize=5)
    chairs.axhline(result.chairs, color=plots.INK, linestyle="--", linewidth=0.8)
    chairs.set(xlim=who.get_xlim(), ylim=(0, result.chairs + 1), yticks=range(result.chairs + 1))
    chairs.set_title("chairs taken; a cross: turned away", loc="left")
    chairs.set_xlabel("seconds", fontsize=9)
    shares = {"theory": 100 * result.expected_share, "measured": 100 * result.share_turned_away}
    drawn = bars.bar(list(shares), list(shares.values()), color=[*map(plots.color, shares)])
    bars.bar_label(drawn, fmt="%.0f", fontsize=9, padding=2)
    bars.set_title("% turned away", loc="left")
    bars.margins(y=0.15)
    names = {"compute": "cuts", "idle": "sleeps"}
    plots.legend(fig, list(names), names)
    return fig
