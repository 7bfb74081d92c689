"""Who is woken in vain: one condition per predicate, or one for all.

A wake-up is *futile* if the woken thread finds its predicate false and has to sleep again. It
costs two context switches and a turn at the mutex, for nothing. A bounded buffer has two
predicates, "there is room" and "there is an item". With a condition for each, `notify` reaches
somebody who waits for just that. With one condition for both, `notify` may wake the wrong one and
the wake-up is lost; so it takes `notify_all`, and whoever finds nothing to do has woken in vain.
Many who wake for one item are a "thundering herd".

Source: C. Hoare, "Monitors: an operating system structuring concept", CACM 17(10), 1974, gives each
predicate its condition; B. Lampson, D. Redell, "Experience with Processes and Monitors in Mesa",
CACM 23(2), 1980, section 4, says when a broadcast is needed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, get_args

from matplotlib.ticker import MaxNLocator

from utils.core import plots, trace
from utils.core.experiment import Range, checkpoint, experiment, gather
from utils.core.trace import Trace, now
from utils.core.workers import crew, lanes
from utils.threads.primitives.condition import Condition
from utils.threads.primitives.mutex import Mutex

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

ITEMS = 840  # divides by every number of producers and consumers, 1 to 8
DEADLINE = 20.0  # seconds for anything that blocks
NAMES = {True: "woken for something", False: "woken in vain"}


class Wake(NamedTuple):
    """`lane` woke at `at` (ns of `now()`); `useful` if its predicate held then."""

    lane: str
    at: int
    useful: bool


class Counting(Condition):
    """A condition that writes every wake-up by a notification into `wakes`.

    Several conditions of one lock may share one list: it changes under the lock only.
    """

    def __init__(self, lock: Mutex, wakes: list[Wake], name: str) -> None:
        super().__init__(lock, name=name)
        self.wakes = wakes

    @property
    def waiting(self) -> int:
        """How many sleep here and have not been notified; exact while the lock is held."""
        return len(self._waiters)

    def wait_for(self, predicate: Callable[[], object], timeout: float | None = None) -> bool:
        """As in `Condition`; here `timeout` bounds each sleep, not the sum."""
        while not predicate():
            if not self.wait(timeout):
                return bool(predicate())
            lane = threading.current_thread().name
            self.wakes.append(Wake(lane, now(), bool(predicate())))
        return True


def switches() -> int | None:
    """Context switches of all threads of this process so far; None where nobody counts them."""
    if resource is None:
        return None
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_nvcsw + usage.ru_nivcsw


# ------------------------------------------------------------------------- a bounded buffer
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
    switches: int | None
    seconds: float

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
        before, start = switches(), time.perf_counter()
        gather([pool.submit(use, work) for work in works], timeout=DEADLINE)
        seconds, after = time.perf_counter() - start, switches()
    counted = None if before is None or after is None else after - before
    outcome = tuple(received), buffer.stalled, tuple(buffer.wakes)
    return Passing(variant, *outcome, counted, seconds)


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
        if passing.switches is not None:
            text = f" {passing.switches / ITEMS:.2g} context switches"
            wakes.text(useful + futile, row, text, va="center", fontsize=9)
    wakes.margins(x=0.45)
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


# ------------------------------------------------------------------------ the thundering herd
@dataclass(frozen=True)
class Herd:
    """`waiters` sleep, and one item comes at a time; `rung` is when, in ns of `now()`."""

    waiters: int
    call: Literal["notify_all", "notify"]
    wakes: tuple[Wake, ...]
    rung: tuple[int, ...]
    trace: Trace

    def futile(self, item: int) -> int:
        """Futile wake-ups by the item with this number, from 0."""
        ends = (*self.rung[1:], float("inf"))
        inside = [w for w in self.wakes if self.rung[item] <= w.at < ends[item]]
        return sum(not wake.useful for wake in inside)

    @property
    def expected(self) -> int:
        """All futile wake-ups: n - 1 for the first item, n - 2 for the second, …"""
        return self.waiters * (self.waiters - 1) // 2 if self.call == "notify_all" else 0


@experiment
def stampede(waiters: Annotated[int, Range(1, 32)] = 8) -> tuple[Herd, Herd]:
    """Let `waiters` threads wait for one item each, which come one by one."""
    return _herd(waiters, "notify_all"), _herd(waiters, "notify")


def _herd(waiters: int, call: Literal["notify_all", "notify"]) -> Herd:
    mutex = Mutex("herd")  # must be held whenever items, wakes or the line of waiters change
    bell = Counting(mutex, [], "bell")
    items: list[int] = []
    rung: list[int] = []

    def take() -> None:
        with mutex:
            if not bell.wait_for(lambda: items, DEADLINE):
                raise TimeoutError(f"no item for {DEADLINE:g} s")
            items.pop()

    def settle(asleep: int) -> None:
        """Until so many sleep and no item is left."""
        deadline = time.monotonic() + DEADLINE
        while True:
            with mutex:
                if bell.waiting == asleep and not items:
                    return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{bell.waiting} of {asleep} waiters asleep")
            checkpoint(waiters - asleep, waiters, call)
            time.sleep(0.002)

    with trace.recording() as recorder, crew(waiters) as pool:
        futures = [pool.submit(take) for _ in range(waiters)]
        try:
            for left in range(waiters, 0, -1):
                settle(left)
                with mutex:
                    items.append(left)
                    rung.append(now())
                    getattr(bell, call)()
            gather(futures, timeout=DEADLINE)
        finally:  # whoever still waits, after Cancel, gets an item
            with mutex:
                items.extend(range(waiters))
                bell.notify_all()
    waits = recorder.trace().select(category="lock")
    sleeps = Trace(span for span in waits.spans if span.name == bell.name)
    return Herd(waiters, call, tuple(bell.wakes), tuple(rung), sleeps)


def plot_stampede(result: tuple[Herd, Herd]) -> plots.Picture:
    """When who slept; a dot for each wake-up."""
    rows = lanes(result[0].waiters)
    fig, axes = plots.figure(9, 2 + 0.15 * len(rows), cols=2, sharey=True)
    until = max(herd.trace.duration for herd in result)
    for ax, herd in zip(axes, result, strict=True):
        useful = sum(wake.useful for wake in herd.wakes)
        title = f"{herd.call}: {len(herd.wakes) - useful} of {len(herd.wakes)} wake-ups in vain"
        spans = (span._replace(category="queue") for span in herd.trace.spans)
        plots.timeline(ax, Trace(spans), lanes=rows, title=title, until=until * 1.02)
        for kind, color in ((True, plots.BLUE), (False, plots.VERMILION)):
            wakes = [wake for wake in herd.wakes if wake.useful == kind]
            moments = [(wake.at - herd.trace.start) / 1e9 for wake in wakes]
            ax.plot(moments, [rows.index(w.lane) for w in wakes], "o", ms=4, color=color)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        if len(rows) > 12:
            ax.set_yticks([])
    names = {"queue": "asleep", "compute": NAMES[True], "late": NAMES[False]}
    plots.legend(fig, list(names), names)
    return fig
