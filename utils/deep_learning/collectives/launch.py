"""Start a group of ranks, hear from them, and leave nothing behind, however they end.

When one rank fails or is killed, those who wait for it cannot go on: their channels tell them, and
who is left after `GRACE` seconds is ended. The caller gets one error, about the rank that failed
first, and has heard all that the ranks had reported until then.
"""

from __future__ import annotations

import multiprocessing
import pickle
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

import torch

from utils.core import trace
from utils.core.experiment import Cancelled, Control, checkpoint, controlled
from utils.core.trace import Trace
from utils.deep_learning.collectives.mesh import Ends, MeshGroup, mesh

GRACE = 2.0  # s for the other ranks to notice
_LOOK = 0.05  # s between two looks at whether the run was cancelled
On = Literal["processes", "threads"]
Event = tuple[int, str, Any]  # rank; "report", "done", "failed", "lost" or "died"; what


class RankFailed(RuntimeError):
    """A rank raised an error or died, and the others were ended. `details` has the traceback."""

    def __init__(self, rank: int, reason: str, details: str = "") -> None:
        super().__init__(f"rank {rank} {reason}")
        self.rank, self.reason, self.details = rank, reason, details


@dataclass(frozen=True)
class Outcome:
    """What the ranks returned, in order of rank, and what they recorded."""

    results: tuple[Any, ...]
    trace: Trace


def launch(
    function: Callable[..., Any],
    size: int,
    *args: Any,
    on: On = "processes",
    threads: int = 1,
    deadline: float = 60,
    hear: Callable[[int, Any], object] = lambda rank, message: None,
) -> Outcome:
    """Run `function(group, *args)` as `size` ranks, each with `threads` threads of torch's.

    In processes, `function` belongs to a module and every rank gets a copy of `args`; threads all
    get the same. `hear(rank, message)` is called here with what a rank reports. `deadline` is how
    long, in seconds, one rank waits for another.

    RankFailed: a rank raised or died. ValueError: a number or name that is not allowed. Cancelled.
    """
    if size < 1 or threads < 1:
        raise ValueError(f"size={size}, threads={threads}: give at least 1 of each")
    if not deadline > 0:
        raise ValueError(f"deadline={deadline} is not allowed: give seconds above 0")
    if on not in _START:
        raise ValueError(f"on={on!r} is not allowed: give {' or '.join(map(repr, _START))}")
    run = partial(_run, function, args, threads, deadline)
    with trace.recording() as recorder, mesh(size) as ends, _START[on](run, ends) as poll:
        results, traces = _listen(size, poll, hear)
        return Outcome(results, Trace.merge([recorder.trace(), *traces]))


def _listen(
    size: int, poll: Callable[[], list[Event]], hear: Callable[[int, Any], object]
) -> tuple[tuple[Any, ...], tuple[Trace, ...]]:
    """Wait until all ranks have ended; what they returned and recorded, in order of rank."""
    results: dict[int, Any] = {}
    failures: list[Event] = []
    patience = float("inf")
    while len(results) + len(failures) < size and time.monotonic() < patience:
        checkpoint()
        for rank, kind, what in poll():
            if kind == "report":
                hear(rank, what)
            elif kind == "done":
                results[rank] = what
            else:
                failures.append((rank, kind, what))
                patience = min(patience, time.monotonic() + GRACE)
    if failures:
        # Who lost a peer only tells that somebody else failed.
        rank, _, (reason, details) = min(failures, key=lambda failure: failure[1] == "lost")
        raise RankFailed(rank, reason, details)
    returned, traces = zip(*(results[rank] for rank in range(size)), strict=True)
    return returned, traces


def _run(
    function: Callable[..., Any], args: tuple[Any, ...], threads: int, deadline: float,
    rank: int, ends: Ends, tell: Callable[[str, Any], None], stopped: Callable[[], bool],
) -> None:  # fmt: skip
    """Be one rank, in this thread, and tell how it ended."""
    torch.set_num_threads(threads)
    group = MeshGroup(rank, *ends, deadline, partial(tell, "report"), stopped)
    try:
        tell("done", function(group, *args))
    except BaseException as error:
        tell(*_failure(error))
    finally:
        group.close()


# ── Ranks as threads ──────────────────────────────────────────────────────────────────────────


@contextmanager
def _threads(run: Callable[..., None], ends: list[Ends]) -> Iterator[Callable[[], list[Event]]]:
    told: queue.SimpleQueue[Event] = queue.SimpleQueue()
    stop = Control()

    def tell(rank: int, kind: str, what: Any) -> None:
        told.put((rank, kind, (what, Trace()) if kind == "done" else what))  # all share a recorder

    def poll() -> list[Event]:
        try:
            return [told.get(timeout=_LOOK)]
        except queue.Empty:
            return []

    def be(rank: int, own: Ends) -> None:
        with controlled(stop):  # `checkpoint` ends a rank that computes
            run(rank, own, partial(tell, rank), lambda: stop.cancelled)

    ranks = [
        threading.Thread(target=be, args=(rank, own), name=f"rank {rank}")
        for rank, own in enumerate(ends)
    ]
    for thread in ranks:
        thread.start()
    try:
        yield poll
    finally:
        stop.cancel()  # a thread cannot be ended: it sees this at a checkpoint, or with a message
        for thread in ranks:
            thread.join()


# ── Ranks as processes ────────────────────────────────────────────────────────────────────────


@contextmanager
def _processes(run: Callable[..., None], ends: list[Ends]) -> Iterator[Callable[[], list[Event]]]:
    context = multiprocessing.get_context("spawn")
    # Pickled here and not by `Process`, which would move the tensors to shared memory.
    payload = pickle.dumps(run)
    ranks, pipes = [], {}
    try:
        for rank, own in enumerate(ends):
            ours, theirs = context.Pipe(duplex=False)
            pipes[ours] = rank
            with theirs:
                process = context.Process(
                    target=_process, args=(payload, rank, own, theirs), name=f"rank {rank}"
                )
                process.start()
            ranks.append(process)
        yield partial(_hear_from, pipes, ranks)
    finally:
        for process in ranks:
            if pipes:  # somebody has not said how it ended: this was cut short
                process.kill()
            process.join(GRACE)
            process.kill()
            process.join()
        for pipe in pipes:
            pipe.close()


def _hear_from(pipes: dict[Connection, int], ranks: list[Any]) -> list[Event]:
    """What came; a pipe is dropped once its rank has said how it ended, or died."""
    events: list[Event] = []
    for pipe in wait(list(pipes), timeout=_LOOK):
        rank = pipes[pipe]
        try:
            kind, what = _unpickled(pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            ranks[rank].join(GRACE)
            kind, what = "died", (f"died with exit code {ranks[rank].exitcode}", "")
        if kind != "report":
            del pipes[pipe]
            pipe.close()
        events.append((rank, kind, what))
    return events


def _unpickled(message: bytes) -> Any:
    """What was sent; if that cannot be made here, an event that says why."""
    try:
        return pickle.loads(message)
    except Exception as error:
        return _failure(error, "sent what cannot be unpickled:")


def _failure(error: BaseException, what: str = "raised") -> tuple[str, tuple[str, str]]:
    lost = isinstance(error, EOFError | BrokenPipeError | Cancelled)
    reason = f"{what} {type(error).__name__}: {error}"
    return "lost" if lost else "failed", (reason, traceback.format_exc())


def _process(payload: bytes, rank: int, ends: Ends, pipe: Connection) -> None:
    threading.current_thread().name = f"rank {rank}"

    with trace.recording() as recorder:

        def tell(kind: str, what: Any) -> None:
            told = (what, recorder.trace()) if kind == "done" else what
            pipe.send_bytes(pickle.dumps((kind, told)))

        try:
            run = pickle.loads(payload)
        except Exception as error:
            tell(*_failure(error, "cannot unpickle what it should do:"))
        else:
            run(rank, ends, tell, bool)


_START: dict[str, Callable[..., AbstractContextManager[Callable[[], list[Event]]]]] = {
    "processes": _processes,
    "threads": _threads,
}
