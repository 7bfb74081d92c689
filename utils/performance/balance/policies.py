"""Who does which task: the policies of load balancing, each a few lines.

A policy knows no clock. Whoever runs it tells it that a task arrived (`arrive`), asks what a free
worker is to do now (`take`), and says when that is done (`finish`). The virtual clock does so, and
real threads and processes do, with the very same objects. A policy is not safe for threads: its
runner holds one lock around every call, which is the price of a queue that all share.

There are two families. In `SharedQueue` tasks wait in one line, and a free worker takes the next:
nobody idles while somebody else has a line. In `OwnQueue` a task is given to a worker the moment
it arrives, as a load balancer in front of servers does; what was decided badly stays so, unless the
idle may steal.
"""

from __future__ import annotations

import random
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush

from utils.performance.balance.tasks import Task


class Policy:
    """The interface. `moves` counts thefts; `shared`: all visit one queue, one at a time."""

    moves = 0
    shared: bool

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"workers={workers} is not allowed: give 1 or more")
        self.workers = workers

    def arrive(self, task: Task) -> None:
        """A task is there."""
        raise NotImplementedError

    def take(self, worker: int) -> Sequence[Task]:
        """What a free worker (0, 1, …) is to do, in this order; empty: nothing for now."""
        raise NotImplementedError

    def finish(self, worker: int, task: Task) -> None:
        """`worker` has done `task`."""

    @staticmethod
    def order(task: Task) -> float:
        """Where a task stands in its line: the smallest first, equals in order of arrival."""
        return 0


# ---------------------------------------------------------------- one line for all


class SharedQueue(Policy):
    """One line; a free worker takes the next `chunk` tasks (self-scheduling)."""

    shared = True

    def __init__(self, workers: int, chunk: int = 1) -> None:
        super().__init__(workers)
        if chunk < 1:
            raise ValueError(f"chunk={chunk} is not allowed: give 1 or more")
        self.chunk = chunk
        self.line: list[Task] = []

    def arrive(self, task: Task) -> None:
        insort(self.line, task, key=self.order)

    def take(self, worker: int) -> Sequence[Task]:
        size = self.chunk_size()
        taken, self.line[:size] = self.line[:size], []
        return taken

    def chunk_size(self) -> int:
        return self.chunk


class Guided(SharedQueue):
    """Large chunks first, small ones last: 1/workers of what is left, but at least `chunk`.

    C. Polychronopoulos, D. Kuck, "Guided Self-Scheduling", IEEE ToC C-36(12), 1987.
    """

    def chunk_size(self) -> int:
        return max(self.chunk, -(-len(self.line) // self.workers))


class LongestFirst(SharedQueue):
    """The task believed to be the longest first, so that short ones fill the gaps at the end.

    At most 4/3 - 1/(3 × workers) times the best possible, if the estimates are right (Graham 1969).
    """

    @staticmethod
    def order(task: Task) -> float:
        return -task.estimate


class UrgentFirst(SharedQueue):
    """The most urgent task first."""

    @staticmethod
    def order(task: Task) -> float:
        return task.priority


# ---------------------------------------------------------------- a line for each worker


class OwnQueue(Policy):
    """A line for each worker; `place` decides, once and for all, in which a task waits."""

    shared = False

    def __init__(self, workers: int, seed: int = 0) -> None:
        super().__init__(workers)
        self.lines: list[list[Task]] = [[] for _ in range(workers)]
        self.chance = random.Random(seed)

    def arrive(self, task: Task) -> None:
        insort(self.lines[self.place(task)], task, key=self.order)

    def take(self, worker: int) -> Sequence[Task]:
        line = self.lines[worker]
        return [line.pop(0)] if line else []

    def place(self, task: Task) -> int:
        """The worker who is to do `task`."""
        raise NotImplementedError


class RoundRobin(OwnQueue):
    """One for you, one for you: equal numbers, whatever the tasks take."""

    def place(self, task: Task) -> int:
        return task.number % self.workers


class UrgentRoundRobin(RoundRobin):
    """Round robin in which every worker does the most urgent of its own tasks first."""

    order = staticmethod(UrgentFirst.order)


class TwoChoices(OwnQueue):
    """The less loaded of two workers drawn at random, by the estimates of what they have to do.

    M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10),
    2001.
    """

    def __init__(self, workers: int, seed: int = 0) -> None:
        super().__init__(workers, seed)
        self.load = [0.0] * workers  # estimated seconds given to a worker and not finished

    def place(self, task: Task) -> int:
        worker = self.choose()
        self.load[worker] += task.estimate
        return worker

    def choose(self) -> int:
        drawn = (self.chance.randrange(self.workers) for _ in range(2))
        return min(drawn, key=self.load.__getitem__)

    def finish(self, worker: int, task: Task) -> None:
        self.load[worker] -= task.estimate


class LeastLoad(TwoChoices):
    """The worker with the least to do, by the estimates."""

    def __init__(self, workers: int, seed: int = 0) -> None:
        super().__init__(workers, seed)
        # Every worker's load is in the heap; older, outdated entries are dropped when met.
        self.ranking = [(0.0, worker) for worker in range(workers)]

    def choose(self) -> int:
        while True:
            load, worker = heappop(self.ranking)
            if load == self.load[worker]:
                return worker

    def place(self, task: Task) -> int:
        worker = super().place(task)
        heappush(self.ranking, (self.load[worker], worker))
        return worker

    def finish(self, worker: int, task: Task) -> None:
        super().finish(worker, task)
        heappush(self.ranking, (self.load[worker], worker))


class WorkStealing(RoundRobin):
    """Round robin at first; who has nothing left takes the last task of somebody drawn at random.

    R. Blumofe, C. Leiserson, "Scheduling Multithreaded Computations by Work Stealing", Journal of
    the ACM 46(5), 1999. There a worker takes its newest task and a thief the oldest: tasks make
    tasks, and the oldest is the largest. These tasks make none, so the far end is all that counts.
    """

    def __init__(self, workers: int, seed: int = 0) -> None:
        super().__init__(workers, seed)
        self.left = 0  # tasks in all lines: a thief need not search when there are none

    def arrive(self, task: Task) -> None:
        super().arrive(task)
        self.left += 1

    def take(self, worker: int) -> Sequence[Task]:
        if not self.left:
            return []
        self.left -= 1
        if own := super().take(worker):
            return own
        self.moves += 1
        return [self.victim().pop()]

    def victim(self) -> list[Task]:
        while not (line := self.lines[self.chance.randrange(self.workers)]):
            pass
        return line


POLICIES: Mapping[str, Callable[[int], Policy]] = {
    "round robin": RoundRobin,
    "least load": LeastLoad,
    "shared queue": SharedQueue,
    "chunks of 8": lambda workers: SharedQueue(workers, chunk=8),
    "guided chunks": Guided,
    "longest first": LongestFirst,
    "work stealing": WorkStealing,
}


def make_policy(name: str, workers: int) -> Policy:
    """A fresh policy by its name in `POLICIES`."""
    if name not in POLICIES:
        raise ValueError(f"policy={name!r} is not allowed: give one of {', '.join(POLICIES)}")
    return POLICIES[name](workers)
