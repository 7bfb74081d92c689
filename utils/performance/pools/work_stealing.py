"""Work stealing: each worker has a deque of its own, and who has nothing takes from the others.

A task that a worker submits goes to the worker's own deque, and the worker takes from the same end:
last in, first out, as a program that calls its subtasks one after the other. A thief takes from the
other end, where the oldest tasks are, in a divide-and-conquer program the largest: one theft feeds
it for long. So the workers hardly meet at each other's tasks. (To submit still takes the pool's one
lock here, to find who sleeps; implementations for tiny tasks do without.) What is submitted from
outside waits in a common queue. The source: R. Blumofe, C. Leiserson, "Scheduling Multithreaded
Computations by Work Stealing", Journal of the ACM 46(5), 1999. (There the victim is drawn at
random, which the paper's bound on the time needs; here thieves go round, so that runs repeat.)

Tasks may wait for their subtasks (*fork/join*). In a `ThreadPool` that can use up the workers until
nobody is left for what they wait for; here a worker that waits for a result does other tasks
meanwhile.
"""

from __future__ import annotations

import threading
from _thread import LockType, allocate_lock
from collections import deque
from contextlib import suppress
from math import inf
from time import monotonic

from utils.core import trace
from utils.performance.pools.future import Future
from utils.performance.pools.thread_pool import Task, ThreadPool, run


class WorkStealingPool(ThreadPool):
    """A `ThreadPool` whose workers keep the tasks they submit, and steal from each other.

    `result` and `exception` of its futures help when a worker calls them: it runs other tasks until
    the result is there, so it may come back later than a timeout says, by the length of a task.
    (`wait` and `as_completed` of the library only sleep.) A task may wait for tasks that it
    submitted itself: they begin after it, so no circle of waits can close. To wait for any other
    task may never end, if that one is further down on the same stack.

    `max_pending` bounds the common queue only; a task may always submit subtasks.
    """

    def _future(self) -> Future:
        return JoinFuture(self)

    @property
    def steals(self) -> int:
        """How many tasks were taken from another worker's deque."""
        return sum(worker.steals for worker in self._threads)

    def pending(self) -> int:
        """How many submitted tasks nobody had begun a moment ago."""
        return len(self._pending) + sum(len(worker.tasks) for worker in self._threads)

    def _me(self) -> Worker | None:
        """The worker of this pool that is calling, if it is one."""
        thread = threading.current_thread()
        return thread if isinstance(thread, Worker) and thread.pool is self else None

    def _hire(self) -> None:
        worker = Worker(self, len(self._threads))
        worker.start()
        self._threads.append(worker)

    def _full(self) -> bool:
        return super()._full() and self._me() is None

    def _push(self, task: Task) -> None:
        me = self._me()
        (self._pending if me is None else me.tasks).append(task)

    def _next(self) -> Task | None:
        """The newest task of one's own, or the oldest of the common queue, or of somebody else."""
        me, workers, first = self._me(), self._threads, 0
        if me is not None:
            first = me.number + 1
            if me.tasks:
                with suppress(IndexError):  # a thief was faster
                    return me.tasks.pop()
        if (task := super()._next()) is not None:
            return task
        for number in range(first, first + len(workers)):
            victim = workers[number % len(workers)]
            if victim.tasks:
                with suppress(IndexError):
                    task = victim.tasks.popleft()
                    if me is not None:
                        me.steals += 1
                    return task
        return None

    def _help(self, future: Future, timeout: float | None) -> None:
        """Run tasks until `future` is done; sleep while there is none. TimeoutError if too late."""
        deadline = inf if timeout is None else monotonic() + timeout
        bell = allocate_lock()
        bell.acquire()
        future.add_done_callback(lambda future: self._ring(bell))
        try:
            while not future.done():
                if (left := deadline - monotonic()) <= 0:
                    raise TimeoutError
                if (task := self._next()) is not None:
                    self._made_room()
                    run(*task)
                    continue
                with self._lock:  # from here on nobody submits, and nobody rings in vain
                    if future.done() or self.pending():
                        continue
                    self._idle.append(bell)
                with trace.span("idle", "waits for a result"):
                    rung = bell.acquire(timeout=-1 if left == inf else left)
                if not rung and not future.done():
                    raise TimeoutError
        finally:
            with self._lock:
                if bell in self._idle:
                    self._idle.remove(bell)
                if self.pending():  # we may have been woken for a task that we leave: pass it on
                    self._summon()

    def _ring(self, bell: LockType) -> None:
        with self._lock:
            if bell in self._idle:
                self._idle.remove(bell)
                bell.release()


class Worker(threading.Thread):
    """A thread with a deque of tasks. Its own end is the right one; only it puts tasks there."""

    def __init__(self, pool: WorkStealingPool, number: int) -> None:
        super().__init__(target=pool._work, name=f"{pool._prefix}_{number}")
        self.pool, self.number = pool, number
        self.tasks: deque[Task] = deque()
        self.steals = 0


class JoinFuture(Future):
    """The future of a task in a `WorkStealingPool`: a worker that waits for it helps meanwhile."""

    def __init__(self, pool: WorkStealingPool) -> None:
        super().__init__()
        self._pool = pool

    def _wait(self, timeout: float | None) -> None:
        if self._pool._me() is None:
            super()._wait(timeout)
        else:
            self._pool._help(self, timeout)
