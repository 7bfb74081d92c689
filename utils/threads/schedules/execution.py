"""Run a program once under a scheduler that decides, at every step that matters, who goes on.

Each thread of the program is a *task* on a real thread of its own, of which exactly one is let run:
a task that hands over releases the next one's baton and waits for its own. `sys.settrace` stops a
task at the accesses that `accesses.table` found, and `standins` at locks, starts, joins and sleeps.
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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from utils.threads.schedules.accesses import Access, table
from utils.threads.schedules.races import Clock, Point, Races
from utils.threads.schedules.resolve import shown, touched

Kind = Literal["assertion", "exception", "deadlock", "livelock", "invariant"]
# Before 3.13 a trace function's return writes a snapshot of the variables back, stale ones as well
# (bpo-30744); reading `f_locals` once more refreshes it.
_REFRESH = sys.version_info < (3, 13)


class Stopped(BaseException):
    """Raised inside a task to end it: the run is over."""


class Diverged(Exception):
    """The program did not do again what it did before under the same schedule."""


class Stuck(Exception):
    """A thread of the program waits for something that the scheduler does not control."""


class Option(NamedTuple):
    """What may happen next: `task` goes on or, if `expires`, its time-out strikes."""

    task: int
    expires: bool = False


@dataclass
class Step:
    """One operation that others may see: `task` did `what` (to `on`) at `line` of `file`."""

    task: int
    what: str
    on: Any
    file: str
    line: int
    function: str
    value: str = ""  # of what was read or written
    access: Access | None = None  # None: an operation on a primitive or a thread
    matters: bool = True  # worth telling a reader
    blocked: bool = False  # it could not be done yet: the task waits


class Decision(NamedTuple):
    """A point where there was a choice. `free`: the current task could not or would not go on."""

    options: list[Option]
    current: int
    free: bool
    chosen: Option

    def cost(self, option: Option) -> int:
        """1 if `option` is a preemption, or a time-out although something else could happen."""
        if option.expires:
            return int(not all(other.expires for other in self.options))
        return int(option.task != self.current and not self.free)


@dataclass(frozen=True)
class Failure:
    """What went wrong."""

    kind: Kind
    message: str
    error: BaseException | None = None


@dataclass
class Task:
    """One thread of the program."""

    index: int
    name: str
    daemon: bool
    thread: threading.Thread | None  # the program's own object; None for its main thread
    clock: Clock
    baton: Any = field(default_factory=allocate_lock)
    ident: int = 0  # of the real thread it runs on
    started: bool = False
    finished: bool = False
    waits_for: Any = None  # something with `free_for(task)` and `owner`; None: enabled
    deadline: float | None = None
    expired: bool = False
    yielded: bool = False  # lets others go first: it sleeps, or spins without effect
    changes: int = 0  # counts what it did; a loop that adds nothing only waits
    spins: dict[Point, int] = field(default_factory=dict)
    noted: tuple[Step, Access, types.FrameType] | None = None  # a write whose value is not seen yet

    def __post_init__(self) -> None:
        self.baton.acquire()


# Is given the execution, the options, the current task and whether leaving it is free.
Strategy = Callable[["Execution", list[Option], int, bool], Option]


class Execution:
    """One run. `run` returns the failure or None; then `tasks`, `choices`, `steps` tell the rest.

    Invariant: between `run`'s start and end exactly one task holds its baton and runs; it alone
    reads and writes this object, so there is nothing to lock.
    """

    def __init__(
        self,
        program: Callable[[], object],
        strategy: Strategy,
        *,
        crew: Crew,
        points: set[Point] | None,
        limit: int,
    ) -> None:
        """`points` None: every access is one. `limit` is the number of operations allowed."""
        self.program, self.strategy, self.crew = program, strategy, crew
        self.points, self.limit = points, limit
        self.recording = False  # keep `steps`
        self.every = False  # ask the strategy even when there is only one option
        self.tasks: list[Task] = []
        self.invariants: list[Callable[[], object]] = []
        self.watched: set[str] = set()  # names that an invariant reads
        self.decisions: list[Decision] = []
        self.steps: list[Step] = []
        self.operations = 0
        self.turns = 0  # how often it was asked who goes on
        self.unnamed = 0
        self.now = 0.0
        self.races = Races()
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
        _here.task = task
        _here.execution = self
        try:
            if not self.ending:
                if task.thread is not None:
                    known[task.ident] = task.thread
                sys.settrace(self._trace)
                try:
                    work()
                finally:
                    sys.settrace(None)
        except (Stopped, SystemExit):
            pass
        except BaseException as error:
            kind: Kind = "assertion" if isinstance(error, AssertionError) else "exception"
            self._fail(Failure(kind, _said(error), error))
        finally:
            known[task.ident] = carrier
            _here.task = _here.execution = None
            self._finish(task)

    def _finish(self, task: Task) -> None:
        task.finished = True
        try:
            if not self.ending:
                self._check_invariants()
                if any(not (other.finished or other.daemon) for other in self.tasks):
                    self._go(self._choose(task))
                    return
        except Stopped:
            pass
        self._end()

    def _fail(self, failure: Failure) -> None:
        """Keep the first failure: what comes later may be its consequence."""
        if self.failure is None and not self.ending:
            self.failure, self.failed_in = failure, _here.task.index if _here.task else 0
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
        task.started = True
        task.baton.release()

    # ── Points ────────────────────────────────────────────────────────────────────────────

    def begin(self, task: Task, point: bool = False) -> None:
        """`task` is about to do something that others may see; with `point`, they may go first."""
        if self.ending:
            raise Stopped
        self.operations += 1
        if self.operations > self.limit:
            self._fail(Failure("livelock", f"no end after {self.limit} operations"))
            raise Stopped
        if point:
            self.point(task)

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
        code = at.f_code
        step = Step(task.index, what, on, code.co_filename, at.f_lineno, code.co_name)
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
        self._check_invariants()
        self._switch(task, self._choose(task))

    def block(self, task: Task, on: Any, timeout: float | None) -> bool:
        """Wait until `on.free_for(task)`; False if the time-out came first."""
        task.waits_for, task.expired = on, False
        task.deadline = None if timeout is None else self.now + timeout
        self._check_invariants()
        self._switch(task, self._choose(task))
        task.waits_for, task.deadline = None, None
        return not task.expired

    def yield_(self, task: Task) -> None:
        """Let others go first, until one of them has done something."""
        task.yielded = True
        self.point(task)
        task.yielded = False

    def _choose(self, task: Task) -> Task:
        self.turns += 1
        options = self._options()
        if not options:
            self._fail(Failure("deadlock", "everybody waits"))
            raise Stopped
        chosen = options[0]
        if len(options) > 1 or self.every:
            free = task.yielded or Option(task.index) not in options
            try:
                chosen = self.strategy(self, options, task.index, free)
                if chosen not in options:
                    raise Diverged
            except Exception as error:
                self.error, self.ending = error, True
                raise Stopped from None
            self.decisions.append(Decision(options, task.index, free, chosen))
        other = self.tasks[chosen.task]
        other.expired = chosen.expires
        if chosen.expires:
            self.now = max(self.now, other.deadline or 0.0)
        if other is not task:  # somebody else does something: whoever let others go first may go on
            for each in self.tasks:
                each.yielded = False
        other.yielded = False
        return other

    def _options(self) -> list[Option]:
        alive = [t for t in self.tasks if not t.finished]
        ready = [t for t in alive if self._enabled(t)]
        timed = [t for t in alive if t.deadline is not None and not self._enabled(t)]
        if ready:  # a time-out may strike before anything else happens
            eager = [t for t in ready if not t.yielded] or ready
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
            raise Stopped

    def _check_invariants(self) -> None:
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
            raise Stopped

    def _home_frame(self, frame: types.FrameType) -> types.FrameType:
        """The innermost frame of the program itself, or `frame` if there is none."""
        at: types.FrameType | None = frame
        while at is not None and at.f_globals is not self.crew.home:
            at = at.f_back
        return at or frame

    # ── Instructions ──────────────────────────────────────────────────────────────────────

    def _trace(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        """The thread's trace function: called when a function begins."""
        code, names = frame.f_code, frame.f_globals
        if self.checking or not self.crew.follows(code, names):
            return None
        accesses = self.crew.accesses(code, names)
        if not accesses:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False

        def at_instruction(frame: types.FrameType, event: str, arg: Any) -> Any:
            if event == "opcode":
                if (access := accesses.get(frame.f_lasti)) is not None:
                    self._visit(frame, access)
            elif event == "return" and self.recording and _here.task is not None:
                self._note_value(_here.task)  # the last moment to see its variables
            return at_instruction

        return at_instruction

    def _visit(self, frame: types.FrameType, access: Access) -> None:
        task = _here.task
        here = (id(frame.f_code), frame.f_lasti)
        if access.kind == "loop":
            self.begin(task)
            if not access.writes and task.spins.get(here) == task.changes:
                self.note(task, "spin", frame=frame)
                self.yield_(task)
                if _REFRESH:
                    frame.f_locals  # noqa: B018
            task.spins[here] = task.changes
            return
        place = touched(access, frame, self.crew.stored)
        if place is None:
            return
        watched = self.watched and not self.watched.isdisjoint((access.name, *(access.path or ())))
        if self.points is None or here in self.points or watched:
            self.begin(task, point=True)
            if _REFRESH:
                frame.f_locals  # noqa: B018
            place = touched(access, frame, self.crew.stored) or place  # others may have moved it
        else:
            self.begin(task)
        self.note(task, str(access), frame=frame, access=access)
        task.changes += place.writes
        self.raced |= self.races.visit(place, task.index, task.clock, here)


class _Here(threading.local):
    task: Task | None = None
    execution: Execution | None = None


_here = _Here()


@contextmanager
def outside() -> Iterator[None]:
    """For a moment this thread is none of the program's: it makes a real thread."""
    task, _here.task = _here.task, None
    tracing = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        _here.task = task
        sys.settrace(tracing)


def current() -> tuple[Execution, Task] | None:
    """The execution and task of this thread, or None outside an exploration."""
    task, execution = _here.task, _here.execution
    return None if task is None or execution is None else (execution, task)


def always(condition: Callable[[], object]) -> None:
    """Called inside a program: `condition()` must be true at every step of every schedule.

    It may look at a lock (`lock.locked()`), but not wait for one. Does nothing outside.
    """
    here = current()
    if here is not None:
        execution, _ = here
        code = condition.__code__  # type: ignore[attr-defined]
        execution.invariants.append(condition)
        execution.watched |= {*code.co_names, *code.co_freevars}


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class Crew:
    """Real threads that carry one run's tasks after the other's; made once an exploration.

    Also keeps what is learnt about the program's code: it does not change from run to run.
    """

    def __init__(self, program: Callable[[], object], followed: Iterable[dict[str, Any]]) -> None:
        self.home: dict[str, Any] = program.__globals__  # type: ignore[attr-defined]
        self._followed = {id(names): names for names in (self.home, *followed)}
        self._tables: dict[int, tuple[types.CodeType, dict[int, Access]]] = {}
        self.stored: set[str] = set()  # attributes that something assigns
        self._idle: list[_Carrier] = []
        self._all: list[_Carrier] = []

    def follows(self, code: types.CodeType, names: dict[str, Any]) -> bool:
        if names is vars(threading):  # starting a thread is the scheduler's business
            return code.co_qualname.split(".")[0] in _PRIMITIVES
        return id(names) in self._followed

    def accesses(self, code: types.CodeType, names: dict[str, Any]) -> dict[int, Access]:
        known = self._tables.get(id(code))
        if known is None:
            accesses = table(code, names)
            self.stored |= {a.name for a in accesses.values() if a.kind == "attribute" and a.writes}
            known = self._tables[id(code)] = (code, accesses)
        return known[1]

    def run(self, work: Callable[[], None], name: str) -> None:
        with outside():
            if self._idle:
                carrier = self._idle.pop()
            else:
                carrier = _Carrier(self._idle)
                self._all.append(carrier)
            carrier.take(work, name)

    def close(self) -> None:
        """End the threads. One that is stuck in the program ends when it comes back from there."""
        for carrier in self._all:
            carrier.take(None, "ended")
        for carrier in self._all:
            carrier.thread.join(timeout=0.5)


class _Carrier:
    def __init__(self, idle: list[_Carrier]) -> None:
        self._idle = idle
        self._work: Callable[[], None] | None = None
        self._wake = allocate_lock()
        self._wake.acquire()
        self.thread = threading.Thread(target=self._loop, daemon=True)
        self.thread.start()

    def take(self, work: Callable[[], None] | None, name: str) -> None:
        self._work, self.thread.name = work, name
        self._wake.release()

    def _loop(self) -> None:
        while True:
            self._wake.acquire()
            work, self._work = self._work, None
            if work is None:
                return
            work()
            self._idle.append(self)


_PRIMITIVES = {"Condition", "Semaphore", "BoundedSemaphore", "Event", "Barrier", "_RLock"}
