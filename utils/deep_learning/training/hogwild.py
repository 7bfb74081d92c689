"""Hogwild: everybody updates the same parameters in shared memory, without any lock.

Each worker has gradients and momentum of its own; only the parameters are shared. Two updates at
once may mix or lose a few numbers, and a forward pass may see half of one. With *sparse* gradients
that rarely happens and is proved to do no harm; ours are dense, so the proof does not apply, and
whether it still learns is a matter of experiment.

Source: Niu, Recht, Ré, Wright, "Hogwild!: A Lock-Free Approach to Parallelizing Stochastic Gradient
Descent", NIPS 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from utils.deep_learning.collectives.group import Group
from utils.deep_learning.training.flat import Flat
from utils.deep_learning.training.job import Job
from utils.deep_learning.training.strategy import Serial, Strategy


class Hogwild(Serial):
    """Workers take whole batches in turn; the parameters are a file that all have mapped."""

    resumable = False
    layout = staticmethod(Strategy.layout)

    def __init__(self, group: Group, model: nn.Module, job: Job) -> None:
        super().__init__(group, model, job)
        group.barrier()  # all have written the first values before anybody changes them

    def flatten(self) -> Flat:
        return Flat(self.model, allocate=self._map)

    def _map(self, size: int, dtype: torch.dtype) -> Tensor:
        path = str(self.job.scratch / "parameters")
        return torch.from_file(path, shared=True, size=size, dtype=dtype)

    def take(self, step: int, which: Tensor) -> Tensor | None:
        return which if step % self.job.workers == self.group.rank else None

    def finish(self) -> None:
        self.group.barrier()  # the last update is everybody's
