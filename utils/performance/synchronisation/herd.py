"""The thundering herd: many wait for the same thing, one item comes, and all are woken."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Literal

from matplotlib.ticker import MaxNLocator

from utils.core import plots, trace
from utils.core.experiment import Range, checkpoint, experiment, gather
from utils.core.trace import Trace, now
from utils.core.workers import crew, lanes
from utils.performance.synchronisation.wakeups import DEADLINE, NAMES, Counting, Wake
from utils.threads.primitives.mutex import Mutex


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
