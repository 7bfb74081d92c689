"""A crew of threads or processes that all exist before the clock starts; and torch's own threads.

The library's executors start a worker only when a task finds nobody idle. That is thrifty, and
wrong for a measurement: the first tasks would pay for the last workers.
"""

from __future__ import annotations

import itertools
import multiprocessing
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Semaphore
from typing import Any

from utils.core.experiment import checkpoint

READY_WITHIN = 60  # seconds, for processes that start


@contextmanager
def crew(workers: int, noun: str = "worker") -> Iterator[ThreadPoolExecutor]:
    """A pool of `workers` threads that are there and wait, named "worker 1" and so on."""
    numbers = itertools.count(1)

    def christen() -> None:
        threading.current_thread().name = f"{noun} {next(numbers)}"

    everyone = threading.Barrier(workers)
    with ThreadPoolExecutor(workers, initializer=christen) as pool:
        for meeting in [pool.submit(everyone.wait, 10) for _ in range(workers)]:
            meeting.result(timeout=10)
        yield pool


@contextmanager
def process_crew(
    workers: int, prepare: Callable[..., object], *args: Any, before: int = 0, total: int = 0
) -> Iterator[ProcessPoolExecutor]:
    """A pool of `workers` spawned processes, each of which has called `prepare(*args)`.

    `before` and `total` place the wait for them in a longer run. BrokenProcessPool: one failed to
    prepare or died. TimeoutError: not all were ready after `READY_WITHIN` seconds. The processes
    have ended when the block has.
    """
    context = multiprocessing.get_context("spawn")
    # With spawn, a task that finds nobody idle starts a worker. So nobody idles until all started.
    ready, go = context.Semaphore(0), context.Semaphore(0)
    pool = ProcessPoolExecutor(workers, context, _get_ready, (ready, go, prepare, args))
    try:
        started = [pool.submit(int) for _ in range(workers)]
        for _ in range(workers):
            go.release()
        deadline = time.monotonic() + READY_WITHIN
        for count in range(workers):
            note = f"{count} of {workers} processes ready"
            while not ready.acquire(timeout=0.05):
                checkpoint(before if total else None, total, note)
                for future in started:
                    if future.done():
                        future.result()  # says why, if a process died or could not prepare
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{note} after {READY_WITHIN} s")
        yield pool
    except BaseException:  # Cancel, too: nobody waits for what such a process still does
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _get_ready(
    ready: Semaphore, go: Semaphore, prepare: Callable[..., object], args: tuple[Any, ...]
) -> None:
    prepare(*args)
    ready.release()
    go.acquire(timeout=READY_WITHIN)


def run_child(command: Sequence[str], environment: Mapping[str, str], deadline: float) -> str:
    """What `command` prints, in a process of its own, with checkpoints meanwhile.

    RuntimeError with the last line of its errors if it fails; TimeoutError after `deadline` s.
    Then, and if cancelled, the process is killed.
    """
    end, pipe = time.monotonic() + deadline, subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment, text=True) as child:
        try:
            while True:
                checkpoint(0, note="in a process of its own")
                try:
                    output, errors = child.communicate(timeout=0.05)
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() > end:
                        raise TimeoutError(f"a process took over {deadline} s") from None
        finally:
            child.kill()
    if child.returncode != 0:
        raise RuntimeError(errors.strip().rpartition("\n")[2] or f"exit code {child.returncode}")
    return output


def lanes(workers: int, noun: str = "worker") -> list[str]:
    """What a crew's threads are called: the rows of its timeline, idle ones included."""
    return [f"{noun} {number}" for number in range(1, workers + 1)]


@contextmanager
def intra_op(threads: int) -> Iterator[None]:
    """Let torch use `threads` threads inside one operation; the old number comes back after.

    A thread that is started inside the block takes the number over when it first asks for it: by
    `torch.get_num_threads()`, or an operation that torch divides itself. A matrix product that
    comes first may use all cores, for its library has not been told. Eight workers × four threads
    means 32.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
