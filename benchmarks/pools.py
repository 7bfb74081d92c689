"""Our pools beside the library's, in turns: as many tiny tasks a second as they can do.

A task that does nothing shows what the pool costs: to make the future, to queue it, to hand it
over, to leave the result and to fetch it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

from utils.core import bench
from utils.performance.pools.thread_pool import ThreadPool
from utils.performance.pools.work_stealing import WorkStealingPool

TASKS, REPEATS = 20_000, 9
POOLS: tuple[type[Executor], ...] = (ThreadPoolExecutor, ThreadPool, WorkStealingPool)


def nothing(*_: object) -> None:
    pass


def submit(pool: Executor) -> None:
    for future in [pool.submit(nothing) for _ in range(TASKS)]:
        future.result()


def map_(pool: Executor) -> None:
    for _ in pool.map(nothing, range(TASKS)):
        pass


def in_turn(pool: Executor) -> None:
    """Each task after the result of the one before: the worker sleeps and is woken each time."""
    for _ in range(TASKS // 10):
        pool.submit(nothing).result()


WORKS: dict[str, tuple[Callable[[Executor], None], int]] = {
    "submit all, then results": (submit, TASKS),
    "map": (map_, TASKS),
    "one after the other": (in_turn, TASKS // 10),
}


def throughput(work: Callable[[Executor], None], make: type[Executor], workers: int) -> None:
    with make(workers) as pool:  # type: ignore[call-arg]
        work(pool)


def figures() -> Iterator[str]:
    for what, (work, tasks) in WORKS.items():
        for workers in (1, 2, 4):
            runs = {make.__name__: partial(throughput, work, make, workers) for make in POOLS}
            theirs, *ours = bench.compare(runs, repeats=REPEATS).items()
            for name, times in ours:
                speed = bench.ratio(theirs[1], times).median
                each = f"{bench.seconds(times.median / tasks)}, {theirs[0]} "
                each += bench.seconds(theirs[1].median / tasks)
                yield f"{what}, {workers} workers: {name} {speed:.2f} × the speed ({each} a task)"
