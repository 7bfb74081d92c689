"""One rank's part in a training, and the simplest one: alone.

All strategies share one loop: take your part of the batch, `step`, write down the loss. They differ
in what they take, and in what they tell each other. Most of them only say when to `exchange` what.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from utils.core import trace
from utils.core.experiment import Cancelled
from utils.deep_learning.collectives.group import Group
from utils.deep_learning.collectives.launch import On
from utils.deep_learning.digits import Digits
from utils.deep_learning.recipe import share_of_loss
from utils.deep_learning.training import checkpoint
from utils.deep_learning.training.flat import Flat
from utils.deep_learning.training.job import Job, Log


class Strategy(ABC):
    """What one rank does in a step, with its own `model` and `optimizer`."""

    on: ClassVar[tuple[On, ...]] = ("processes", "threads")
    resumable: ClassVar[bool] = False  # do all ranks hold the same, so that one may save it?
    optimizer: torch.optim.Optimizer

    @staticmethod
    def layout(workers: int) -> tuple[int, int]:
        """How many ranks, and how many threads of torch's each has."""
        return workers, 1

    def __init__(self, group: Group, model: nn.Module, job: Job) -> None:
        self.group, self.model, self.job = group, model.to(group.device), job
        self.staleness: list[int] = []  # of each update: how many others came in between

    def run(self, log: Log, stopped: Callable[[], object]) -> None:
        """All steps of this rank; Cancelled when `stopped`."""
        job, data = self.job, self.job.digits
        path = job.checkpoint
        start = checkpoint.load(path, job, self.model, self.optimizer) if path else 0
        for step, which in job.batches(start):
            if stopped():
                raise Cancelled
            mine = self.take(step, which)
            if mine is None:
                continue
            self.optimizer.param_groups[0]["lr"] = job.recipe.rate_at(step, len(data))
            batch = self._here(job.recipe.take(data, mine, step))
            log.add(step, len(mine), self.step(batch, len(which)))
            if path and self.group.rank == 0 and (step + 1) % job.save_every == 0:
                checkpoint.save(path, job, step + 1, self.model, self.optimizer)
        self.finish()

    def take(self, step: int, which: Tensor) -> Tensor | None:
        """The digits of this batch that are ours; None: we have no part in this step at all."""
        return self.job.share(which, self.group.rank)

    def _here(self, batch: Digits) -> Digits:
        device = self.group.device
        return Digits(batch.images.to(device), batch.labels.to(device))

    @abstractmethod
    def step(self, mine: Digits, whole: int) -> float:
        """Learn from `mine`, of a batch of `whole` digits; our share of the batch's mean loss."""

    def finish(self) -> None:  # noqa: B027  (most have nothing to do)
        """After the last step: agree on one result."""

    def state(self) -> Mapping[str, Tensor]:
        """The trained parameters by name, on the CPU; all ranks call it."""
        return {name: value.detach().cpu().clone() for name, value in self.weights().items()}

    def weights(self) -> Mapping[str, Tensor]:
        return self.model.state_dict()

    def state_bytes(self) -> int:
        """Bytes that the optimiser of this rank remembers from step to step."""
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        return sum(value.nbytes for value in kept if isinstance(value, Tensor))

    def bytes_sent(self) -> int | None:
        """Payload that this rank has sent; None: nobody counts."""
        return getattr(self.group, "bytes_sent", None)

    def close(self) -> None:  # noqa: B027
        """Leave nothing behind, whatever happened."""


class Serial(Strategy):
    """One rank, one step after the other. Others replace `gradient` or `exchange`."""

    resumable = True

    @staticmethod
    def layout(workers: int) -> tuple[int, int]:
        return 1, 1

    def __init__(self, group: Group, model: nn.Module, job: Job) -> None:
        super().__init__(group, model, job)
        self.flat = self.flatten()
        self.optimizer = job.recipe.optimizer([self.flat.parameter])
        group.broadcast(self.flat.values)  # replicas must start identical

    def flatten(self) -> Flat:
        return Flat(self.model)

    def step(self, mine: Digits, whole: int) -> float:
        loss = self.gradient(mine, whole)
        self.exchange()
        self.update()
        return loss

    def gradient(self, mine: Digits, whole: int) -> float:
        """Put into `flat.gradient` what `mine` adds to the gradient of the batch."""
        with trace.span("compute", "gradient"):
            self.flat.gradient.zero_()
            loss = share_of_loss(self.model, mine, whole)
            loss.backward()
            return loss.item()

    def exchange(self) -> None:  # noqa: B027
        """Nobody else is there."""

    def update(self) -> None:
        with trace.span("compute", "update"):
            self.optimizer.step()


class IntraOp(Serial):
    """One rank, whose operations torch divides among `workers` threads."""

    @staticmethod
    def layout(workers: int) -> tuple[int, int]:
        return 1, workers
