"""The dining philosophers: everybody needs two forks, and a neighbour needs them too.

n philosophers sit round a table with n forks. Each takes the fork at the left and the one at the
right, eats, and puts both back. If all take their left fork at once, all wait for the right one
for ever. Three cures, each of which breaks the circle at another place:

- *ordered*: everybody takes the fork with the smaller number first;
- *waiter*: at most n - 1 may reach for forks at a time;
- *try and back off*: whoever finds the second fork taken puts the first one back.

Source: E. W. Dijkstra, "Hierarchical ordering of sequential processes", EWD 310, 1971. The
waiter: A. Downey, "The Little Book of Semaphores", section 4.4.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Literal

from utils.core import plots
from utils.core.experiment import Range, experiment, gather
from utils.core.trace import Recorder, Trace, now
from utils.core.workers import crew, lanes
from utils.threads.bugs.pair import Pair, together
from utils.threads.primitives.deadlock import Deadlock
from utils.threads.primitives.mutex import Mutex
from utils.threads.primitives.semaphore import Semaphore

Strategy = Literal["naive", "ordered", "waiter", "try and back off"]
THINK, REACH, EAT = 0.004, 0.002, 0.008  # seconds; REACH lies between the two forks
DEADLINE = 20.0  # seconds for anything that blocks


def wrong() -> None:
    forks = [threading.Lock(), threading.Lock(), threading.Lock()]

    def eat(left: int, right: int) -> None:
        with forks[left], forks[right]:
            pass

    def ada() -> None:
        eat(0, 1)

    def bob() -> None:
        eat(1, 2)

    def eve() -> None:
        eat(2, 0)

    together(ada, bob, eve)


def right() -> None:
    forks = [threading.Lock(), threading.Lock(), threading.Lock()]

    def eat(left: int, right: int) -> None:
        with forks[min(left, right)], forks[max(left, right)]:
            pass

    def ada() -> None:
        eat(0, 1)

    def bob() -> None:
        eat(1, 2)

    def eve() -> None:
        eat(2, 0)

    together(ada, bob, eve)


PAIR = Pair(
    "dining philosophers",
    "deadlock",
    wrong,
    right,
    "Number the forks and take the smaller number first: nobody can close the circle.",
)


class Table:
    """`forks[seat]` lies at the left of `seat`, `forks[seat + 1]` at its right, round the table."""

    def __init__(self, seats: int) -> None:
        self.forks = [Mutex(f"fork {number}") for number in range(1, seats + 1)]
        self.waiter = Semaphore(max(1, seats - 1), name="waiter")

    def reach(self, seat: int) -> tuple[Mutex, Mutex]:
        return self.forks[seat], self.forks[(seat + 1) % len(self.forks)]


@contextmanager
def naive(table: Table, seat: int) -> Iterator[None]:
    left, right = table.reach(seat)
    with left:
        time.sleep(REACH)
        with right:
            yield


@contextmanager
def ordered(table: Table, seat: int) -> Iterator[None]:
    first, second = sorted(table.reach(seat), key=table.forks.index)
    with first:
        time.sleep(REACH)
        with second:
            yield


@contextmanager
def waiter(table: Table, seat: int) -> Iterator[None]:
    with table.waiter, naive(table, seat):
        yield


@contextmanager
def try_and_back_off(table: Table, seat: int) -> Iterator[None]:
    left, right = table.reach(seat)
    while True:
        with left:
            time.sleep(REACH)
            if right.acquire(blocking=False):
                try:
                    yield
                finally:
                    right.release()
                return
        time.sleep(random.uniform(0, 4 * REACH))  # at random: in step they would never eat


STRATEGIES: dict[Strategy, Callable[[Table, int], AbstractContextManager[None]]] = {
    "naive": naive,
    "ordered": ordered,
    "waiter": waiter,
    "try and back off": try_and_back_off,
}


@dataclass(frozen=True)
class Dinner:
    """`deadlocks`: (moment, the circle of waiting), each broken by one who put a fork back."""

    philosophers: int
    strategy: Strategy
    meals: int
    trace: Trace
    deadlocks: tuple[tuple[int, Deadlock], ...]

    @property
    def eaten(self) -> int:
        return len(self.trace.select(category="decode"))

    @property
    def at_once(self) -> float:
        """How many were eating, on average."""
        return self.trace.total("decode") / self.trace.duration

    @property
    def best_at_once(self) -> int:
        """A meal takes two forks, so at most half of the philosophers eat at once."""
        return self.philosophers // 2


@dataclass
class _Evening:
    """What the philosophers of one dinner share."""

    table: Table
    strategy: Strategy
    meals: int
    recorder: Recorder = field(default_factory=Recorder)
    deadlocks: list[tuple[int, Deadlock]] = field(default_factory=list)  # append is atomic

    def live(self, seat: int) -> None:
        lane = threading.current_thread().name = f"philosopher {seat + 1}"  # as `Deadlock` says it
        for meal in range(self.meals):
            with self.recorder.span("idle", "think", lane=lane):
                time.sleep(THINK)
            hungry = now()
            while not self._eat(seat, lane, f"meal {meal + 1}", hungry):
                time.sleep(random.uniform(0, THINK))  # the fork is back on the table: let others

    def _eat(self, seat: int, lane: str, meal: str, hungry: int) -> bool:
        """Eat once; False if waiting for a fork would have closed a circle."""
        try:
            with STRATEGIES[self.strategy](self.table, seat):
                start = now()
                self.recorder.add(lane, "lock", "hungry", hungry, start)
                time.sleep(EAT)
                self.recorder.add(lane, "decode", meal, start, now())
        except Deadlock as deadlock:
            self.deadlocks.append((now(), deadlock))
            return False
        return True


@experiment
def dine(
    philosophers: Annotated[int, Range(2, 8)] = 5,
    strategy: Strategy = "naive",
    meals: Annotated[int, Range(1, 6, label="meals each")] = 3,
) -> Dinner:
    """Let everybody eat `meals` times.

    A fork is a `Mutex`: whoever would close a circle of waiting gets `Deadlock` instead, puts the
    other fork back and tries again later, so that even the naive evening comes to an end.
    """
    evening = _Evening(Table(philosophers), strategy, meals)
    with crew(philosophers, "philosopher") as pool:
        futures = [pool.submit(evening.live, seat) for seat in range(philosophers)]
        gather(futures, timeout=DEADLINE, note=strategy, total=philosophers)
    return Dinner(philosophers, strategy, meals, evening.recorder.trace(), tuple(evening.deadlocks))


def plot(result: Dinner) -> plots.Picture:
    """A row a philosopher; a dashed line where a deadlock was found."""
    rows = lanes(result.philosophers, "philosopher")
    fig, ax = plots.figure(9, 1.7 + 0.3 * len(rows))
    found = len(result.deadlocks)
    noun = "deadlock" if found == 1 else "deadlocks"
    title = (
        f"{result.strategy}: {found} {noun}, {result.at_once:.1f} eat at once "
        f"(at most {result.best_at_once})"
    )
    plots.timeline(ax, result.trace, lanes=rows, title=title)
    for moment, _ in result.deadlocks:
        ax.axvline((moment - result.trace.start) / 1e9, color=plots.INK, linestyle="--")
    names = {"idle": "thinks", "lock": "hungry: waits for forks", "decode": "eats"}
    plots.legend(fig, list(names), names)
    return fig
