"""Data parallel: everybody has the whole model and a part of each batch; gradients are added.

A batch's loss is a mean over its samples, so its gradient is a sum over them, and a sum may be
taken in parts. Each rank divides by the size of the *whole* batch: then the sum over the ranks is
the gradient of the batch, whether they took equal parts or not. (The mean of the ranks' own means
is that only when their parts are equal.) All ranks then make the same update to the same
parameters, and need not send those.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import nn

from utils.core import trace
from utils.deep_learning.collectives.buckets import Buckets
from utils.deep_learning.collectives.group import Group
from utils.deep_learning.digits import Digits
from utils.deep_learning.recipe import share_of_loss
from utils.deep_learning.training.job import Job, shares
from utils.deep_learning.training.strategy import Serial, Strategy

BUCKET = 2**18  # bytes: a few buckets for the deeper model of this chapter


class DataParallel(Serial):
    """One all-reduce of all gradients a step, between backward and update."""

    layout = staticmethod(Strategy.layout)

    def exchange(self) -> None:
        self.group.all_reduce(self.flat.gradient)


class Accumulation(DataParallel):
    """A part too large for memory goes through in micro-batches; one all-reduce after the last."""

    def gradient(self, mine: Digits, whole: int) -> float:
        self.flat.gradient.zero_()
        total = 0.0
        for index, micro in enumerate(self._micro_batches(mine)):
            with trace.span("compute", f"micro-batch {index}"):
                loss = share_of_loss(self.model, micro, whole)
                loss.backward()  # adds to what is there
                total += loss.item()
        return total

    def _micro_batches(self, mine: Digits) -> Iterator[Digits]:
        cuts = shares(len(mine), [1] * self.job.micro_batches)
        return (mine[start:end] for start, end in pairwise(cuts))


class Overlapped(Strategy):
    """Gradients leave in buckets while backward still computes those of earlier layers."""

    resumable = True

    def __init__(self, group: Group, model: nn.Module, job: Job) -> None:
        super().__init__(group, model, job)
        for parameter in model.parameters():
            group.broadcast(parameter.data)
        self.optimizer = job.recipe.optimizer(model.parameters())
        self.buckets = Buckets(model, group, bytes=BUCKET)

    def step(self, mine: Digits, whole: int) -> float:
        with trace.span("compute", "gradient"):
            self.optimizer.zero_grad()
            loss = share_of_loss(self.model, mine, whole)
            loss.backward()
        self.buckets.wait()
        with trace.span("compute", "update"):
            self.optimizer.step()
        return loss.item()

    def close(self) -> None:
        self.buckets.close()
