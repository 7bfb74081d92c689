"""ZeRO, stage 1: data parallel, with the optimiser's state divided among the ranks.

In data parallel every rank remembers the same momentum. Here rank r updates only the r-th part of
the parameters, so it needs only that part's state, and only that part of the summed gradient: a
reduce-scatter brings it, an all-gather hands the new parameters round. Together they send what one
all-reduce does. Stage 2 also gives up the gradients of the other parts, stage 3 their parameters:
PyTorch's `fully_shard` (`torch_native.FSDP`) does all three.

Source: Rajbhandari, Rasley, Ruwase, He, "ZeRO: Memory Optimizations Toward Training Trillion
Parameter Models", SC 2020.
"""

from __future__ import annotations

from torch import nn

from utils.deep_learning.collectives.group import Group
from utils.deep_learning.training.flat import Flat
from utils.deep_learning.training.job import Job
from utils.deep_learning.training.strategy import Serial, Strategy


class Zero(Serial):
    """Optimiser state / N a rank; the same parameters as data parallel."""

    resumable = False  # no rank has all of the state
    layout = staticmethod(Strategy.layout)

    def __init__(self, group: Group, model: nn.Module, job: Job) -> None:
        super().__init__(group, model, job)
        self.part = nn.Parameter(self.flat.values.tensor_split(group.size)[group.rank])  # a view
        self.optimizer = job.recipe.optimizer([self.part])

    def flatten(self) -> Flat:
        return Flat(self.model, multiple=self.group.size)

    def exchange(self) -> None:
        self.part.grad = self.group.reduce_scatter(self.flat.gradient)

    def update(self) -> None:
        super().update()
        self.flat.values.copy_(self.group.all_gather(self.part.detach()))
