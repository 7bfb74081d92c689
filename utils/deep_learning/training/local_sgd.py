"""Local SGD: everybody trains a model alone, and now and then all take the mean of the models.

This is what "each thread updates its parameters independently, from time to time they are
synchronised" says. It sends 1/K as much as data parallel. Between two means the models drift apart,
so the result is another one; with K = 1, SGD and equal parts it is the same, for an SGD update is
linear in the gradient.

Source: Stich, "Local SGD Converges Fast and Communicates Little", ICLR 2019.
"""

from __future__ import annotations

from torch import nn

from utils.deep_learning.collectives.group import Group
from utils.deep_learning.digits import Digits
from utils.deep_learning.training.job import Job
from utils.deep_learning.training.strategy import Serial, Strategy


class LocalSGD(Serial):
    """After every `local_steps` steps the parameters are averaged; momentum stays local."""

    resumable = False
    layout = staticmethod(Strategy.layout)

    def __init__(self, group: Group, model: nn.Module, job: Job) -> None:
        super().__init__(group, model, job)
        self.weight = job.parts[group.rank] / sum(job.parts)
        self.alone = 0  # steps since the last mean

    def step(self, mine: Digits, whole: int) -> float:
        loss = self.gradient(mine, max(1, len(mine)))  # of our part, as if it were the batch
        self.update()
        self.alone += 1
        if self.alone == self.job.local_steps:
            self.average()
        return loss * len(mine) / whole

    def average(self) -> None:
        self.flat.values.mul_(self.weight)
        self.group.all_reduce(self.flat.values)
        self.alone = 0

    def finish(self) -> None:
        if self.alone:
            self.average()
