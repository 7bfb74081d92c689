"""A group of threads or processes of one machine: a ring of shared memory from each to each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice, permutations, zip_longest
from time import monotonic
from typing import Any, TypeVar

import torch
from torch import Tensor

from utils.core import trace
from utils.core.experiment import Cancelled
from utils.deep_learning.collectives import algorithms
from utils.deep_learning.collectives.group import OPS, Group, Op, check_choice, check_rows
from utils.threads.channels.ring import Receiver, Ring, Sender
from utils.threads.channels.shared_end import LINE

T = TypeVar("T")
Ends = tuple[dict[int, Sender], dict[int, Receiver]]  # to and from each other rank, by its number
SHARED = 48 * 2**20  # bytes of shared memory for all rings: a container often has only 64 MB
PIECES = 8  # that fit into a ring; large ones, for each costs a message and maybe a wake-up
AHEAD = PIECES - 3  # pieces sent before one is received; one more may be lost where a ring ends
LOOK = 0.25  # s between two looks at whether the run was stopped

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
        self._piece = _capacity(self.size) // PIECES
        self._senders, self._receivers = senders, receivers
        self._deadline, self._report, self._stopped = deadline, report, stopped

    # ── Between two ranks ─────────────────────────────────────────────────────────────────────

    def send(self, tensor: Tensor, to: int) -> None:
        for _ in self._puts(tensor, to):
            pass

    def recv(self, tensor: Tensor, source: int, op: Op | None = None) -> None:
        """With an `op`, what comes is not copied but added to (…) what is there."""
        for _ in self._takes(tensor, source, op):
            pass

    def exchange(
        self, out: Tensor, to: int, into: Tensor, source: int, op: Op | None = None
    ) -> None:
        """Send `out` and receive `into`, in turns, so that neither waits for the other.

        Some pieces are sent ahead. They always fit: who is furthest behind has sent nothing else
        that its neighbour has not taken yet. So that one goes on, and with it everybody.
        """
        puts = self._puts(out, to)
        for _ in islice(puts, AHEAD):
            pass
        for _ in zip_longest(puts, self._takes(into, source, op)):
            pass

    def _puts(self, tensor: Tensor, to: int) -> Iterator[None]:
        """Send `tensor`: at each step a message, of which the first says what the others are."""
        check_choice("to", to, self._senders)
        flat, send = _flat(tensor), self._senders[to].send_bytes
        self._patiently(partial(send, _label(flat)))
        data = memoryview(flat.view(torch.uint8).numpy())
        for start in range(0, len(data), self._piece):
            piece = data[start : start + self._piece]
            self._patiently(partial(send, piece))
            self.bytes_sent += len(piece)
            yield

    def _takes(self, tensor: Tensor, source: int, op: Op | None) -> Iterator[None]:
        """Receive into `tensor` what `_puts` sends, at each step a message."""
        check_choice("source", source, self._receivers)
        flat, receiver = _flat(tensor), self._receivers[source]
        label = self._patiently(receiver.recv_bytes)
        if label != _label(flat):
            raise ValueError(
                f"{self.lane} expects {_label(flat).decode()} from rank {source}, which sends "
                f"{label[:60].decode(errors='replace')}: do all ranks call the same operations "
                "with tensors of the same shape and type?"
            )
        each = self._piece // flat.itemsize
        for start in range(0, len(flat), each):
            with ExitStack() as lent:
                enter = lent.enter_context
                message = self._patiently(lambda s, enter=enter: enter(receiver.receive(s)))
                data = torch.frombuffer(message, dtype=flat.dtype)
                _COMBINE[op](flat[start : start + each], data)
                del data, message  # the sender will write there again
            yield

    def _patiently(self, act: Callable[[float], T]) -> T:
        """`act(timeout)`, with a look now and then whether the run was stopped meanwhile."""
        end = monotonic() + self._deadline
        while True:
            if self._stopped():
                raise Cancelled
            try:
                return act(min(LOOK, self._deadline))
            except TimeoutError:
                if monotonic() >= end:
                    raise

    # ── Between all ───────────────────────────────────────────────────────────────────────────

    def barrier(self) -> None:
        self.all_reduce(torch.zeros(1))

    def broadcast(self, tensor: Tensor, source: int = 0) -> None:
        check_choice("source", source, range(self.size))
        with trace.span("communicate", "broadcast", bytes=tensor.nbytes), torch.no_grad():
            algorithms.tree_broadcast(self, _flat(tensor), source)

    def all_reduce(self, tensor: Tensor, op: Op = "sum", algorithm: str = "ring") -> None:
        check_choice("op", op, OPS)
        check_choice("algorithm", algorithm, algorithms.ALL_REDUCE)
        with trace.span("communicate", "all-reduce", bytes=tensor.nbytes), torch.no_grad():
            algorithms.ALL_REDUCE[algorithm](self, _flat(tensor), op)

    def reduce_scatter(self, tensor: Tensor, op: Op = "sum") -> Tensor:
        check_choice("op", op, OPS)
        check_rows(tensor, self.size)
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


def _label(flat: Tensor) -> bytes:
    return f"{len(flat)} × {flat.dtype}".encode()


def _flat(tensor: Tensor) -> Tensor:
    if not tensor.is_contiguous():
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is not contiguous")
    return tensor.detach().view(-1)


def _capacity(size: int) -> int:
    """Bytes under way from one of `size` ranks to another: at most 4 MB, in whole cache lines."""
    rings = max(1, size * (size - 1))
    line = PIECES * LINE
    return min(2**22, SHARED // rings) // line * line


@contextmanager
def mesh(size: int) -> Iterator[list[Ends]]:
    """The ends of each of `size` ranks; they are closed and removed with the block."""
    rings: dict[tuple[int, int], Ring] = {}
    try:
        for pair in permutations(range(size), 2):
            rings[pair] = Ring(_capacity(size))
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
