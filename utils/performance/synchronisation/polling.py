"""A time-out bounds a wait; it does not make it cheaper.

Who waits with a time-out t, looks, and waits again, is *polling*. In T seconds it wakes T / t times
for nothing. And if nobody notifies it, it hears of an event at its next look: after t / 2 on
average, if the event falls anywhere between two looks. So a poller buys a quick reaction with
wake-ups. Who is notified wakes once, at once; then a time-out adds wake-ups and buys no speed. What
it is good for: to notice that something else went wrong.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Annotated

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment, gather
from utils.core.trace import now
from utils.core.workers import crew
from utils.threads.primitives.condition import Condition

TIMEOUTS = (2.0, 8.0, 32.0, 128.0)  # ms, besides the chosen one
WAITERS = 4  # of each kind
SECONDS = 1.0  # until the event
PAUSE = 0.005  # seconds between the events of two kinds
DEADLINE = 20.0  # seconds for anything that blocks


class Event:
    """A flag and its condition; `at` is when it was raised, in ns of `now()`."""

    def __init__(self) -> None:
        self.changed = Condition(name="event")  # its lock must be held whenever `at` changes
        self.at = 0

    def happen(self, notify: bool) -> None:
        with self.changed:
            self.at = now()
            if notify:
                self.changed.notify_all()

    def watch(self, timeout: float, first: float) -> tuple[int, float]:
        """Wait, `timeout` seconds at a time (at `first` less), until it has happened.

        Returns the number of wake-ups and the seconds from the event to the last one.
        """
        wakeups = 0
        with self.changed:
            while not self.at:
                self.changed.wait(first if wakeups == 0 else timeout)
                wakeups += 1
            return wakeups, (now() - self.at) / 1e9


@dataclass(frozen=True)
class Waits:
    """Means over the waiters of one kind: wake-ups until the event, seconds until they react."""

    timeout: float  # seconds
    notified: bool
    wakeups: float
    reaction: float


@dataclass(frozen=True)
class Polling:
    """For each time-out a poller (not notified) and a waiter who is; `plain` has no time-out."""

    chosen: float  # seconds
    polled: tuple[Waits, ...]
    notified: tuple[Waits, ...]
    plain: Waits

    def poller(self, timeout: float) -> Waits:
        """The poller with that time-out; KeyError if there was none."""
        return {waits.timeout: waits for waits in self.polled}[timeout]


@experiment
def poll(
    timeout_ms: Annotated[float, Range(1, 500, label="time-out [ms]")] = 16,
) -> Polling:
    """Let all kinds wait at the same time for an event that comes after `SECONDS`."""
    timeouts = [ms / 1e3 for ms in sorted({*TIMEOUTS, timeout_ms})]
    kinds = [(timeout, notified) for notified in (False, True) for timeout in timeouts]
    kinds.append((DEADLINE, True))  # plain: its time-out is never reached
    events = [Event() for _ in kinds]
    with crew(len(kinds) * WAITERS) as pool:
        futures = [
            # The first wait is shorter, so that the looks of one kind are spread out evenly.
            [pool.submit(event.watch, t, t * (i + 0.5) / WAITERS) for i in range(WAITERS)]
            for event, (t, _) in zip(events, kinds, strict=True)
        ]
        try:
            _sleep(SECONDS)
        finally:
            plain = events[-1]
            for event, (_, notified) in zip(events, kinds, strict=True):
                event.happen(notify=notified or event is plain)
                time.sleep(PAUSE)  # else all woken threads are in each other's way
        answers = [gather(group, timeout=DEADLINE) for group in futures]
    waits = [
        Waits(t, notified, *(statistics.mean(column) for column in zip(*answer, strict=True)))
        for (t, notified), answer in zip(kinds, answers, strict=True)
    ]
    half = len(timeouts)
    return Polling(timeout_ms / 1e3, tuple(waits[:half]), tuple(waits[half:-1]), waits[-1])


def _sleep(seconds: float) -> None:
    steps = 20
    for step in range(steps):
        checkpoint(step, steps, "waiting for the event")
        time.sleep(seconds / steps)


def plot(result: Polling) -> plots.Picture:
    """Wake-ups and reaction over the time-out; dashed: T / t and t / 2."""
    fig, (wakeups, reaction) = plots.figure(9, 3.2, cols=2)
    timeouts = [1e3 * waits.timeout for waits in result.polled]
    kinds = {
        "polls": (result.polled, "o-"),
        "is notified, with a time-out": (result.notified, "s:"),
    }
    for (name, (waits, marks)), color in zip(
        kinds.items(), (plots.VERMILION, plots.BLUE), strict=True
    ):
        wakeups.loglog(timeouts, [w.wakeups for w in waits], marks, color=color, label=name)
        reaction.loglog(timeouts, [1e3 * w.reaction for w in waits], marks, color=color)
    theory = plots.color("theory")
    wakeups.loglog(timeouts, [1e3 * SECONDS / t for t in timeouts], "--", color=theory)
    reaction.loglog(timeouts, [t / 2 for t in timeouts], "--", color=theory, label="theory")
    plain = result.plain
    for ax, value in ((wakeups, plain.wakeups), (reaction, 1e3 * plain.reaction)):
        ax.axhline(value, color=plots.GREEN, label="is notified, no time-out")
        ax.axvline(1e3 * result.chosen, color=plots.ORANGE, linewidth=6, alpha=0.25)
        ax.set_xticks(timeouts, [f"{timeout:g}" for timeout in timeouts])
        ax.xaxis.minorticks_off()
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_xlabel("time-out [ms]", fontsize=9)
    wakeups.set_title(f"wake-ups until the event, in {SECONDS:g} s", loc="left")
    reaction.set_title("reaction to the event [ms]", loc="left")
    handles = wakeups.get_legend_handles_labels()[0] + reaction.get_legend_handles_labels()[0][:1]
    fig.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return fig
