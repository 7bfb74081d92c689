"""Ready, but not running: how long computing threads stand in the queue for a core.

The scheduler hands out the cores in slices. Of n threads that never block, on c cores, each can run
for c / n of the time; the rest of its life it is *ready*, and waits in the run queue.

Linux counts both for each thread, and the slices (/proc/<pid>/schedstat: kernel documentation,
sched-stats.rst). Elsewhere the wait is derived: when a thread that never blocks isn't running, it
waits.
"""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from utils.core import bench, machine, plots
from utils.core.experiment import Range, checkpoint, current, experiment, gather
from utils.core.workers import crew

MOST = 8 * max(2, machine.cores())  # threads
DEADLINE = 30.0  # seconds for anything that blocks
_SCHEDSTAT = Path("/proc/thread-self/schedstat")
_DATA = bytes(2**18)  # hashed outside the GIL in a fraction of a millisecond


class Life(NamedTuple):
    """Seconds a thread had a core, was ready without one, and lived; slices (None: not told)."""

    running: float
    ready: float
    lived: float
    slices: int | None


@dataclass(frozen=True)
class Queue:
    """`lives[n]` are those of n threads that computed together."""

    cores: int
    lives: dict[int, tuple[Life, ...]]

    def share(self, threads: int, state: str) -> float:
        """Share of their lives that `threads` threads spent "running" or "ready"."""
        lives = self.lives[threads]
        return sum(getattr(life, state) for life in lives) / sum(life.lived for life in lives)

    def expected_ready(self, threads: int) -> float:
        """The least that the cores leave over: nobody else wants one."""
        return max(0.0, 1 - self.cores / threads)

    def slice(self, threads: int) -> float | None:
        """Mean length of a slice in seconds, or None where slices are not counted."""
        lives = self.lives[threads]
        if any(life.slices is None for life in lives):
            return None
        return sum(life.running for life in lives) / max(1, sum(life.slices for life in lives))


@experiment
def compute(
    threads: Annotated[int, Range(1, MOST, label="threads at most")] = MOST // 2,
    milliseconds: Annotated[int, Range(50, 1000, 50, label="ms each")] = 250,
) -> Queue:
    """Let 1, 2, 4 … threads hash for a while, outside the GIL, and see how they lived."""
    sizes = sorted({2**power for power in range(threads.bit_length())} | {threads})
    stopped = current().stopped
    lives: dict[int, tuple[Life, ...]] = {}
    for done, size in enumerate(sizes):
        checkpoint(done, len(sizes), f"{size} threads")
        with crew(size) as pool:
            work = (_live, threading.Barrier(size), milliseconds / 1e3, stopped)
            lives[size] = tuple(gather([pool.submit(*work) for _ in range(size)], timeout=DEADLINE))
    return Queue(machine.cores(), lives)


def _live(everyone: threading.Barrier, seconds: float, stopped: threading.Event) -> Life:
    everyone.wait(DEADLINE)
    born, before, cpu = time.perf_counter(), _counted(), time.thread_time()
    while time.perf_counter() - born < seconds and not stopped.is_set():
        hashlib.sha256(_DATA).digest()
    after, cpu = _counted(), time.thread_time() - cpu
    lived = time.perf_counter() - born  # the last to be read: nothing else lasts longer
    if before is None or after is None:
        return Life(cpu, max(0.0, lived - cpu), lived, None)
    running, ready, slices = (then - now for now, then in zip(before, after, strict=True))
    return Life(running / 1e9, ready / 1e9, lived, slices)


def _counted() -> tuple[int, ...] | None:
    """What Linux has counted for this thread: ns run, ns ready, slices."""
    try:
        return tuple(map(int, _SCHEDSTAT.read_text().split()))
    except OSError:
        return None


def plot(result: Queue) -> plots.Picture:
    """How much of their lives threads ran and stood in the queue, and the least they must."""
    fig, ax = plots.figure(9, 1.5 + 0.34 * len(result.lives))
    rows = [f"{threads} thread{'s' * (threads > 1)}" for threads in result.lives]
    left = [0.0] * len(rows)
    for state in ("running", "ready"):
        shares = [100 * result.share(threads, state) for threads in result.lives]
        ax.barh(rows, shares, left=left, color=plots.color(state), height=0.7)
        left = shares
    for row, threads in enumerate(result.lives):
        most = 100 * (1 - result.expected_ready(threads))
        ax.plot([most, most], [row - 0.42, row + 0.42], "--", color=plots.INK, linewidth=1.5)
        slice_ = result.slice(threads)
        text = "slices: not told" if slice_ is None else f"slices of {bench.seconds(slice_)}"
        ax.text(103, row, text, fontsize=9, va="center", clip_on=False)
    ax.invert_yaxis()
    ax.set_xlim(0, 102)
    ax.grid(visible=False)
    ax.set_xlabel(f"% of their lives (dashed: {result.cores} cores shared out evenly)", fontsize=9)
    ax.set_title("computing threads on a core, and ready without one", loc="left")
    plots.legend(fig, ["running", "ready"], {"running": "runs", "ready": "in the run queue"})
    return fig
