"""Gradients on their way while backward still computes: buckets, and a thread that sends them.

Backward reaches the last layer first. Its gradients are ready long before those of the first layer,
so they can travel meanwhile. One by one they would pay for a start each; all together could not
leave before the end. So neighbours share a bucket, which leaves when it is full.

Source: Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB
2020, section 3.2.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from utils.core import trace
from utils.deep_learning.collectives.group import Group

WAITING = "exposed communication"  # the name of the span in which backward waits for the wire


@dataclass
class Bucket:
    """Neighbouring parameters; `flat` has room for all their gradients, `views` for each."""

    parameters: list[Tensor]
    flat: Tensor
    views: list[Tensor]
    missing: set[int]  # places of the gradients that backward has not reached yet


class Buckets:
    """Sums the gradients of `model` over all ranks: run backward, then `wait`.

    A *sum*: whoever wants the gradient of all samples together gives each rank's loss its share,
    `loss * len(mine) / len(all)`. A parameter without a gradient (no sample, a branch not taken)
    counts as zero, so a rank may skip backward, but never `wait`. Until `wait` returns, the
    group is not to be used for anything else.

    With `overlap` a bucket leaves as soon as it is full, in a thread of its own (the lane "rank 0
    wire"); without, when `wait` is called. The numbers are the same to the bit.
    """

    def __init__(
        self, model: nn.Module, group: Group, bytes: int = 2**20, overlap: bool = True
    ) -> None:
        if bytes < 1:
            raise ValueError(f"bytes={bytes} is not allowed: give 1 or more")
        self.group, self.overlap = group, overlap
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.buckets = [_bucket(chunk) for chunk in _chunks(reversed(trained), bytes)]
        self._synchronised = True
        self._sent: list[Future[None]] = []
        self._wire = ThreadPoolExecutor(1, initializer=self._start_wire)
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._ready, number, place))
            for number, bucket in enumerate(self.buckets)
            for place, parameter in enumerate(bucket.parameters)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the model, and wait for what is under way."""
        for hook in self._hooks:
            hook.remove()
        self._wire.shutdown(cancel_futures=True)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients of this block stay here and add up; the next backward sends them along."""
        before, self._synchronised = self._synchronised, False
        try:
            yield
        finally:
            self._synchronised = before

    def wait(self) -> None:
        """Return when all gradients are summed; raises what the group raised."""
        for bucket in self.buckets:
            for place in sorted(bucket.missing):
                self._collect(bucket, place)
        with trace.span("queue", WAITING):
            self._send_full()
            try:
                for sent in self._sent:
                    sent.result()
            finally:
                self._reset()

    # ── In the thread that runs backward ──────────────────────────────────────────────────────

    def _ready(self, number: int, place: int, _: Tensor) -> None:
        if not self._synchronised:
            return
        bucket = self.buckets[number]
        if place not in bucket.missing:
            raise RuntimeError("a second backward before wait(): put the first into no_sync()")
        self._collect(bucket, place)
        if self.overlap:
            self._send_full()

    def _collect(self, bucket: Bucket, place: int) -> None:
        """Move a gradient into the bucket, where it then stays: sums need not be moved back."""
        parameter, view = bucket.parameters[place], bucket.views[place]
        if parameter.grad is None:
            view.zero_()
        elif parameter.grad is not view:
            view.copy_(parameter.grad)
        parameter.grad = view
        bucket.missing.remove(place)

    def _send_full(self) -> None:
        """Send what is full, *in order*: ranks may fill their buckets in different orders."""
        while len(self._sent) < len(self.buckets):
            bucket = self.buckets[len(self._sent)]
            if bucket.missing:
                return
            self._sent.append(self._wire.submit(self.group.all_reduce, bucket.flat))

    def _reset(self) -> None:
        self._sent = []
        for bucket in self.buckets:
            bucket.missing.update(range(len(bucket.parameters)))

    # ── In the thread that sends ──────────────────────────────────────────────────────────────

    def _start_wire(self) -> None:
        threading.current_thread().name = f"{self.group.lane} wire"
        torch.get_num_threads()  # this thread takes over how many threads its operations may use
        if self.group.device.type == "cuda":
            torch.cuda.set_device(self.group.device)


def _chunks(parameters: Iterable[Tensor], bytes: int) -> Iterator[list[Tensor]]:
    """Neighbours of one type, up to `bytes` together; a larger parameter comes alone."""
    chunk: list[Tensor] = []
    for parameter in parameters:
        full = sum(other.nbytes for other in chunk) + parameter.nbytes > bytes
        if chunk and (full or parameter.dtype != chunk[0].dtype):
            yield chunk
            chunk = []
        chunk.append(parameter)
    if chunk:
        yield chunk


def _bucket(parameters: list[Tensor]) -> Bucket:
    sizes = [parameter.numel() for parameter in parameters]
    flat = parameters[0].new_zeros(sum(sizes))
    views = [
        part.view_as(parameter)
        for part, parameter in zip(flat.split(sizes), parameters, strict=True)
    ]
    return Bucket(parameters, flat, views, set(range(len(parameters))))
