"""What replaces locks, threads, sleeps and the clock while a program is explored.

`threading` and `queue`, and this course's own primitives, are Python code over very little: one
kind of lock, starting and joining a thread, and the time. So it is enough to put those under the
scheduler's control; conditions, semaphores, barriers and queues follow. For the length of an
exploration the names through which code reaches them are bound to functions that look who calls:
a task of an exploration gets the stand-in, every other thread of the process the real thing.
"""

from __future__ import annotations

import _queue
import _thread
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from utils.threads.schedules.crew import current, outside
from utils.threads.schedules.execution import Execution
from utils.threads.schedules.races import Clock
from utils.threads.schedules.tasks import About, Joined, Stuck, Task

_TICK = 1e-3  # s
_real_lock = _thread.allocate_lock
_patching = threading.Lock()


class Lock:
    """`threading.Lock` under the scheduler: same interface, same errors."""

    def __init__(self, execution: Execution, task: Task) -> None:
        self._execution = execution
        self.owner: Task | None = None  # who locked it; anybody may unlock it
        self._clock = Clock()
        execution.locks.append(self)
        self._known_only_to = task  # until its maker does something that may tell others
        self._age = execution.effects
        self.maker = sys._getframe(2).f_code.co_name  # a waiter's own lock is made in `wait`

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        _check(blocking, timeout)
        execution, task = self._execution, _task(self._execution)
        if execution.ending:
            execution.unwind(task)
            return True
        execution.polled |= not blocking or timeout != -1
        # Nobody else can know a lock before its maker has told, nor overtake on one that is held.
        private = self._known_only_to is task and self._age == execution.effects
        execution.begin(task, _about("acquire", self), not private and self.owner is None)
        if self.owner is not None:
            if not blocking:
                execution.note(task, "try to acquire", self)
                return False
            execution.note(task, "wait for", self, blocked=True)
            if not execution.block(task, self, None if timeout == -1 else timeout):
                execution.note(task, "time out: wait for", self)
                return False
        execution.note(task, "acquire", self, matters=not private)
        self.owner = task
        task.clock.join(self._clock)
        task.changes += 1
        return True

    def release(self) -> None:
        execution, task = self._execution, _task(self._execution)
        if execution.ending:
            execution.unwind(task)
            return
        # Only who looks without waiting can see what happens between the last step and this one.
        execution.begin(task, _about("release", self), execution.release_points)
        execution.note(task, "release", self)
        if self.owner is None:
            raise RuntimeError("release unlocked lock")
        self.owner = None
        self._clock.join(task.clock)
        task.clock.advance(task.index)
        task.changes += 1

    def locked(self) -> bool:
        execution, task = self._execution, _task(self._execution)
        if not execution.checking and not execution.ending:
            execution.polled = True
            execution.begin(task, _about("look at", self), True)
            execution.note(task, "look at", self)
        return self.owner is not None

    def _is_owned(self) -> bool:
        """What a condition asks before it waits or notifies."""
        execution, task = self._execution, _task(self._execution)
        return self.owner is task or execution.ending or self.locked()

    def free_for(self, task: Task) -> bool:
        return self.owner is None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def _check(blocking: bool, timeout: float) -> None:
    """Refuse what the real lock refuses."""
    if not blocking and timeout != -1:
        raise ValueError("can't specify a timeout for a non-blocking call")
    if blocking and timeout < 0 and timeout != -1:
        raise ValueError("timeout value must be a non-negative number")
    if timeout > _thread.TIMEOUT_MAX:
        raise OverflowError("timeout value is too large")


class RLock(Lock):
    """`threading.RLock` under the scheduler: the owner may lock it again, others not unlock it."""

    _count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        _check(blocking, timeout)
        if self.owner is not _task(self._execution) and not super().acquire(blocking, timeout):
            return False
        self._count += 1
        return True

    def release(self) -> None:
        if not self._execution.ending and self.owner is not _task(self._execution):
            raise RuntimeError("cannot release un-acquired lock")
        self._count -= 1
        if self._count == 0:
            super().release()

    def _is_owned(self) -> bool:
        return self._execution.ending or self.owner is _task(self._execution)

    def _release_save(self) -> int:
        """What a condition does when it waits: let go, however often it was locked."""
        count, self._count = self._count, 1
        self.release()
        return count

    def _acquire_restore(self, count: int) -> None:
        self.acquire()
        self._count = count


def _about(what: str, on: Any = None) -> About:
    return About(what, on, sys._getframe(2))


def _task(execution: Execution) -> Task:
    here = current()
    if here is None or here[0] is not execution:
        raise RuntimeError("this lock belongs to an exploration that is not running here")
    return here[1]


def _make_lock() -> Any:
    here = current()
    return _real_lock() if here is None else Lock(*here)


def _make_rlock() -> Any:
    here = current()
    return _real_rlock() if here is None else RLock(*here)


def _make_simple_queue() -> Any:
    return _queue.SimpleQueue() if current() is None else queue._PySimpleQueue()  # type: ignore


def _start_new_thread(*args: Any, **kwargs: Any) -> Any:
    here = current()
    if here is None:
        return _real_start_new_thread(*args, **kwargs)
    execution, task = here
    execution.stop(Stuck("it starts a thread without threading.Thread"))
    execution.unwind(task)


def _sleep(seconds: float) -> None:
    here = current()
    if here is None:
        return _real_sleep(seconds)
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    execution, task = here
    execution.begin(task, _about("sleep"))
    due = execution.now + seconds
    execution.note(task, "sleep")
    execution.sleep(task)
    execution.now = max(execution.now, due)


def _monotonic() -> float:
    here = current()
    if here is None:
        return _real_monotonic()
    here[0].now += _TICK  # who waits by looking at the clock sees it go
    return here[0].now


def _init(thread: threading.Thread, *args: Any, **kwargs: Any) -> None:
    here = current()
    if here is None:
        return _real_init(thread, *args, **kwargs)
    execution, task = here
    with outside():
        _real_init(thread, *args, **kwargs)
    if kwargs.get("daemon") is None:  # as its maker is; the real thread that carries it is one
        thread._daemonic = task.daemon  # type: ignore[attr-defined]
    execution.christen(thread)


def _start(thread: threading.Thread) -> None:
    here = current()
    if here is None:
        return _real_start(thread)
    execution, task = here
    if not getattr(thread, "_initialized", False):
        raise RuntimeError("thread.__init__() not called")
    if thread in execution.by_thread:
        raise RuntimeError("threads can only be started once")
    execution.begin(task, _about(f"start {thread.name}"))
    execution.note(task, f"start {thread.name}")
    execution.add_task(thread, thread.name, thread.daemon, thread.run, task)


def _join(thread: threading.Thread, timeout: float | None = None) -> None:
    here = current()
    if here is None:
        return _real_join(thread, timeout)
    execution, task = here
    other = execution.by_thread.get(thread)
    if other is None:
        raise RuntimeError("cannot join thread before it is started")
    if other is task:
        raise RuntimeError("cannot join current thread")
    if execution.ending:
        execution.unwind(task)
        return
    execution.begin(task, _about(f"join {thread.name}"), timeout is not None)
    if not other.finished:
        end = Joined(other)
        execution.note(task, "wait for", end, blocked=True)
        if not execution.block(task, end, timeout):
            execution.note(task, "time out: wait for", end)
            return
    execution.note(task, f"join {thread.name}")
    task.clock.join(other.clock)


def _is_alive(thread: threading.Thread) -> bool:
    here = current()
    if here is None or thread not in here[0].by_thread:
        return _real_is_alive(thread)
    execution, task = here
    if not execution.checking:
        execution.polled = True
        execution.begin(task, _about(f"look at {thread.name}"), True)
        execution.note(task, f"look at {thread.name}")
    return not execution.by_thread[thread].finished


_real_start_new_thread = _thread.start_new_thread
_real_rlock = _thread.RLock
_real_sleep, _real_monotonic = time.sleep, time.monotonic
_real_init = threading.Thread.__init__
_real_start, _real_join = threading.Thread.start, threading.Thread.join
_real_is_alive = threading.Thread.is_alive

_STANDINS: dict[int, Callable[..., Any]] = {
    id(_thread.allocate_lock): _make_lock,
    id(threading.Lock): _make_lock,  # from 3.13 on a class, before the same function
    id(_thread.RLock): _make_rlock,
    id(_thread.start_new_thread): _start_new_thread,
    id(_queue.SimpleQueue): _make_simple_queue,
    id(time.sleep): _sleep,
    id(time.monotonic): _monotonic,
}


# The explorer itself; the wait-for graph, which watches mutexes and has a real lock of its own; and
# what records, measures and draws.
_NOT_EXPLORED = (__package__, "utils.threads.primitives.deadlock", "utils.core.")


def followed() -> list[dict[str, Any]]:
    """The namespaces of the course's primitives, as far as imported: explored as the program is."""
    ours = [
        vars(module)
        for name, module in sys.modules.items()
        if name.startswith("utils.") and not name.startswith(_NOT_EXPLORED)
    ]
    return [vars(threading), vars(queue), *ours]


@contextmanager
def installed(home: dict[str, Any]) -> Iterator[None]:
    """Bind the stand-ins in the primitives' modules, in `time`, and in `home`, the program's."""
    if not _patching.acquire(timeout=60):
        raise TimeoutError("another exploration is running")
    changed: list[tuple[dict[str, Any], str, Any, Any]] = []
    try:
        for names in [*followed(), vars(time), vars(_thread), home]:
            for name, value in list(names.items()):
                if (standin := _STANDINS.get(id(value))) is not None:
                    changed.append((names, name, value, standin))
                    names[name] = standin
        threading.Thread.__init__ = _init  # type: ignore[method-assign]
        threading.Thread.start = _start  # type: ignore[method-assign]
        threading.Thread.join = _join  # type: ignore[method-assign]
        threading.Thread.is_alive = _is_alive  # type: ignore[method-assign]
        yield
    finally:
        threading.Thread.__init__ = _real_init  # type: ignore[method-assign]
        threading.Thread.start = _real_start  # type: ignore[method-assign]
        threading.Thread.join = _real_join  # type: ignore[method-assign]
        threading.Thread.is_alive = _real_is_alive  # type: ignore[method-assign]
        for names, name, value, standin in changed:
            if names.get(name) is standin:
                names[name] = value
        _patching.release()
