"""Priority inversion: the urgent thread waits for a less urgent one that it shares nothing with.

Low holds a mutex, high waits for it, and medium, which needs no mutex, keeps low from running. So
high waits for medium, for as long as medium likes. *Priority inheritance* ends this: who holds a
mutex has, until release, the priority of the most urgent thread that waits for it. (L. Sha,
R. Rajkumar, J. Lehoczky, "Priority Inheritance Protocols: An Approach to Real-Time
Synchronization", IEEE Transactions on Computers 39(9), 1990.)

Python threads have no priorities. Of those that Linux gives them a process without privileges may
only lower one (getpriority(2)), and inheritance has to raise one. Hence a processor of our own: the
tasks are real threads that block on real conditions, but only the one to which `Core` gives the
core runs its next slice.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from utils.core import plots
from utils.core.experiment import Range, checkpoint, current, experiment, gather
from utils.core.trace import Recorder, Trace, now
from utils.core.workers import crew
from utils.threads.primitives.condition import Condition

SLICE = 0.004  # seconds that a task runs before the core is given out anew
LATEST = 16  # slices: how long after its arrival high must have ended
DEADLINE = 20.0  # seconds for anything that blocks

Doing = Literal["sleep", "hold"]  # outside the mutex, inside; its work is to sleep for a slice


@dataclass(eq=False)
class Task:
    """Arrives after `arrives` slices of the core and needs it for `slices`."""

    name: str
    priority: int  # the highest goes first
    arrives: int
    slices: tuple[Doing, ...]
    state: Literal["ready", "blocked", "done"] = "ready"
    response: int = 0  # slices from its arrival to its end


class Core:
    """One processor and one mutex for `tasks`: by priority, preemptive between slices."""

    def __init__(self, tasks: list[Task], inherit: bool) -> None:
        self._tasks, self._inherit = tasks, inherit
        self._recorder, self._control = Recorder(), current()
        # turn must be held whenever a task or anything below changes; it is notified when the core
        # changes hands. Who has the core works without holding turn: the others wait for it.
        self._turn = Condition(name="turn")
        self._clock = 0  # slices so far
        self._running: Task | None = None  # has the core
        self._owner: Task | None = None  # holds the mutex

    def run(self) -> Trace:
        """Run every task to its end, each in a thread of its own."""
        with self._turn:
            self._reschedule()
        with crew(len(self._tasks)) as pool:
            gather([pool.submit(self._live, task) for task in self._tasks], timeout=DEADLINE)
        return self._recorder.trace()

    def _live(self, task: Task) -> None:
        with self._turn:
            self._wait_for_core(task, "idle")
        for doing, after in pairwise((*task.slices, "end")):
            with self._recorder.span(doing, task.name, lane=task.name):
                time.sleep(SLICE)
            if self._control.cancelled:
                after = "end"
            with self._turn:
                self._clock += 1
                if doing == "hold" != after:
                    self._release()
                if after == "end":
                    task.state, task.response = "done", self._clock - task.arrives
                    self._reschedule()
                    return
                self._reschedule()
                self._wait_for_core(task, "ready")
                if after == "hold" != doing:
                    self._acquire(task)

    def _urgency(self, task: Task) -> int:
        """The task's priority, or that of the most urgent one that waits for its mutex."""
        inherited = []
        if self._inherit and task is self._owner:
            inherited = [t.priority for t in self._tasks if t.state == "blocked"]
        return max([task.priority, *inherited])

    def _reschedule(self) -> None:
        there = [t for t in self._tasks if t.arrives <= self._clock and t.state == "ready"]
        self._running = max(there, key=self._urgency, default=None)
        self._turn.notify_all()

    def _wait_for_core(self, task: Task, category: str) -> None:
        start = now()
        if self._running is task:
            return
        if not self._turn.wait_for(lambda: self._running is task, DEADLINE):
            raise TimeoutError(f"{task.name}: no core within {DEADLINE:g} s")
        self._recorder.add(task.name, category, "waits", start, now())

    def _acquire(self, task: Task) -> None:
        if self._owner is None:
            self._owner = task
        else:
            task.state = "blocked"
            self._reschedule()
            self._wait_for_core(task, "lock")

    def _release(self) -> None:
        blocked = [t for t in self._tasks if t.state == "blocked"]
        self._owner = max(blocked, key=lambda task: task.priority, default=None)
        if self._owner is not None:
            self._owner.state = "ready"


@dataclass(frozen=True)
class Inversion:
    """Slices from high's arrival to its end, and who did what, by protocol."""

    section: int
    medium: int
    response: dict[str, int]
    trace: dict[str, Trace]

    def expected(self, protocol: str) -> int:
        """High's own four slices, what is left of low's section, and medium if it comes between."""
        between = self.medium if protocol == "no inheritance" else 0
        return 4 + (self.section - 2) + between


@experiment
def invert(
    section: Annotated[int, Range(4, 12, label="low's slices inside")] = 6,
    medium: Annotated[int, Range(1, 30, label="medium's slices")] = 20,
) -> Inversion:
    """Low is inside when high comes and asks for the mutex; a slice later medium comes."""
    response, traces = {}, {}
    for done, protocol in enumerate(("no inheritance", "inheritance")):
        checkpoint(done, 2, protocol)
        # Low has two of its slices inside behind it when high arrives, and is not through when
        # medium does: so the core is never idle, and its clock needs no other.
        high = Task("high", 3, 3, ("sleep", "hold", "hold", "sleep"))
        middle = Task("medium", 2, 5, ("sleep",) * medium)
        low = Task("low", 1, 0, ("sleep", *("hold",) * section, "sleep"))
        traces[protocol] = Core([high, middle, low], protocol == "inheritance").run()
        response[protocol] = high.response
    return Inversion(section, medium, response, traces)


def plot(result: Inversion) -> plots.Picture:
    """Who had the core, without inheritance and with it, and high's deadline."""
    fig, axes = plots.figure(9, 4.2, rows=2, sharex=True)
    until = 1.02 * max(trace.duration for trace in result.trace.values())
    for ax, (protocol, trace) in zip(axes, result.trace.items(), strict=True):
        response = result.response[protocol]
        verdict = "late" if response > LATEST else "in time"
        title = f"{protocol}: high ends {response} slices after it came, {verdict}"
        plots.timeline(ax, trace, lanes=("high", "medium", "low"), title=title, until=until)
        slices = [s for s in trace.spans if s.category in ("sleep", "hold")]
        came = next(s.start - trace.start for s in slices if s.lane == "high") / 1e9
        deadline = came + LATEST * trace.duration / len(slices)
        ax.axvline(came, color=plots.INK, linewidth=1)
        ax.axvline(deadline, color=plots.INK, linewidth=1, linestyle="--")
    axes[0].set_xlabel("")
    axes[1].set_xlabel("seconds (line: high comes; dashed: its deadline)", fontsize=9)
    names = {
        "idle": "has not begun",
        "sleep": "runs",
        "hold": "runs, holding the mutex",
        "lock": "waits for the mutex",
        "ready": "waits for the core",
    }
    plots.legend(fig, list(names), names)
    return fig
