"""What "caching thread control blocks" is: the C library keeps the stacks of ended threads.

In glibc a thread's control block, `struct pthread`, lies in its stack. When a thread ends, both go
into a cache of at most 40 MiB, for the next thread (nptl/nptl-stack.c, nptl/allocatestack.c; the
tunable `glibc.pthread.stack_cache_size`, GNU C Library Manual, "POSIX Thread Tunables"). So it is
in every program already, and saves it the system calls that map memory. It cannot save a context
switch: to the scheduler the next thread is a new one all the same. Nor does a pool, if its worker
has to wait for every task; it does if the next task is there before the last one is done.

The threads live in another process (`observed`), once with the cache and once with it off.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import dataclass

from utils.core import plots
from utils.core.experiment import checkpoint, experiment
from utils.core.workers import run_child
from utils.performance.pools import observed

STEPS = ("before", f"{observed.THREADS} live", "ended", f"{observed.THREADS} more", "ended")
WAYS = ("new threads", "pool, one by one", "pool, all at once")
DEADLINE = 60.0  # seconds for each process
_OFF = {"GLIBC_TUNABLES": "glibc.pthread.stack_cache_size=0"}


@dataclass(frozen=True)
class Process:
    """`sizes`: MiB of address space at each of `STEPS`.

    `switches`: voluntary ones while `observed.TASKS` tasks were done, in each of `WAYS`.
    """

    sizes: tuple[float, ...]
    switches: tuple[int, ...]

    @property
    def kept(self) -> float:
        """MiB that were there when all threads had ended, and not before."""
        return self.sizes[2] - self.sizes[0]


@dataclass(frozen=True)
class StackCache:
    """The process with glibc's cache and the one without; None where there is no glibc."""

    cached: Process | None
    uncached: Process | None


def available() -> bool:
    """Whether this is Linux with a glibc whose cache can be switched off (2.34 or newer)."""
    name, version = platform.libc_ver()
    return name == "glibc" and [*map(int, version.split("."))] >= [2, 34]


@experiment
def stack_cache() -> StackCache:
    """Observe a process with the stack cache, and one without."""
    if not available():
        return StackCache(None, None)
    checkpoint(0, 2, "with the cache")
    cached = _process({})
    checkpoint(1, 2, "without")
    return StackCache(cached, _process(_OFF))


def _process(variables: dict[str, str]) -> Process:
    # One arena, or malloc would reserve some of its own for each thread (mallopt(3), M_ARENA_MAX).
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "PYTHONPATH": path, **variables}
    command = [sys.executable, "-m", observed.__name__]
    sizes, switches = json.loads(run_child(command, environment, DEADLINE))
    return Process(tuple(sizes), tuple(switches))


def plot(result: StackCache) -> plots.Picture:
    """Address space at each step, and the switches of both ways, with the cache and without."""
    fig, (space, switches) = plots.figure(9, 3.0, cols=2, gridspec_kw={"width_ratios": [1, 1]})
    if result.cached is None or result.uncached is None:
        for ax in (space, switches):
            ax.axis("off")
        space.text(0, 0.5, "No glibc 2.34 or newer here, whose stack cache this is about.")
        return fig
    colors = {"with the cache": plots.BLUE, "cache off": plots.ORANGE}
    pair = dict(zip(colors, (result.cached, result.uncached), strict=True))
    for shift, (name, process) in zip((-0.2, 0.2), pair.items(), strict=True):
        grown = [max(0.0, size - process.sizes[0]) for size in process.sizes]
        at = [step + shift for step in range(len(STEPS))]
        bars = space.bar(at, grown, width=0.4, color=colors[name], label=name)
        space.bar_label(bars, fmt="%.0f", fontsize=9, padding=2)
        at = [way + shift for way in range(len(WAYS))]
        bars = switches.bar(at, process.switches, width=0.4, color=colors[name])
        switches.bar_label(bars, fontsize=9, padding=2)
    space.set_xticks(range(len(STEPS)), STEPS)
    space.set_title("address space: MiB more than before", loc="left")
    switches.set_xticks(range(len(WAYS)), WAYS)
    switches.set_title(f"voluntary switches, {observed.TASKS} tasks", loc="left")
    for ax in (space, switches):
        ax.margins(y=0.15)
    fig.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return fig
