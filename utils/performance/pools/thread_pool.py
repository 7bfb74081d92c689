"""A thread pool: some threads, made once, and a queue of the tasks that nobody has begun.

`ThreadPool` has the interface of `concurrent.futures.ThreadPoolExecutor`, so that either can be
used. One thing is added: `max_pending` bounds the queue, and `submit` waits for room. Without a
bound a pool accepts faster than it works until the memory is gone; with one, whoever submits slows
down to the workers' pace (*back-pressure*).

Workers start lazily, as the library's: a task that finds nobody idle makes a new one, until there
are `max_workers`. So a pool that is hardly used costs little.
"""

from __future__ import annotations

import itertools
import operator
import os
import threading
from _thread import LockType, allocate_lock
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from concurrent.futures._base import LOGGER
from concurrent.futures.thread import BrokenThreadPool
from contextlib import suppress
from typing import Any
from weakref import WeakValueDictionary

from utils.core import trace
from utils.performance.pools.future import Future
from utils.threads.primitives.condition import Condition

Task = tuple[Future, Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class ThreadPool(Executor):
    """At most `max_workers` threads run the tasks, first submitted, first begun.

    At most `max_pending` tasks wait to be begun (0: any number; cancelled ones count until a worker
    comes to them). When so many do, `submit` waits, and raises TimeoutError after `submit_timeout`
    seconds: give one if tasks submit tasks, for they might all wait for each other.

    `initializer(*initargs)` is run by each worker first; if one fails, the pool is broken. While a
    recording is on, tasks are spans "compute", and a worker's waits for one are spans "idle".

    Shut it down, or use `with`: unlike the library's, a pool that is only forgotten keeps its
    workers until the interpreter ends.
    """

    _numbers = itertools.count()
    _future: Callable[[], Future] = Future

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_pending: int | None = 0,
        submit_timeout: float | None = None,
    ) -> None:
        if max_workers is None:
            max_workers = min(32, getattr(os, "process_cpu_count", os.cpu_count)() + 4)
        self._max_workers = operator.index(max_workers)
        if self._max_workers <= 0:
            raise ValueError(f"max_workers must be greater than 0, got {max_workers!r}")
        self._max_pending = operator.index(max_pending or 0)
        if self._max_pending < 0:
            raise ValueError(f"max_pending={max_pending!r}: give 0 (no bound) or more")
        if submit_timeout is not None and not submit_timeout >= 0:
            raise ValueError(f"submit_timeout={submit_timeout!r}: give seconds, 0 or more, or None")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a callable, got {initializer!r}")
        self._submit_timeout = submit_timeout
        self._initializer, self._initargs = initializer, initargs
        self._prefix = thread_name_prefix or f"{type(self).__name__}-{next(self._numbers)}"
        # _lock must be held whenever anything below changes, but for one thing: to take a task off
        # a deque is atomic, and needs no lock.
        self._lock = allocate_lock()
        self._room = Condition(self._lock, name="room in the pool")
        self._pending: deque[Task] = deque()
        self._idle: list[LockType] = []  # the bells of the workers that sleep, the last one last
        self._threads: list[threading.Thread] = []
        self._shutdown = self._broken = False
        _pools[id(self)] = self

    # ── Who has tasks ─────────────────────────────────────────────────────────────────────

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Have a worker call `fn(*args, **kwargs)`; return the future of that call.

        RuntimeError after shutdown, BrokenThreadPool after a failed initializer, TimeoutError if
        there was no room within `submit_timeout` seconds.
        """
        future = self._future()
        with self._lock:
            if self._full():
                self._wait_for_room()
            if self._broken:
                raise BrokenThreadPool("an initializer failed: the pool is not usable any more")
            if self._shutdown:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._summon()
            self._push((future, fn, args, kwargs))
        return future

    def pending(self) -> int:
        """How many submitted tasks nobody had begun a moment ago."""
        return len(self._pending)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more tasks. What was accepted is still run, or, if wanted, cancelled.

        With `wait`, return when all workers have ended.
        """
        with self._lock:
            self._shutdown = True
            self._wake_all()
        if cancel_futures:
            while (task := self._next()) is not None:
                task[0].cancel()
                task[0].set_running_or_notify_cancel()  # else `wait` and `as_completed` never hear
        if wait:
            for thread in self._threads:
                thread.join()

    def _full(self) -> bool:
        return 0 < self._max_pending <= len(self._pending)

    def _wait_for_room(self) -> None:
        try:
            free = lambda: self._shutdown or self._broken or not self._full()  # noqa: E731
            if not self._room.wait_for(free, self._submit_timeout):
                raise TimeoutError(f"no room for a task within {self._submit_timeout} s")
        except BaseException:
            self._room.notify()  # we may have been woken for a room that we don't take: pass it on
            raise

    def _summon(self) -> None:
        """Find a worker for a task: one that sleeps, or a new one, or else whoever is free first.

        It comes for the task with the lock, so not before the task is there.
        """
        if self._idle:
            self._idle.pop().release()
        elif len(self._threads) < self._max_workers:
            self._hire()

    def _hire(self) -> None:
        name = f"{self._prefix}_{len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name)
        thread.start()
        self._threads.append(thread)

    def _push(self, task: Task) -> None:
        self._pending.append(task)

    def _wake_all(self) -> None:
        while self._idle:
            self._idle.pop().release()
        self._room.notify_all()

    # ── Who does them ─────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        """The life of a worker."""
        try:
            if self._initializer is not None:
                self._initializer(*self._initargs)
        except BaseException:
            LOGGER.critical("Exception in initializer:", exc_info=True)
            self._break()
            return
        while (task := self._take()) is not None:
            run(*task)
            del task  # keep nothing of it alive while we sleep

    def _take(self) -> Task | None:
        """The next task; sleep until there is one. None: shut down, and none is left."""
        while (task := self._next()) is None:
            with self._lock:  # from here on nobody submits: look once more before going to sleep
                if (task := self._next()) is not None:
                    break
                if self._shutdown or self._broken:
                    return None
                bell = allocate_lock()
                bell.acquire()
                self._idle.append(bell)
            with trace.span("idle", "no task"):
                bell.acquire()  # until it is released: that is how to ring it
        self._made_room()
        return task

    def _made_room(self) -> None:
        """A task was taken off the queue, and is about to be run."""
        if self._max_pending:
            with self._lock:
                self._room.notify()

    def _next(self) -> Task | None:
        if self._pending:
            with suppress(IndexError):  # another worker was faster
                return self._pending.popleft()
        return None

    def _break(self) -> None:
        """An initializer failed: let no task wait for a worker that will not come."""
        with self._lock:
            self._broken = True
            self._wake_all()
        while (task := self._next()) is not None:
            if task[0].set_running_or_notify_cancel():
                task[0].set_exception(BrokenThreadPool("an initializer failed"))


def run(
    future: Future, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Make the call, unless it was cancelled, and leave in `future` what came of it."""
    try:
        if not future.set_running_or_notify_cancel():
            return
        try:
            if trace._active is None:
                result = fn(*args, **kwargs)
            else:
                with trace.span("compute", getattr(fn, "__name__", repr(fn))):
                    result = fn(*args, **kwargs)
        except BaseException as error:  # SystemExit too: it is the caller's, not the worker's
            future.set_exception(error)
            del future  # error -> its traceback -> this frame -> future -> error: no such circle
        else:
            future.set_result(result)
    except BaseException:  # of a callback; whatever it was, the worker goes on
        LOGGER.critical("Exception in worker", exc_info=True)


_pools: WeakValueDictionary[int, ThreadPool] = WeakValueDictionary()


def _at_exit() -> None:
    for reference in _pools.valuerefs():
        if (pool := reference()) is not None:
            pool.shutdown(wait=False)


# At its end the interpreter waits for all threads, so the workers must hear of it before. `atexit`
# comes too late for that; this is what concurrent.futures uses.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
