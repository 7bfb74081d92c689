"""Real threads for the tasks of a run, and who of them is calling.

Thousands of runs need threads; these are made once an exploration and carry one task after the other.
"""

from __future__ import annotations

import sys
import threading
import types
from _thread import allocate_lock
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from utils.threads.schedules.accesses import Access, table

if TYPE_CHECKING:
    from utils.threads.schedules.execution import Execution
    from utils.threads.schedules.tasks import Task

# Of `threading`, these are explored like the program; starting a thread is the scheduler's business.
_PRIMITIVES = {"Condition", "Semaphore", "BoundedSemaphore", "Event", "Barrier", "_RLock"}


class _Here(threading.local):
    task: Task | None = None
    execution: Execution | None = None


here = _Here()


@contextmanager
def outside() -> Iterator[None]:
    """For a moment this thread is none of the program's: it makes a real thread."""
    task, here.task = here.task, None
    tracing = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        here.task = task
        sys.settrace(tracing)


def current() -> tuple[Execution, Task] | None:
    """The execution and task of this thread, or None outside an exploration."""
    task, execution = here.task, here.execution
    return None if task is None or execution is None else (execution, task)


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
        if names is vars(threading):
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
