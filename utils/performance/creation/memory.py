"""What a waiting thread takes: much address space, little memory.

A stack is *reserved* when its thread is created: a range of addresses, on Linux by default as long
as RLIMIT_STACK says, mostly 8 MiB (pthread_create(3)). A page of it becomes memory when it is first
touched. So what a thread "takes" is two numbers, and the second depends on how deep it has been.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.core.workers import run_child

SCRIPT = Path(__file__).with_name("stacks.py")
DEADLINE = 30.0  # seconds for the whole process


@dataclass(frozen=True)
class Memory:
    """Bytes of `threads` threads after each step, and of Python's objects; keys as in `stacks`."""

    threads: int
    depth: int
    steps: dict[str, dict[str, int | None]]
    objects: dict[str, float]

    def each(self, what: str, step: str = "waiting") -> float | None:
        """Bytes a thread of "reserved", "resident" or "kernel stack" memory; None: not told."""
        before, then = self.steps["before"][what], self.steps[step][what]
        return None if before is None or then is None else (then - before) / self.threads


@experiment
def wait(
    threads: Annotated[int, Range(20, 400, 20, label="threads that wait")] = 200,
    stack_mib: Annotated[int, Range(1, 64, label="stack [MiB]")] = 8,
    depth: Annotated[int, Range(0, 500, 50, label="depth of nested calls")] = 300,
) -> Memory:
    """Let threads wait, then nest calls, then end, and ask the system after each step."""
    command = [sys.executable, str(SCRIPT), *map(str, (threads, stack_mib, depth))]
    # One arena: else malloc reserves tens of MiB more for each of the first threads, mallopt(3).
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    try:
        report = run_child(command, environment, DEADLINE)
    except RuntimeError as error:
        what = f"{threads} threads of {stack_mib} MiB could not be had here"
        raise RuntimeError(f"{what}: {error}") from None
    return Memory(threads, depth, **json.loads(report))


def size(count: float | None) -> str:
    """`8388608` as `8 MiB`: three digits and the unit that fits."""
    if count is None:
        return "not told on this system"
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} bytes"


def plot(result: Memory) -> plots.Picture:
    """Bytes a thread, from all that is reserved down to what a coroutine takes."""
    nested = f"resident, after {result.depth} nested"
    rows = (
        ("reserved", result.each("reserved"), plots.PAPER_GREY),
        (f"{nested} calls through C", result.each("resident", "after C calls"), plots.BLUE),
        (f"{nested} Python calls", result.each("resident", "after Python calls"), plots.BLUE),
        ("resident, waiting", result.each("resident"), plots.BLUE),
        ("the kernel's stack for it", result.each("kernel stack"), plots.ORANGE),
        ("Python's objects for it", result.objects["thread"], plots.SKY),
        ("an asyncio task", result.objects["task"], plots.GREEN),
        ("a coroutine", result.objects["coroutine"], plots.GREEN),
    )
    names, values, colors = zip(*rows, strict=True)
    fig, ax = plots.figure(9, 3.5)
    bars = ax.barh(names, [max(value or 1, 1) for value in values], color=colors)
    ax.bar_label(bars, [*map(size, values)], padding=4, fontsize=9)
    ax.set_xscale("log")
    ticks = [2**power for power in range(10, 31, 5)]
    ax.set_xticks(ticks, [*map(size, ticks)])
    ax.minorticks_off()
    ax.set_xlim(64, 2**31)
    ax.invert_yaxis()
    ax.set_title(f"bytes for one of {result.threads} threads", loc="left")
    return fig
