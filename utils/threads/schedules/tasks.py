"""The nouns of a run: its tasks, what they may choose, what they did, how it failed."""

from __future__ import annotations

import threading
import types
from _thread import allocate_lock
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from utils.threads.schedules.accesses import Access
from utils.threads.schedules.races import Clock, Point

Kind = Literal["assertion", "exception", "deadlock", "livelock", "invariant"]


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
    reluctant: int | None = None  # a task that sleeps: to wake it first is like a preemption

    def cost(self, option: Option) -> int:
        """1 if `option` is a preemption, or a time-out although something else could happen."""
        if option.expires:
            return int(not all(other.expires for other in self.options))
        if option.task == self.reluctant:
            return int(len(self.options) > 1)
        return int(option.task != self.current and not self.free)


@dataclass(frozen=True)
class Failure:
    """What went wrong."""

    kind: Kind
    message: str
    error: BaseException | None = None


class About(NamedTuple):
    """What a task is about to do, `on` a primitive or (an access) in `frame`."""

    what: Access | str
    on: Any
    frame: types.FrameType | None


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
    finished: bool = False
    waits_for: Any = None  # something with `free_for(task)` and `owner`; None: enabled
    deadline: float | None = None
    expired: bool = False
    yielded: bool = False  # lets others go first: it sleeps, or spins without effect
    sleeps: bool = False
    changes: int = 0  # counts what it did; a loop that adds nothing only waits
    alone: int = -1  # how much had been done by anybody when it last spun in vain
    spins: dict[Point, int] = field(default_factory=dict)
    unwinding: int = 0  # operations begun since the run was over
    about: About = About("begin", None, None)
    noted: tuple[Step, Access, types.FrameType] | None = None  # a write whose value is not seen yet

    def __post_init__(self) -> None:
        self.baton.acquire()


class Joined:
    """What a joining task waits for."""

    def __init__(self, task: Task) -> None:
        self.owner = task

    def free_for(self, task: Task) -> bool:
        return self.owner.finished
