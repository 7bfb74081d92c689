"""A group of ranks that exchange tensors, whatever carries the bytes.

A *rank* is one of `size` workers that run the same function, numbered from 0. All of them call the
same collective operations in the same order, each with a tensor of the same shape and type. Names
and meanings are those of MPI and `torch.distributed`, so that one can be put in the place of the
other: `mesh.MeshGroup` moves tensors through shared memory by the algorithms of this chapter,
`torch_group.TorchGroup` leaves both to gloo or nccl.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Op = Literal["sum", "max", "min"]
OPS: tuple[Op, ...] = get_args(Op)


class Group(ABC):
    """One rank's way to the others. Tensors must be contiguous.

    When a rank fails or dies, the others' calls raise EOFError or BrokenPipeError; when one does
    not come, they raise TimeoutError after the group's deadline.
    """

    rank: int
    size: int
    device = torch.device("cpu")  # where tensors live

    @property
    def lane(self) -> str:
        """The rank's row in a timeline."""
        return f"rank {self.rank}"

    @abstractmethod
    def send(self, tensor: Tensor, to: int) -> None:
        """Send `tensor` to one rank; returns when it may be changed again."""

    @abstractmethod
    def recv(self, tensor: Tensor, source: int) -> None:
        """Wait for a tensor from one rank and write it into `tensor`."""

    @abstractmethod
    def barrier(self) -> None:
        """Return when all ranks have called it."""

    @abstractmethod
    def broadcast(self, tensor: Tensor, source: int = 0) -> None:
        """Give every rank the tensor of `source`, in place."""

    @abstractmethod
    def all_reduce(self, tensor: Tensor, op: Op = "sum") -> None:
        """Replace `tensor` everywhere by the sum (maximum, minimum) of all ranks', in place."""

    @abstractmethod
    def reduce_scatter(self, tensor: Tensor, op: Op = "sum") -> Tensor:
        """This rank's part of the sum: (size · n, …) → (n, …). ValueError: not divisible."""

    @abstractmethod
    def all_gather(self, tensor: Tensor) -> Tensor:
        """All ranks' tensors, in order of rank: (n, …) → (size · n, …)."""

    def gather_numbers(self, value: float) -> list[float]:
        """All ranks' numbers, in order of rank."""
        return self.all_gather(
            torch.tensor([value], dtype=torch.float64, device=self.device)
        ).tolist()

    @abstractmethod
    def report(self, message: Any) -> None:
        """Tell whoever launched the group; what was told outlives this rank."""


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """ValueError, unless `value` is one of those allowed."""
    choices = tuple(allowed)
    if value not in choices:
        raise ValueError(
            f"{name}={value!r} is not allowed: give one of {', '.join(map(repr, choices))}"
        )


def check_rows(tensor: Tensor, size: int) -> None:
    """ValueError, unless the rows can be shared by `size` ranks."""
    if len(tensor) % size:
        raise ValueError(f"{len(tensor)} rows cannot be shared by {size} ranks")
