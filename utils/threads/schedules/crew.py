"""Real threads for the tasks of a run, and who of them is calling.

Thousands of runs need threads; these are made once an exploration and carry task after task.
"""

from __future__ import annotations

import sys
import threading
from _thread import allocate_lock
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from utils.threads.schedules.execution import Execution
    from utils.threads.schedules.tasks import Task


class _Here(threading.local):
    task: Task | None = None
    execution: Execution | None = None


here = _Here()


@contextmanager
def outside() -> Iterator[None]:
    """For a moment this thread is none of the program's: it makes a real thread."""
    task, here.task = here.task, None
    tracing = sys.gettrace()
    if tracing is not None:
        sys.settrace(None)
    try:
        yield
    finally:
        here.task = task
        if tracing is not None:
            sys.settrace(tracing)


def current() -> tuple[Execution, Task] | None:
    """The execution and task of this thread, or None outside an exploration."""
    task, execution = here.task, here.execution
    return None if task is None or execution is None else (execution, task)


class Crew:
    """Real threads that carry one run's tasks after the other's; made once an exploration."""

    def __init__(self) -> None:
        self._idle: list[_Carrier] = []
        self._busy: list[_Carrier] = []

    def run(self, work: Callable[[], None], name: str) -> None:
        with outside():
            carrier = self._idle.pop() if self._idle else _Carrier()
            self._busy.append(carrier)
            carrier.take(work, name)

    def rest(self) -> None:
        """A run is over. (During it nobody gets another's thread, and its thread-local data.)"""
        self._idle, self._busy = self._busy + self._idle, []

    def close(self) -> None:
        """End the threads. One that is stuck in the program ends when it comes back from there."""
        carriers = [*self._idle, *self._busy]
        for carrier in carriers:
            carrier.take(None, "ended")
        for carrier in carriers:
            carrier.thread.join(timeout=0.5)


class _Carrier:
    def __init__(self) -> None:
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
