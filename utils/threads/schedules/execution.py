"""Run a program once under a scheduler that decides, at every step that matters, who goes on.

Each thread of the program is a *task* on a real thread of its own, of which exactly one is let run:
a task that hands over releases the next one's baton and waits for its own. `probe` stops a task at
the accesses that `accesses.table` found, and `standins` at locks, starts, joins and sleeps.
At such a *point* the strategy is asked which of the enabled tasks goes on. Nothing here takes
time: a time-out is one more choice, and the clock jumps when nothing else can happen.

Not every access needs to be a point. If two accesses are always ordered by locks, starts and joins,
switching between them shows nothing that switching at those operations would not (CHESS: Musuvathi
et al., "Finding and Reproducing Heisenbugs in Concurrent Programs", OSDI 2008). So only those
instructions are points that took part in a data race, which vector clocks (`races`) find out on the
way: they are added to `points`, and the search begins again with more.
"""

from __future__ import annotations

import re
import sys
import threading
import types
from _thread import allocate_lock
from collections.abc import Callable
from typing import Any

from utils.threads.schedules.accesses import Access
from utils.threads.schedules.crew import Crew, current, here
from utils.threads.schedules.probe import Probe
from utils.threads.schedules.races import Clock, Place, Point, Races
from utils.threads.schedules.resolve import Foreign, shown, touched
from utils.threads.schedules.tasks import (
    About,
    Decision,
    Diverged,
    Failure,
    Joined,
    Kind,
    Option,
    Step,
    Stopped,
    Stuck,
    Task,
)

_LAST_WORDS = 1_000  # operations that a task may still do while it is being ended

# Is given the execution, the options, the current task and whether leaving it is free.
Strategy = Callable[["Execution", list[Option], int, bool], Option]


class Execution:
    """One run. After `done`, `failure`, `tasks`, `decisions` and `steps` tell how it went.

    Invariant: from `start` until `done` exactly one task holds its baton and runs; it alone
    reads and writes this object, so there is nothing to lock.
    """

    def __init__(
        self,
        program: Callable[[], object],
        strategy: Strategy,
        *,
        crew: Crew,
        probe: Probe,
        points: set[Point] | None,
        limit: int,
    ) -> None:
        """`points` None: every access is one. `limit` is the number of operations allowed."""
        self.program, self.strategy = program, strategy
        self.crew, self.probe = crew, probe
        self.points, self.limit = points, limit
        self.recording = False  # keep `steps`
        self.fair = True  # beyond the limit everybody goes on in turn
        self.skips = True  # don't ask the same again before the task chosen has done something
        self.acted = True  # it has
        self.asked: list[Option] = []  # the last options
        self.gift = False  # who goes on now was not chosen, so leaving it is free
        self.tasks: list[Task] = []
        self.locks: list[Any] = []
        self.invariants: list[Callable[[], object]] = []
        self.decisions: list[Decision] = []
        self.steps: list[Step] = []
        self.operations = 0
        self.effects = 0  # what was done that may tell others something
        self.unnamed = 0
        self.now = 0.0
        self.races = Races()
        self.in_turn: set[int] = set()  # tasks that went on when there were too many operations
        self.raced: set[Point] = set()  # instructions found to need a point
        self.polled = False  # somebody looked whether a lock is free
        self.release_points = False
        self.failure: Failure | None = None
        self.failed_in = 0  # the task that failed, or that found that nothing can go on
        self.error: BaseException | None = None  # of the explorer itself
        self.ending = False
        self.checking = False  # we look at the program's state ourselves: no point, no step
        self.by_thread: dict[threading.Thread, Task] = {}
        self.on_failure: Callable[[], None] = lambda: None  # called where everything still stands
        self.done = allocate_lock()
        self.done.acquire()

    # ── The life of a run ──────────────────────────────────────────────────────────────────

    def start(self) -> None:
        main = self.add_task(None, "main", False, self.program)
        self._go(main)

    def christen(self, thread: threading.Thread) -> None:
        """Call a thread that was given no name A, B, C and so on, the same in every run."""
        if re.match(r"Thread-\d+", thread.name):
            thread._name = chr(ord("A") + self.unnamed % 26)  # type: ignore[attr-defined]
            self.unnamed += 1

    def add_task(
        self,
        thread: threading.Thread | None,
        name: str,
        daemon: bool,
        work: Callable[[], object],
        parent: Task | None = None,
    ) -> Task:
        clock = Clock(parent.clock if parent else ())
        task = Task(len(self.tasks), name, daemon, thread, clock)
        clock.advance(task.index)
        if parent:
            parent.clock.advance(parent.index)
            parent.changes += 1
        self.tasks.append(task)
        if thread is not None:
            self.by_thread[thread] = task
        self.crew.run(lambda: self._carry(task, work), task.name)
        return task

    def _carry(self, task: Task, work: Callable[[], object]) -> None:
        """What a real thread does for `task`: wait for the first turn, work, pass the turn on."""
        task.ident = threading.get_ident()
        task.baton.acquire()
        known = threading._active  # type: ignore[attr-defined]  # what current_thread() looks up
        carrier = known[task.ident]
        here.task = task
        here.execution = self
        try:
            if not self.ending:
                if task.thread is not None:
                    known[task.ident] = task.thread
                    task.thread._ident = task.ident  # type: ignore[attr-defined]
                with self.probe.watching():
                    work()
                self.begin(task, About("end", None, None), point=self.release_points)
                self.note(task, "end", matters=False)
        except (Stopped, SystemExit):
            pass
        except BaseException as error:
            kind: Kind = "assertion" if isinstance(error, AssertionError) else "exception"
            self._fail(Failure(kind, _said(error), error))
        finally:
            known[task.ident] = carrier
            self._finish(task)
            here.task = here.execution = None

    def _finish(self, task: Task) -> None:
        task.finished = True
        try:
            if not self.ending:
                self._check_invariants(task)
                if any(not (other.finished or other.daemon) for other in self.tasks):
                    self._go(self._choose(task))
                    return
        except Stopped:
            pass
        self._end()

    def _fail(self, failure: Failure) -> None:
        """Keep the first failure: what comes later may be its consequence."""
        if self.failure is None and not self.ending:
            self.failure, self.failed_in = failure, here.task.index if here.task else 0
            self.on_failure()
        self.ending = True

    def _end(self) -> None:
        """Stop the unfinished tasks one after the other, then tell who started the run."""
        self.ending = True
        for other in self.tasks:
            if not other.finished:
                self._go(other)  # it raises Stopped where it stands and comes here again
                return
        self.done.release()

    def _go(self, task: Task) -> None:
        task.baton.release()

    # ── Points ────────────────────────────────────────────────────────────────────────────

    def begin(self, task: Task, about: About, point: bool = False) -> None:
        """`task` is about to do something that others may see; with `point`, they may go first."""
        task.about = about
        if self.ending:
            self.unwind(task)
            return
        self.operations += 1
        if self.operations > self.limit:
            self.in_turn.add(task.index)
            point |= self.fair and isinstance(about.what, Access)
            if self.operations > 2 * self.limit:
                self._endless(task)
        primitive = not isinstance(about.what, Access)
        if primitive:
            self._check_invariants(task)
        if point:
            self.point(task)
        self.acted |= point or primitive
        self.effects += primitive

    def _endless(self, task: Task) -> None:
        """Too many operations, the second half in turn: nobody was kept from going on."""
        if len(self.in_turn) > 1:
            self._fail(Failure("livelock", f"no end after {self.limit} operations"))
        else:
            text = f"{task.name} does more than {self.limit} operations: allow more, or fewer turns"
            self.stop(Stuck(text))
        self.unwind(task)

    def unwind(self, task: Task) -> None:
        """The run is over: end `task`, but let its `finally` blocks do their work undisturbed."""
        task.unwinding += 1
        if task.unwinding == 1:
            raise Stopped
        if task.unwinding > _LAST_WORDS:  # it catches Stopped and goes on: let it sleep for good
            task.finished = True
            self._end()
            task.baton.acquire()

    def note(
        self,
        task: Task,
        what: str,
        on: Any = None,
        *,
        frame: types.FrameType | None = None,
        access: Access | None = None,
        matters: bool = True,
        blocked: bool = False,
    ) -> None:
        """Keep a step that is being taken, if this run records."""
        if not self.recording:
            return
        inner = frame or sys._getframe(2)
        at = self._home_frame(inner)
        step = Step(task.index, what, on, at.f_code.co_filename, at.f_lineno)
        step.access, step.blocked = access, blocked
        step.matters = matters and (access is None or at is inner)
        self._note_value(task)
        if access is not None and frame is not None:
            task.noted = (step, access, frame)
            if not access.writes:
                self._note_value(task)
        self.steps.append(step)

    def _note_value(self, task: Task) -> None:
        """What was written shows as soon as the next step begins; what is read, at once."""
        if task.noted is not None:
            step, access, frame = task.noted
            self.checking = True
            step.value, task.noted = shown(access, frame), None
            self.checking = False

    def point(self, task: Task) -> None:
        """Let the strategy choose who goes on; return when it is `task`'s turn again."""
        tired = self.fair and self.operations > self.limit
        if tired or self.acted or not self.skips or self._options() != self.asked:
            self._switch(task, self._choose(task))

    def block(self, task: Task, on: Any, timeout: float | None) -> bool:
        """Wait until `on.free_for(task)`; False if the time-out came first."""
        task.waits_for, task.expired = on, False
        task.deadline = None if timeout is None else self.now + timeout
        self._check_invariants(task)
        self._switch(task, self._choose(task))
        task.waits_for, task.deadline = None, None
        return not task.expired

    def yield_(self, task: Task) -> None:
        """Let others go first, until one of them has done something."""
        task.yielded = True
        self.point(task)
        task.yielded = False

    def sleep(self, task: Task) -> None:
        """Let others go first, or not: how long a sleep lasts is nobody's promise."""
        task.sleeps = True
        self.yield_(task)
        task.sleeps = False

    def _choose(self, task: Task) -> Task:
        joining = self._joining()
        if joining is not None:
            self.gift = self.acted = True
            return joining
        options = self._options()
        if not options:
            self._fail(Failure("deadlock", "everybody waits"))
            self.unwind(task)
        chosen = options[0]
        self.acted, self.asked = False, options
        if len(options) > 1:
            free = task.yielded or self.gift or Option(task.index) not in options
            self.gift = False
            reluctant = task.index if task.sleeps else None
            if self.fair and self.operations > self.limit:
                chosen = min(options, key=lambda o: (o.expires, o.task <= task.index, o.task))
            else:
                chosen = self._ask(task, options, free)
                self.decisions.append(Decision(options, task.index, free, chosen, reluctant))
        other = self.tasks[chosen.task]
        other.expired = chosen.expires
        if chosen.expires:
            self.now = max(self.now, other.deadline or 0.0)
        if other is not task:  # somebody else does something: whoever let others go first may go on
            for each in self.tasks:
                each.yielded = False
        other.yielded = False
        return other

    def _ask(self, task: Task, options: list[Option], free: bool) -> Option:
        try:
            chosen = self.strategy(self, options, task.index, free)
            if chosen not in options:
                raise Diverged
        except Exception as error:
            self.stop(error)
            self.unwind(task)
            return options[0]
        return chosen

    def _joining(self) -> Task | None:
        """Who waited for the end of a task that has ended: it goes on at once, to its next point.

        What it does until there nobody can notice, so it makes no difference when it does it.
        """
        for task in self.tasks:
            on = task.waits_for
            if isinstance(on, Joined) and task.deadline is None and on.free_for(task):
                return task
        return None

    def _options(self) -> list[Option]:
        alive = [t for t in self.tasks if not t.finished]
        ready = [t for t in alive if self._enabled(t)]
        timed = [t for t in alive if t.deadline is not None and not self._enabled(t)]
        if ready:  # a time-out may strike before anything else happens
            eager = [t for t in ready if not t.yielded] or ready
            eager += [t for t in ready if t.sleeps and t not in eager]  # how long, nobody knows
            return [Option(t.index) for t in eager] + [Option(t.index, True) for t in timed]
        # Nothing else can happen: the clock jumps to the first time-out.
        return [Option(min(timed, key=lambda t: t.deadline or 0.0).index, True)] if timed else []

    def _enabled(self, task: Task) -> bool:
        return task.waits_for is None or task.waits_for.free_for(task)

    def _switch(self, task: Task, other: Task) -> None:
        if other is not task:
            self._go(other)
            task.baton.acquire()
        if self.ending:
            self.unwind(task)

    def _check_invariants(self, task: Task) -> None:
        if not self.invariants:
            return
        self.checking = True
        try:
            held = all(invariant() for invariant in self.invariants)
            failure = None if held else Failure("invariant", "what must always hold does not")
        except Exception as error:
            failure = Failure("exception", _said(error), error)
        finally:
            self.checking = False
        if failure is not None:
            self._fail(failure)
            self.unwind(task)

    def _home_frame(self, frame: types.FrameType) -> types.FrameType:
        """The innermost frame of the program itself, or `frame` if there is none."""
        at: types.FrameType | None = frame
        while at is not None and at.f_globals is not self.probe.home:
            at = at.f_back
        return at or frame

    # ── Instructions, called by the probe ─────────────────────────────────────────────────

    def visit(self, frame: types.FrameType, where: Point, access: Access) -> None:
        """This thread is about to execute an instruction that may touch what others see."""
        task = here.task
        assert task is not None
        if access.kind == "loop":
            self._go_round(task, frame, where, access)
            return
        place = self._touched(task, frame, access)
        if place is None:
            return
        about = About(access, None, frame)
        if place.writes:
            self._check_invariants(task)
        watched = self.invariants and place.writes
        if self.points is None or where in self.points or watched:
            self.begin(task, about, point=True)
            place = self._touched(task, frame, access) or place  # others may have moved it
        else:
            self.begin(task, about)
        self.note(task, str(access), frame=frame, access=access)
        task.changes += place.writes
        self.effects += place.writes
        self.raced |= self.races.visit(place, task.index, task.clock, where)

    def _touched(self, task: Task, frame: types.FrameType, access: Access) -> Place | None:
        try:
            return touched(access, frame, self.probe.stored, self.probe.explored)
        except Foreign:
            if not self.ending:
                self.stop(Stuck("it uses a lock that was not made while it ran: make it inside"))
            self.unwind(task)
            return None

    def stop(self, error: Exception) -> None:
        """End the run for a reason that is not the program's failure."""
        self.error, self.ending = self.error or error, True

    def _go_round(self, task: Task, frame: types.FrameType, where: Point, access: Access) -> None:
        """A jump back. An iteration without effect would be the same again: others go first."""
        self.begin(task, About("loop", None, frame))
        if not access.writes and task.spins.get(where) == task.changes:
            self.note(task, "spin", frame=frame)
            if self._options() == [Option(task.index)] and task.alone == self.effects:
                self._fail(Failure("livelock", "it waits in a loop for what nobody will do"))
                self.unwind(task)
            task.alone = self.effects
            self.yield_(task)
        task.spins[where] = task.changes

    def leave(self, task: Task) -> None:
        """A function returns: the last moment to see its variables."""
        if self.recording:
            self._note_value(task)


def always(condition: Callable[[], object]) -> None:
    """Called inside a program: `condition()` must be true whenever something shared has changed.

    It may look at a lock (`lock.locked()`), but not wait for one. Does nothing outside.
    """
    now = current()
    if now is not None:
        execution, _ = now
        execution.invariants.append(condition)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
