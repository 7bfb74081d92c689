"""Convoys: one thread is slow once, and from then on everybody waits every time.

A lock that is held for microseconds is nearly always free, until a thread is stopped while it holds
it. The others come and queue up. If the lock is then *handed* from one to the next in order of
arrival, it is taken even while its new owner still sleeps; meanwhile the last owner comes round and
queues up again. So each acquisition costs a wake-up, and the queue lasts long after its cause.
The cure is to set the lock free on release, even if the releaser gets in again before those who
wait: not fair, but the queue can dissolve. (M. Blasgen, J. Gray, M. Mitoma, T. Price, "The Convoy
Phenomenon", ACM SIGOPS Operating Systems Review 13(2), 1979.)

The GIL knows a convoy of another kind: a thread that waits for I/O gives the GIL up, and if another
one computes in Python meanwhile, it gets it back a switch interval later, each time (D. Beazley,
"Convoy effect with I/O bound threads and New GIL", CPython issue 7946, 2010).
"""

from __future__ import annotations

import hashlib
import statistics
import threading
import time
from _thread import allocate_lock
from collections import deque
from dataclasses import dataclass
from typing import Annotated

from utils.core import machine, plots, trace
from utils.core.experiment import Range, checkpoint, current, experiment, gather
from utils.core.trace import Span, Trace, now
from utils.core.workers import crew, lanes
from utils.threads.life.switching import switch_interval
from utils.threads.primitives.mutex import Mutex

DEADLINE = 20.0  # seconds for anything that blocks


class HandOverLock:
    """A fair lock, for `with`: who leaves passes it on to whoever has waited longest."""

    def __init__(self, name: str = "hand-over lock") -> None:
        self.name = name
        # mutex must be held whenever the two below change. Invariant: held, or nobody in line.
        self._mutex = allocate_lock()
        self._held = False
        self._line: deque = deque()  # a taken lock for each waiter, who sleeps on it

    def __enter__(self) -> None:
        with self._mutex:
            if not self._held:
                self._held = True
                return
            turn = allocate_lock()
            turn.acquire()
            self._line.append(turn)
        with trace.span("lock", self.name):
            turn.acquire()

    def __exit__(self, *error: object) -> None:
        with self._mutex:
            if self._line:
                self._line.popleft().release()  # and it stays held: now by somebody else
            else:
                self._held = False


KINDS = {"hands over": HandOverLock, "sets free": Mutex}
BEFORE, STALL, AFTER = 0.04, 0.002, 0.08  # seconds
INSIDE, OUTSIDE = memoryview(bytes(2**12)), memoryview(bytes(2**18))  # what is hashed in a round


@dataclass(frozen=True)
class Convoy:
    """By kind of lock: who waited ("lock") and held ("hold") when, and when one was stopped."""

    threads: int
    trace: dict[str, Trace]
    stall: dict[str, tuple[int, int]]  # from, to; ns of `now()`

    def waited(self, kind: str, after: bool) -> float:
        """Share of the acquisitions before or after the stall that had to wait."""
        first, last = self.stall[kind]
        waits, holds = (
            sum(s.start > last if after else s.end < first for s in part.spans)
            for part in (self.trace[kind].select(category=c) for c in ("lock", "hold"))
        )
        return waits / max(1, holds)


@experiment
def stop_one(
    threads: Annotated[int, Range(2, 4 * machine.cores() + 4)] = 2 * machine.cores() + 2,
) -> Convoy:
    """Rounds of much outside and little inside a lock; once, one thread is stopped inside."""
    traces, stalls = {}, {}
    for done, (kind, make) in enumerate(KINDS.items()):
        checkpoint(done, len(KINDS), kind)
        traces[kind], stalls[kind] = _rounds(make("hot"), threads)
    return Convoy(threads, traces, stalls)


def _rounds(lock: HandOverLock | Mutex, threads: int) -> tuple[Trace, tuple[int, int]]:
    control, stall = current(), []  # lock must be held whenever stall changes

    def work() -> None:
        while (now() < end or not stall) and not control.cancelled:
            hashlib.sha256(OUTSIDE)
            with lock, trace.span("hold", "inside"):
                hashlib.sha256(INSIDE)
                if not stall and now() > middle:
                    stall.append(now())
                    time.sleep(STALL)
                    stall.append(now())

    with trace.recording() as recorder, crew(threads) as pool:
        middle = now() + int(BEFORE * 1e9)
        end = middle + int((STALL + AFTER) * 1e9)
        gather([pool.submit(work) for _ in range(threads)], timeout=DEADLINE)
    spans = (s for s in recorder.trace().spans if s.category == "lock" or s.name == "inside")
    return Trace(spans), (stall[0], stall[1])


def plot(result: Convoy) -> plots.Picture:
    """What happened around the stall."""
    shown = lanes(min(result.threads, 12))
    fig, axes = plots.figure(9, 1.6 + 0.36 * len(shown), rows=2, sharex=True)
    for ax, (kind, everything) in zip(axes, result.trace.items(), strict=True):
        first, last = result.stall[kind]
        low, high = first - 1_000_000, last + 5_000_000
        seen = Trace(
            span._replace(start=max(low, span.start))
            for span in everything.spans
            if span.end > low and span.start < high
        )
        before, after = result.waited(kind, after=False), result.waited(kind, after=True)
        title = f"{kind}: before, {before:.0%} of the acquisitions had to wait; after, {after:.0%}"
        until = (high - low) / 1e9
        plots.timeline(ax, seen, lanes=shown, title=title, until=until)
    axes[0].set_xlabel("")
    names = {"lock": "waits for the lock", "hold": "holds it (white: outside)"}
    plots.legend(fig, list(names), names)
    return fig


INTERVALS = (1.0, 5.0, 10.0, 20.0)  # ms
NAPS, NAP = 20, 0.001  # how often, and for how many seconds, the I/O thread waits


@dataclass(frozen=True)
class Delays:
    """`naps[i]`: spans of the thread that does I/O, beside one that computes; `alone`: without it.

    "sleep" is what it asked for, "gil" the time until it ran again. Keys are switch intervals in s.
    """

    interval: float
    gil: bool
    naps: dict[float, Trace]
    alone: Trace

    def median(self, interval: float) -> float:
        """Median seconds from the end of the wait until the thread ran again."""
        return delay(self.naps[interval])

    def expected(self, interval: float) -> float:
        return interval if self.gil else 0.0


def delay(naps: Trace) -> float:
    """Median seconds of the "gil" spans."""
    return statistics.median(span.seconds for span in naps.select(category="gil").spans)


@experiment
def share_gil(
    milliseconds: Annotated[float, Range(0.5, 20, 0.5, label="switch interval [ms]")] = 5.0,
) -> Delays:
    """A thread waits a millisecond at a time, beside one that computes in Python."""
    naps = {}
    intervals = sorted({*INTERVALS, milliseconds})
    for done, interval in enumerate(intervals):
        checkpoint(done, len(intervals), f"{interval:g} ms")
        with switch_interval(interval / 1e3):
            naps[interval / 1e3] = _nap_beside(computing=1)
    return Delays(milliseconds / 1e3, machine.gil(), naps, _nap_beside(computing=0))


def _nap_beside(computing: int) -> Trace:
    control, stop = current(), threading.Event()

    def compute() -> None:
        while not stop.is_set():
            pass

    def nap() -> list[Span]:
        spans = []
        for _ in range(NAPS):
            if control.cancelled:
                break
            start = now()
            time.sleep(NAP)
            due = start + int(NAP * 1e9)
            end = max(due, now())
            spans += [Span("I/O", "sleep", "", start, due), Span("I/O", "gil", "", due, end)]
        return spans

    with crew(1 + computing) as pool:
        try:
            for _ in range(computing):
                pool.submit(compute)
            (spans,) = gather([pool.submit(nap)], timeout=DEADLINE)
        finally:
            stop.set()
    return Trace(spans)


def plot_delays(result: Delays) -> plots.Picture:
    """The thread's naps at the chosen interval and alone, and the delay over the interval."""
    fig, (ax, curve) = plots.figure(9, 2.6, cols=2, gridspec_kw={"width_ratios": [3, 2]})
    both = {"alone": result.alone, "beside Python": result.naps[result.interval]}
    moved = (
        span._replace(lane=lane, start=span.start - naps.start, end=span.end - naps.start)
        for lane, naps in both.items()
        for span in naps.spans
    )
    gil = "" if result.gil else " (no GIL)"
    title = f"I/O thread, switch interval {1e3 * result.interval:g} ms{gil}"
    plots.timeline(ax, Trace(moved), lanes=list(both), title=title, until=10 * NAP + 0.03)
    intervals = list(result.naps)
    milliseconds = [1e3 * interval for interval in intervals]
    for name, series in {"theory": result.expected, "measured": result.median}.items():
        delays = [1e3 * series(interval) for interval in intervals]
        style = "--" if name == "theory" else "o-"
        curve.plot(milliseconds, delays, style, color=plots.color(name), label=name)
    curve.axhline(1e3 * delay(result.alone), color=plots.SKY, label="alone")
    curve.set_xlabel("switch interval [ms]", fontsize=9)
    curve.set_title("median delay [ms]", loc="left")
    curve.set_ylim(bottom=0)
    curve.legend(frameon=False, fontsize=9)
    names = {"sleep": "waits, as it asked to", "gil": "waits for the GIL and a core"}
    plots.legend(fig, list(names), names)
    return fig
