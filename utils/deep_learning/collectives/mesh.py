"""A group of threads or processes of one machine: a ring of shared memory from each to each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import permutations, zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.core import trace
from utils.core.experiment import Cancelled
from utils.deep_learning.collectives import algorithms
from utils.deep_learning.collectives.group import Group, Op
from utils.threads.channels.ring import Receiver, Ring, Sender

Ends = tuple[dict[int, Sender], dict[int, Receiver]]  # to and from each other rank, by its number
CAPACITY = 2**21  # bytes under way from one rank to another
PIECE = 2**18  # bytes of a message: a quarter of a megabyte stays in the cache of a core

_COMBINE: Mapping[Op | None, Callable[[Tensor, Tensor], object]] = {
    None: Tensor.copy_,
    "sum": Tensor.add_,
    "max": lambda into, other: torch.maximum(into, other, out=into),
    "min": lambda into, other: torch.minimum(into, other, out=into),
}


class MeshGroup(Group):
    """A rank with a `Sender` to and a `Receiver` from each other rank."""

    def __init__(
        self,
        rank: int,
        senders: Mapping[int, Sender],
        receivers: Mapping[int, Receiver],
        deadline: float,
        report: Callable[[Any], None],
        stopped: Callable[[], bool],
    ) -> None:
        self.rank, self.size = rank, len(senders) + 1
        self.bytes_sent = 0  # payload, by this rank
        self._senders, self._receivers = senders, receivers
        self._deadline, self._report, self._stopped = deadline, report, stopped

    # ── Between two ranks ─────────────────────────────────────────────────────────────────────

    def send(self, tensor: Tensor, to: int) -> None:
        for piece in self._pieces(tensor):
            self._put(piece, to)

    def recv(self, tensor: Tensor, source: int, op: Op | None = None) -> None:
        """With an `op`, what comes is not copied but added to (…) what is there."""
        for piece in self._pieces(tensor):
            self._take(piece, source, op)

    def exchange(
        self, out: Tensor, to: int, into: Tensor, source: int, op: Op | None = None
    ) -> None:
        """Send `out` and receive `into`, piece by piece, so that neither waits for the other."""
        for mine, theirs in zip_longest(self._pieces(out), self._pieces(into)):
            if mine is not None:
                self._put(mine, to)
            if theirs is not None:
                self._take(theirs, source, op)

    def _pieces(self, tensor: Tensor) -> tuple[Tensor, ...]:
        if self._stopped():
            raise Cancelled
        flat = _flat(tensor)
        return flat.split(PIECE // flat.itemsize) if flat.numel() else ()

    def _put(self, piece: Tensor, to: int) -> None:
        data = piece.detach().view(torch.uint8).numpy()
        self._senders[to].send_bytes(data, self._deadline)
        self.bytes_sent += piece.nbytes

    def _take(self, piece: Tensor, source: int, op: Op | None) -> None:
        with self._receivers[source].receive(self._deadline) as message:
            if len(message) != piece.nbytes:
                raise ValueError(
                    f"{self.lane} expected {piece.nbytes} bytes from rank {source} and got "
                    f"{len(message)}: do all ranks pass tensors of one shape and type?"
                )
            data = torch.from_numpy(np.frombuffer(message, np.uint8)).view(piece.dtype)
            _COMBINE[op](piece, data)
            del data  # the sender will write there again

    # ── Between all ───────────────────────────────────────────────────────────────────────────

    def barrier(self) -> None:
        self.all_reduce(torch.zeros(1))

    def broadcast(self, tensor: Tensor, source: int = 0) -> None:
        with trace.span("communicate", "broadcast"), torch.no_grad():
            algorithms.tree_broadcast(self, _flat(tensor), source)

    def all_reduce(self, tensor: Tensor, op: Op = "sum", algorithm: str = "ring") -> None:
        with trace.span("communicate", "all-reduce", bytes=tensor.nbytes), torch.no_grad():
            algorithms.ALL_REDUCE[algorithm](self, _flat(tensor), op)

    def reduce_scatter(self, tensor: Tensor, op: Op = "sum") -> Tensor:
        if len(tensor) % self.size:
            raise ValueError(f"{len(tensor)} rows cannot be shared by {self.size} ranks")
        with trace.span("communicate", "reduce-scatter", bytes=tensor.nbytes), torch.no_grad():
            partial = _flat(tensor).clone()  # the caller's stays as it is
            mine = algorithms.ring_reduce_scatter(self, partial, op)
            return mine.clone().view(-1, *tensor.shape[1:])

    def all_gather(self, tensor: Tensor) -> Tensor:
        with trace.span("communicate", "all-gather", bytes=tensor.nbytes), torch.no_grad():
            everything = tensor.new_empty(self.size * len(tensor), *tensor.shape[1:])
            everything[self.rank * len(tensor) : (self.rank + 1) * len(tensor)] = tensor
            algorithms.ring_all_gather(self, everything.view(-1))
            return everything

    def report(self, message: Any) -> None:
        self._report(message)

    def close(self) -> None:
        """Hang up: ranks that wait for this one are told."""
        for end in (*self._senders.values(), *self._receivers.values()):
            end.close()


def _flat(tensor: Tensor) -> Tensor:
    if not tensor.is_contiguous():
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is not contiguous")
    return tensor.detach().view(-1)


@contextmanager
def mesh(size: int) -> Iterator[list[Ends]]:
    """The ends of each of `size` ranks; they are closed and removed with the block."""
    rings: dict[tuple[int, int], Ring] = {}
    try:
        for pair in permutations(range(size), 2):
            rings[pair] = Ring(CAPACITY)
        yield [
            (
                {to: ring.sender for (source, to), ring in rings.items() if source == rank},
                {source: ring.receiver for (source, to), ring in rings.items() if to == rank},
            )
            for rank in range(size)
        ]
    finally:
        for ring in rings.values():
            ring.close()
