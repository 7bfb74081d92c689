"""One condition per predicate, or one for all: who is woken in vain, and who not at all.

A bounded buffer has two predicates, "there is room" and "there is an item". With a condition for
each, `notify` reaches somebody who waits for just that. With one condition for both, `notify` may
wake the wrong one and the wake-up is lost; so it takes `notify_all`, and whoever finds nothing to
do has woken in vain.

Source: C. Hoare, "Monitors: an operating system structuring concept", CACM 17(10), 1974, gives each
predicate its condition; B. Lampson, D. Redell, "Experience with Processes and Monitors in Mesa",
CACM 23(2), 1980, section 4, says when a broadcast is needed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from matplotlib.ticker import MaxNLocator

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment, gather
from utils.core.workers import crew
from utils.performance.synchronisation.wakeups import DEADLINE, NAMES, Counting, Wake
from utils.threads.primitives.condition import Condition
from utils.threads.primitives.mutex import Mutex

ITEMS = 840  # divides by every number of producers and consumers, 1 to 8
Variant = Literal["one each, notify", "merged, notify_all", "merged, notify"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)


class Stalled(RuntimeError):
    """Every thread sleeps, and none is left that could wake another."""


class Buffer:
    """A bounded buffer used by `threads` threads, which leave it by `leave` when they are done."""

    def __init__(self, capacity: int, threads: int, variant: Variant) -> None:
        # mutex must be held whenever anything below changes. Invariant: 0 <= items <= capacity.
        self._mutex = mutex = Mutex("buffer")
        self._items: deque[int] = deque()
        self._capacity, self._threads = capacity, threads
        self.wakes: list[Wake] = []
        self.stalled = False
        self._room = self._item = Counting(mutex, self.wakes, "room or item")
        if variant == "one each, notify":
            self._room = Counting(mutex, self.wakes, "room")
            self._item = Counting(mutex, self.wakes, "item")
        everybody = variant == "merged, notify_all"
        self._ring = Condition.notify_all if everybody else Condition.notify

    def put(self, item: int) -> None:
        with self._mutex:
            self._sleep_until(self._room, lambda: len(self._items) < self._capacity)
            self._items.append(item)
            self._ring(self._item)

    def get(self) -> int:
        with self._mutex:
            self._sleep_until(self._item, lambda: self._items)
            item = self._items.popleft()
            self._ring(self._room)
            return item

    def leave(self) -> None:
        with self._mutex:
            self._threads -= 1
            self._look_for_a_stall(asleep=0)

    def _sleep_until(self, condition: Counting, holds: Callable[[], object]) -> None:
        def ready() -> bool:
            if not holds() and not self.stalled:
                self._look_for_a_stall(asleep=1)  # myself, if I go to sleep now
            return self.stalled or bool(holds())

        if not condition.wait_for(ready, DEADLINE):
            raise TimeoutError(f"{condition.name}: nothing for {DEADLINE:g} s")
        if self.stalled:
            raise Stalled("every thread sleeps")

    def _look_for_a_stall(self, asleep: int) -> None:
        conditions = {self._room, self._item}
        asleep += sum(condition.waiting for condition in conditions)
        if asleep == self._threads > 0:
            self.stalled = True
            self.wakes = self.wakes.copy()  # the conditions go on with the old list: release
            for condition in conditions:
                condition.notify_all()


@dataclass(frozen=True)
class Passing:
    """How one variant passed the items on: `wakes` until the end, or until it stalled."""

    variant: Variant
    received: tuple[int, ...]
    stalled: bool
    wakes: tuple[Wake, ...]
    seconds: float

    mixed: bool  # somebody may be notified who waits for something else

    @property
    def useful(self) -> int:
        return sum(wake.useful for wake in self.wakes)

    @property
    def futile(self) -> int:
        return len(self.wakes) - self.useful

    @property
    def rate(self) -> float:
        """Items a second."""
        return len(self.received) / self.seconds


@experiment
def combine(
    producers: Annotated[int, Range(1, 8)] = 4,
    consumers: Annotated[int, Range(1, 8)] = 4,
    capacity: Annotated[int, Range(1, 16)] = 1,
) -> tuple[Passing, ...]:
    """Pass `ITEMS` items through a bounded buffer, in each variant."""
    passings = []
    for done, variant in enumerate(VARIANTS):
        checkpoint(done, len(VARIANTS), variant)
        passings.append(_pass_on(variant, producers, consumers, capacity))
    return tuple(passings)


def _pass_on(variant: Variant, producers: int, consumers: int, capacity: int) -> Passing:
    buffer = Buffer(capacity, producers + consumers, variant)
    received: list[int] = []  # append is atomic

    def use(work: Callable[[], None]) -> None:
        try:
            work()
        except Stalled:
            pass
        finally:
            buffer.leave()

    def produce(first: int) -> None:
        for item in range(first, ITEMS, producers):
            buffer.put(item)

    def consume() -> None:
        for _ in range(ITEMS // consumers):
            received.append(buffer.get())

    works: list[Callable[[], None]] = [consume] * consumers
    works += [lambda first=first: produce(first) for first in range(producers)]
    with crew(len(works)) as pool:
        start = time.perf_counter()
        gather([pool.submit(use, work) for work in works], timeout=DEADLINE)
        seconds = time.perf_counter() - start
    outcome = tuple(received), buffer.stalled, tuple(buffer.wakes)
    mixed = producers + consumers > 2 and variant != "one each, notify"
    return Passing(variant, *outcome, seconds, mixed)


def plot_combine(result: tuple[Passing, ...]) -> plots.Picture:
    """Wake-ups an item, useful and futile, and items a second, for each variant."""
    fig, (wakes, rate) = plots.figure(9, 2.5, cols=2, sharey=True, width_ratios=[3, 2])
    for row, passing in enumerate(result):
        if passing.stalled:  # a rate of nothing would be no number to compare
            text = f"stalled after {len(passing.received)} of {ITEMS} items: all asleep"
            wakes.text(0, row, f" {text}", va="center", fontsize=9)
            continue
        useful, futile = passing.useful / ITEMS, passing.futile / ITEMS
        wakes.barh(row, useful, color=plots.BLUE)
        wakes.barh(row, futile, left=useful, color=plots.VERMILION)
        rate.barh(row, passing.rate, color=plots.SKY)
        text = f" {passing.futile} in vain"
        wakes.text(useful + futile, row, text, va="center", fontsize=9)
    wakes.margins(x=0.3)
    wakes.set_yticks(range(len(result)), [passing.variant for passing in result])
    wakes.set_ylim(len(result) - 0.5, -0.5)
    wakes.set_title("wake-ups for each item", loc="left")
    rate.set_title("items a second", loc="left")
    rate.xaxis.set_major_locator(MaxNLocator(4))
    for ax in (wakes, rate):
        ax.grid(axis="y", visible=False)
        ax.grid(axis="x", color="#E5E5E5", linewidth=0.8)
    plots.legend(fig, ["compute", "late"], {"compute": NAMES[True], "late": NAMES[False]})
    return fig
