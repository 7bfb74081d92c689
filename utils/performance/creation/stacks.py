"""Threads that wait, nest calls and end, in a process of their own, where nobody else allocates.

    python stacks.py <threads> <MiB of stack> <depth of calls>

prints, as JSON, the bytes of the process after each step, and those of Python's own objects.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
import tracemalloc
import types
from collections.abc import Callable, Generator

import psutil

DEADLINE = 20.0  # seconds for anything that blocks
OBJECTS = 100  # of each kind, to measure one


def through_python(depth: int) -> None:
    """Calls itself. Since Python 3.11 such frames lie on the heap, not on the thread's stack."""
    if depth:
        through_python(depth - 1)


def through_c(depth: int) -> None:
    """Calls itself from within `max`, a C function: each level needs a piece of the stack."""
    if depth:
        max([depth - 1], key=through_c)


def memory(threads: int, depth: int) -> dict[str, dict[str, int | None]]:
    """Let `threads` threads take these steps together, and measure after each."""
    everyone = threading.Barrier(threads + 1)

    def work() -> None:
        for nest in (lambda depth: None, through_python, through_c):
            nest(depth)
            everyone.wait(DEADLINE)  # I am there
            everyone.wait(DEADLINE)  # it has been measured

    taken()  # what measuring itself allocates is there from now on
    steps = {"before": taken()}
    crew = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for thread in crew:
        thread.start()
    for step in ("waiting", "after Python calls", "after C calls"):
        everyone.wait(DEADLINE)
        steps[step] = taken()
        everyone.wait(DEADLINE)
    for thread in crew:
        thread.join(DEADLINE)
    return steps | {"ended": taken()}


def taken() -> dict[str, int | None]:
    """Bytes of this process now; None for what the system doesn't tell."""
    time.sleep(0.02)  # the last one at the barrier has yet to go to sleep
    process = psutil.Process().memory_full_info()
    reserved = None if sys.platform == "win32" else process.vms  # there: what is committed
    kernel = None
    with contextlib.suppress(OSError), open("/proc/meminfo") as lines:  # of the whole machine
        kernel = next(int(line.split()[1]) << 10 for line in lines if "KernelStack" in line)
    return {"reserved": reserved, "resident": process.uss, "kernel stack": kernel}


@types.coroutine
def pause() -> Generator[None]:
    yield


async def waits() -> None:
    await pause()


def objects() -> dict[str, float]:
    """Bytes that Python allocates for one waiting thread, task and coroutine (`tracemalloc`)."""
    gate = threading.Event()

    def thread() -> threading.Thread:
        waiting = threading.Thread(target=gate.wait, args=(DEADLINE,), daemon=True)
        waiting.start()
        return waiting

    def coroutine() -> types.CoroutineType:
        waiting = waits()
        waiting.send(None)
        return waiting

    async def task() -> float:
        return traced(lambda: asyncio.create_task(waits()))

    sizes = {"thread": traced(thread), "coroutine": traced(coroutine), "task": asyncio.run(task())}
    gate.set()
    return sizes


def traced(make: Callable[[], object]) -> float:
    tracemalloc.start()
    kept = [make() for _ in range(OBJECTS)]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / len(kept)


if __name__ == "__main__":
    number, mebibytes, nested = map(int, sys.argv[1:])
    threading.stack_size(mebibytes << 20)
    sys.setrecursionlimit(10_000)
    print(json.dumps({"steps": memory(number, nested), "objects": objects()}))
