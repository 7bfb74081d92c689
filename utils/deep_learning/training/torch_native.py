"""The real thing: PyTorch's own data parallel, over gloo on the CPU and nccl on GPUs.

Both take the *mean* over the ranks; times their number it is the sum that `share_of_loss` wants.

Sources: Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB
2020; https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.core import trace
from utils.deep_learning.collectives.group import Group
from utils.deep_learning.collectives.torch_group import torch_group
from utils.deep_learning.digits import Digits
from utils.deep_learning.recipe import share_of_loss
from utils.deep_learning.training.job import Job
from utils.deep_learning.training.strategy import Strategy


class DDP(Strategy):
    """`DistributedDataParallel`: buckets, overlapped with backward, in C++."""

    on = ("processes",)  # a process is in one default group
    resumable = True

    def __init__(self, group: Group, model: nn.Module, job: Job) -> None:
        super().__init__(group, model, job)
        self._open = ExitStack()
        if not dist.is_initialized():  # under torchrun it is
            store = job.scratch / "rendezvous"
            self._open.enter_context(torch_group(rank=group.rank, size=group.size, store=store))
        self.wrapped = self.wrap()
        self.optimizer = job.recipe.optimizer(self.wrapped.parameters())

    def wrap(self) -> nn.Module:
        return DistributedDataParallel(self.model)

    def step(self, mine: Digits, whole: int) -> float:
        with trace.span("compute", "gradient"):  # communication included: it is inside backward
            self.optimizer.zero_grad()
            loss = share_of_loss(self.wrapped, mine, whole)
            (loss * self.group.size).backward()
        with trace.span("compute", "update"):
            self.optimizer.step()
        return loss.item()

    def bytes_sent(self) -> None:
        return None  # gloo and nccl do not say

    def close(self) -> None:
        self._open.close()


class FSDP(DDP):
    """`fully_shard`, FSDP2: parameters, gradients and state are divided, as in ZeRO stage 3.

    A layer's parameters are gathered just before they are used, and freed just after.
    """

    resumable = False

    def wrap(self) -> nn.Module:
        # Here, because they take a second to import, and every rank of any strategy would pay.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.group.device.type, (self.group.size,))
        for layer in self.model.children():
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=mesh)
        return fully_shard(self.model, mesh=mesh)

    def weights(self) -> Mapping[str, Tensor]:
        return {name: value.full_tensor() for name, value in self.model.state_dict().items()}

    def state_bytes(self) -> int:
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        return sum(value.to_local().nbytes for value in kept)
