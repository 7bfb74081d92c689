"""The inference engine: submit an image, get a future; worker threads answer whole batches.

    with Engine(model, workers=2, max_batch=32, max_wait=0.002) as engine:
        request = engine.submit(image, timeout=0.1)
        logits = request.result()

submit -> Intake (bounded line) -> Batcher (who goes together) -> a worker -> the future.
A worker stacks its batch into a *new* tensor: a buffer used again was no faster here, and a model
whose answer is a view of its input would answer one batch with the pixels of the next.
"""

from __future__ import annotations

import atexit
import math
import threading
import time
from _thread import allocate_lock
from collections import Counter
from collections.abc import Callable
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from utils.core.trace import now
from utils.core.workers import lanes
from utils.deep_learning.serving.batching import Batcher
from utils.deep_learning.serving.intake import EngineClosed, Intake, QueueFull
from utils.performance.pools.future import Future
from utils.performance.queueing.requests import SECOND

Fate = Literal["answered", "rejected", "cancelled", "timed out", "failed"]


class DeadlinePassed(TimeoutError):
    """The request was still in line when its time was up, so it was not computed."""


class Batch(NamedTuple):
    """`size` requests that `worker` did together: released, computed from `begun` to `ended` (ns).

    Between `released` and `begun` its images were stacked.
    """

    worker: int
    size: int
    released: int
    begun: int
    ended: int


class Request(Future):
    """A future that knows its image, when it joined the line, and which batch it went with."""

    def __init__(self, engine: Engine, image: Tensor, deadline: float) -> None:
        super().__init__()
        self._engine, self.image, self.deadline = engine, image, deadline
        self.arrival = 0  # ns; set by the intake
        self.batch: Batch | None = None  # of a request that was computed, failures included
        self.fate: Fate | None = None  # set just before the future is done
        self.ended = 0  # ns; when that was

    def cancel(self) -> bool:
        """Leave the line and free the place; False if a worker has begun."""
        cancelled = super().cancel()
        if cancelled:
            self._engine._left(self)
        return cancelled


class Engine:
    """`workers` threads answer float32 images of `shape`, on the CPU, by `model(batch)`.

    It maps (n, *shape) to n rows, in order, and must be safe for many threads at once. `max_batch`
    and `max_wait` (seconds) are the policy's; at most `capacity` requests wait. Close it, or use
    `with`. Inference mode belongs to a thread, so each worker enters it. Each also takes over the
    number of threads that torch may use inside an operation: set it with `workers.intra_op`.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        workers: int = 1,
        max_batch: int = 32,
        max_wait: float = 0.0,
        capacity: int = 1024,
        shape: tuple[int, ...] = (1, 28, 28),
    ) -> None:
        if workers < 1 or workers != int(workers):
            raise ValueError(f"workers={workers!r} is not allowed: give 1 or more threads")
        self.workers = workers
        self._model, self._kind = model, (torch.Size(shape), torch.float32, "cpu")
        self._intake: Intake[Request] = Intake(Batcher(max_batch, max_wait), capacity)
        # _counting must be held whenever _fates or _submitted changes.
        self._counting = allocate_lock()
        self._fates: Counter[Fate] = Counter()
        self._submitted = 0
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=name, daemon=True)
            for number, name in enumerate(lanes(workers, "engine worker"))
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close, drain=False)  # a thread inside torch must not outlive Python

    def submit(self, image: Tensor, timeout: float | None = None, block: bool = False) -> Request:
        """Ask for the answer to `image`; none comes if it is still in line after `timeout` seconds.

        Deadlines are looked at when a batch is released. While the line is full: QueueFull, or if
        `block`, wait for room, and QueueFull after `timeout`. EngineClosed. ValueError: its kind.
        """
        if not isinstance(image, Tensor):
            raise TypeError(f"image={image!r} is not allowed: give a tensor")
        kind = image.shape, image.dtype, image.device.type
        if kind != self._kind:  # in a batch it would spoil the others' answers
            raise ValueError(f"image={kind} is not allowed: give {self._kind}")
        if timeout is not None and not timeout > 0:  # nan too
            raise ValueError(f"timeout={timeout!r} is not allowed: give seconds above 0, or None")
        deadline = math.inf if timeout is None else now() + timeout * SECOND
        request = Request(self, image, deadline)
        with self._counting:
            self._submitted += 1
        try:
            self._intake.put(request, block, timeout)
        except (QueueFull, EngineClosed):
            self._count("rejected")
            raise
        return request

    def counts(self) -> dict[str, int]:
        """`submitted`, and what became of them; those that are missing are still under way."""
        with self._counting:
            return {"submitted": self._submitted, **self._fates}

    def close(self, drain: bool = True, timeout: float = 60.0) -> None:
        """Accept no more; answer who waits, or if not `drain`, cancel them; end the workers.

        TimeoutError if a worker still computes after `timeout` seconds. May be called again.
        """
        for request in self._intake.close(drain):
            Future.cancel(request)  # it has left the line already
            self._end_cancelled(request)
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            if thread is threading.current_thread():  # a callback closes the engine: its worker
                continue  # ends when the callback has returned
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise TimeoutError(f"{thread.name} still computes after {timeout} s")
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.close(drain=kind is None)

    # ── Who does it ───────────────────────────────────────────────────────────────────────

    def _work(self, number: int) -> None:
        """The life of a worker."""
        torch.get_num_threads()  # from now on this thread keeps to the caller's number
        with torch.inference_mode():
            while (taken := self._intake.take()) is not None:
                batch, late, released = taken
                for request in self._begin(late):
                    passed = (released - request.deadline) / SECOND
                    error = DeadlinePassed(f"the deadline had passed {passed:.3g} s before")
                    self._end([request], "timed out", error=error)
                if batch := self._begin(batch):
                    self._answer(number, batch, released)

    def _begin(self, requests: list[Request]) -> list[Request]:
        """Those that were not cancelled in the very last moment."""
        begun = []
        for request in requests:
            if request.set_running_or_notify_cancel():
                begun.append(request)
            else:
                self._count("cancelled")
        return begun

    def _answer(self, worker: int, requests: list[Request], released: int) -> None:
        begun, fate, rows, error = released, "answered", (), None
        try:
            images = torch.stack([request.image for request in requests])
            begun = now()
            rows = self._model(images).unbind()
            if len(rows) != len(requests):
                raise RuntimeError(f"the model gave {len(rows)} answers to {len(requests)} images")
        except BaseException as raised:  # whatever it is, it belongs to these requests alone
            fate, error = "failed", raised
        batch = Batch(worker, len(requests), released, begun, now())
        self._end(requests, fate, rows, error, batch)

    def _end(
        self,
        requests: list[Request],
        fate: Fate,
        rows: tuple[Tensor, ...] = (),
        error: BaseException | None = None,
        batch: Batch | None = None,
    ) -> None:
        self._count(fate, len(requests))  # first: who sees an answer finds it counted
        for number, request in enumerate(requests):
            request.batch, request.fate, request.ended = batch, fate, now()
            if error is None:
                request.set_result(rows[number])
            else:
                request.set_exception(error)

    def _left(self, request: Request) -> None:
        """A request was cancelled. If a worker has it already, that worker counts it."""
        if self._intake.leave(request):
            self._end_cancelled(request)

    def _end_cancelled(self, request: Request) -> None:
        request.set_running_or_notify_cancel()  # else `wait` and `as_completed` never hear
        self._count("cancelled")

    def _count(self, fate: Fate, requests: int = 1) -> None:
        with self._counting:
            self._fates[fate] += requests
