"""The real clock: the same policies, asked by real threads and processes.

Each worker is a thread that asks the policy for a task, does it and says so, under one lock for
all policy calls. To compute in a process, the thread hands the task over and waits for the reply.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from utils.core import machine
from utils.core.experiment import checkpoint, gather
from utils.core.trace import Recorder, now
from utils.core.workers import crew, lanes, process_crew
from utils.performance import work
from utils.performance.balance.outcome import Outcome
from utils.performance.balance.policies import Policy
from utils.performance.balance.tasks import Task
from utils.threads.primitives.condition import Condition

Vehicle = Literal["threads", "processes"]
Job = Callable[[Task], object]

DEADLINE = 60.0  # seconds for anything that blocks


@contextmanager
def jobs(vehicle: Vehicle, workers: int, kind: work.Kind = "compute") -> Iterator[Job]:
    """How to do a task of `cost` seconds in one of `workers` threads or processes."""
    if kind == "sleep":
        do, amount = time.sleep, float
    else:
        rate = work.bytes_a_second(min(workers, machine.cores()))
        do, amount = work.hash_bytes, lambda seconds: round(seconds * rate)
    if vehicle == "threads":
        yield lambda task: do(amount(task.cost))
        return
    with process_crew(workers, do, 0) as pool:
        yield lambda task: pool.submit(do, amount(task.cost)).result(DEADLINE)


def run(policy: Policy, tasks: Sequence[Task], job: Job) -> Outcome:
    """Let real threads do `tasks` as `policy` says, each by `job(task)`.

    Raises what a job raised, Cancelled, or TimeoutError after `DEADLINE` seconds; then no worker
    starts another task.
    """
    return _Shift(policy, tasks, job).run()


class _Shift:
    def __init__(self, policy: Policy, tasks: Sequence[Task], job: Job) -> None:
        self.policy, self.tasks, self.job = policy, tasks, job
        # changed must be held for every call to the policy, and whenever what follows changes. It
        # is notified when a task arrives, and when the shift is over before all have.
        self.changed = Condition(name="a task")
        self.expected = deque(sorted(tasks, key=lambda task: task.arrival))
        self.over = False
        self.recorder = Recorder()

    def run(self) -> Outcome:
        with crew(self.policy.workers) as pool:
            began = now()
            self._arrivals(began)  # what is there at once is there before anybody asks
            names = enumerate(lanes(self.policy.workers))
            futures = [pool.submit(self._work, worker, lane) for worker, lane in names]
            try:
                while not self.over and self._arrivals(began):
                    checkpoint()
                    time.sleep(min(0.05, max(0.0, self._next_arrival(began))))
                gather(futures, timeout=DEADLINE)
            finally:
                self._end()
        trace, moves = self.recorder.trace(), self.policy.moves
        return Outcome("real", self.policy.workers, tuple(self.tasks), trace, began, moves)

    def _next_arrival(self, began: int) -> float:
        """Seconds until then; negative if it is late."""
        return self.expected[0].arrival - (now() - began) / 1e9

    def _arrivals(self, began: int) -> bool:
        """Let arrive what is due; whether there will be more."""
        with self.changed:
            while self.expected and self._next_arrival(began) <= 0:
                self.policy.arrive(self.expected.popleft())
                self.changed.notify_all()
            return bool(self.expected)

    def _end(self) -> None:
        with self.changed:
            self.over = True
            self.changed.notify_all()

    def _work(self, worker: int, lane: str) -> None:
        try:
            while batch := self._take(worker, lane):
                for task in batch:
                    if self.over:
                        return
                    start = now()
                    self.job(task)
                    name = f"task {task.number}"
                    self.recorder.add(lane, "compute", name, start, now(), task=task.number)
                    with self.changed:
                        self.policy.finish(worker, task)
        except BaseException:
            self._end()
            raise

    def _take(self, worker: int, lane: str) -> Sequence[Task]:
        """The worker's next tasks; none if no more can come."""
        asked = now()
        with self.changed:
            while not (batch := self.policy.take(worker)) and self.expected and not self.over:
                self.changed.wait(DEADLINE)
                asked = now()
            if batch:
                self.recorder.add(lane, "queue", "take", asked, now())
        return batch
