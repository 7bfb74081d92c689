"""A pool that accepts faster than it works: what waits to be begun, with a bound and without.

Without one, `submit` returns at once and the backlog holds whatever the submitter is ahead; it
grows as long as he does. With one, `submit` waits for room: the submitter is slowed to the
workers' pace, and the backlog is never longer than the bound.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment, gather
from utils.core.trace import now
from utils.performance.pools.thread_pool import ThreadPool

TASKS, WORKERS = 60, 2
MAKE, WORK = 0.002, 0.012  # s for the submitter to make a task, and for a worker to do it
DEADLINE = 30.0  # seconds for anything that blocks


@dataclass(frozen=True)
class Backlog:
    """Pending tasks of a pool with that bound (0: none) over time, and when all were accepted."""

    max_pending: int
    lengths: tuple[tuple[float, int], ...]  # (seconds since the start, tasks nobody had begun)
    accepted: float  # seconds until the last `submit` returned
    done: tuple[int, ...]  # the tasks, in the order in which they ended

    @property
    def longest(self) -> int:
        return max(length for _, length in self.lengths)


@experiment
def backlog(
    max_pending: Annotated[int, Range(1, 40, label="bound")] = 8,
) -> tuple[Backlog, Backlog]:
    """Submit `TASKS` tasks without a bound, then with one."""
    return _submit_all(0, before=0), _submit_all(max_pending, before=TASKS)


def _submit_all(bound: int, before: int) -> Backlog:
    start = now()
    lengths: list[tuple[float, int]] = [(0.0, 0)]
    done: list[int] = []
    with ThreadPool(WORKERS, max_pending=bound, submit_timeout=DEADLINE) as pool:

        def look() -> None:
            pending = pool.pending()
            lengths.append(((now() - start) / 1e9, pending))

        def task(number: int) -> None:
            look()
            time.sleep(WORK)
            done.append(number)

        futures = []
        try:
            for number in range(TASKS):
                checkpoint(before + number, 2 * TASKS, f"bound {bound}")
                time.sleep(MAKE)
                futures.append(pool.submit(task, number))
                look()
            accepted = (now() - start) / 1e9
            gather(futures, timeout=DEADLINE)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return Backlog(bound, tuple(sorted(lengths)), accepted, tuple(done))


def plot(result: tuple[Backlog, Backlog]) -> plots.Picture:
    """Pending tasks over time; the dots mark when the submitter was through."""
    fig, ax = plots.figure(9, 2.8)
    for flow, color in zip(result, (plots.VERMILION, plots.color("measured")), strict=True):
        name = f"at most {flow.max_pending} pending" if flow.max_pending else "no bound"
        times, lengths = zip(*flow.lengths, strict=True)
        ax.step(times, lengths, where="post", color=color, label=name)
        at_end = [length for moment, length in flow.lengths if moment <= flow.accepted][-1]
        ax.plot([flow.accepted], [at_end], "o", color=color)
    ax.plot([], [], "o", color=plots.GREY, label="all are accepted")
    ax.set_ylim(bottom=0)
    ax.set_xlim(left=0)
    ax.set_xlabel("seconds", fontsize=9)
    ax.set_title("tasks that nobody has begun", loc="left")
    ax.legend(frameon=False, fontsize=9)
    return fig
