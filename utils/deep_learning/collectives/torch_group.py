"""The same interface over `torch.distributed`: gloo on the CPU, nccl on GPUs of NVIDIA.

What is written against `Group` runs here unchanged: in processes of `launch`, which meet at a file,
or of `torchrun`, which tells each its place by environment variables (RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR, MASTER_PORT).

Source: https://docs.pytorch.org/docs/stable/distributed.html
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from utils.core import trace
from utils.deep_learning.collectives.group import OPS, Group, Op, check_choice, check_rows

_OPS: Mapping[Op, Any] = {
    "sum": dist.ReduceOp.SUM,
    "max": dist.ReduceOp.MAX,
    "min": dist.ReduceOp.MIN,
}


class TorchGroup(Group):
    """This process's rank in a `torch.distributed` group; tensors live on `device`.

    `process_group` is one that exists (None: the default one, of all). `report` says what to do
    with reports: whoever calls torchrun hears none.
    """

    def __init__(
        self,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str = "cpu",
        report: Callable[[Any], object] = lambda message: None,
    ) -> None:
        self._group = process_group or dist.group.WORLD
        if self._group is None:
            raise ValueError("process_group=None: init_process_group was not called")
        self.rank, self.size = dist.get_rank(self._group), dist.get_world_size(self._group)
        if self.rank < 0:
            raise ValueError("process_group: this process is not in it")
        self.device, self._report = torch.device(device), report

    def send(self, tensor: Tensor, to: int) -> None:
        with _told("send", tensor.nbytes):
            dist.send(tensor, group=self._group, group_dst=to)

    def recv(self, tensor: Tensor, source: int) -> None:
        with _told("recv", tensor.nbytes):
            dist.recv(tensor.detach(), group=self._group, group_src=source)

    def barrier(self) -> None:
        self.all_reduce(torch.zeros(1, device=self.device))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # nccl only enqueues

    def broadcast(self, tensor: Tensor, source: int = 0) -> None:
        with _told("broadcast", tensor.nbytes):
            dist.broadcast(tensor.detach(), group=self._group, group_src=source)

    def all_reduce(self, tensor: Tensor, op: Op = "sum") -> None:
        check_choice("op", op, OPS)
        with _told("all-reduce", tensor.nbytes):
            dist.all_reduce(tensor.detach(), _OPS[op], self._group)

    def reduce_scatter(self, tensor: Tensor, op: Op = "sum") -> Tensor:
        check_choice("op", op, OPS)
        check_rows(tensor, self.size)
        with _told("reduce-scatter", tensor.nbytes):
            mine = tensor.new_empty(len(tensor) // self.size, *tensor.shape[1:])
            dist.reduce_scatter_tensor(mine, tensor.detach(), _OPS[op], self._group)
            return mine

    def all_gather(self, tensor: Tensor) -> Tensor:
        with _told("all-gather", tensor.nbytes):
            everything = tensor.new_empty(self.size * len(tensor), *tensor.shape[1:])
            dist.all_gather_into_tensor(everything, tensor.detach(), self._group)
            return everything

    def report(self, message: Any) -> None:
        self._report(message)


@contextmanager
def _told(name: str, nbytes: int = 0) -> Iterator[None]:
    """Record the call, and raise gloo's RuntimeErrors as the errors that `Group` promises."""
    try:
        with trace.span("communicate", name, bytes=nbytes):
            yield
    except RuntimeError as error:
        if "imed out" in str(error) or "timeout" in str(error):
            raise TimeoutError(str(error)) from error
        if "Connection" in str(error):
            raise BrokenPipeError(str(error)) from error
        raise


@contextmanager
def torch_group(
    device: torch.device | str = "cpu",
    *,
    rank: int | None = None,
    size: int | None = None,
    store: str | Path | None = None,
    deadline: float = 60,
    report: Callable[[Any], object] = lambda message: None,
) -> Iterator[TorchGroup]:
    """Join the default process group, and leave it whatever happens.

    Give `rank`, `size` and `store`, a file all ranks see that no group has used before; or none of
    the three: then torchrun's environment says. On "cuda" each rank gets the GPU of its number.

    ValueError: only some are given, or more ranks than GPUs. RuntimeError: in a group already.
    """
    if len({rank is None, size is None, store is None}) != 1:
        raise ValueError(
            f"rank={rank}, size={size}, store={store}: give all three, or none under torchrun"
        )
    if dist.is_initialized():
        raise RuntimeError("this process is in a default process group already")
    device = torch.device(device)
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", 0)) if rank is None else rank
        if local >= torch.cuda.device_count():
            raise ValueError(f"rank {local}: this machine has {torch.cuda.device_count()} GPUs")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    where: dict[str, Any] = {"init_method": "env://"}
    if store is not None:
        where = {"store": dist.FileStore(str(store), size), "rank": rank, "world_size": size}
    backend, patience = "nccl" if device.type == "cuda" else "gloo", timedelta(seconds=deadline)
    try:
        with _told("join"):
            dist.init_process_group(backend, timeout=patience, **where)
        yield TorchGroup(None, device, report)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
