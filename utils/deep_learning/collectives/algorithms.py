"""Collective operations out of messages between two ranks: naive, tree and ring.

Each is what one rank does; all do the same with other numbers. `exchange` sends and receives at the
same time, which is what a ring needs: were everybody to send first and receive then, nobody would
receive once the channels are full.

Sources: Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in
MPICH", 2005; Patarasuk, Yuan, "Bandwidth optimal all-reduce algorithms", 2009.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from utils.deep_learning.collectives.group import Op
    from utils.deep_learning.collectives.mesh import MeshGroup


def naive_all_reduce(group: MeshGroup, flat: Tensor, op: Op) -> None:
    """Everybody sends all to rank 0, which adds up and sends all back: its links are the limit."""
    if group.rank == 0:
        for source in range(1, group.size):
            group.recv(flat, source, op)
        for to in range(1, group.size):
            group.send(flat, to)
    else:
        group.send(flat, 0)
        group.recv(flat, 0)


def tree_all_reduce(group: MeshGroup, flat: Tensor, op: Op) -> None:
    """Add up in pairs, pairs of pairs, …, then hand out the same way: 2 log₂ N steps."""
    distance = 1
    while distance < group.size:
        if group.rank % (2 * distance) == distance:
            group.send(flat, group.rank - distance)
            break
        if group.rank + distance < group.size:
            group.recv(flat, group.rank + distance, op)
        distance *= 2
    tree_broadcast(group, flat, 0)


def tree_broadcast(group: MeshGroup, flat: Tensor, source: int) -> None:
    """Whoever has it hands it on; the number that have it doubles with each step."""
    place = (group.rank - source) % group.size  # as if `source` were rank 0
    distance = 1
    while distance < group.size:
        distance *= 2
    while distance > 1:
        distance //= 2
        if place % (2 * distance) == 0 and place + distance < group.size:
            group.send(flat, (group.rank + distance) % group.size)
        elif place % (2 * distance) == distance:
            group.recv(flat, (group.rank - distance) % group.size)


def ring_reduce_scatter(group: MeshGroup, flat: Tensor, op: Op) -> Tensor:
    """N−1 steps round the ring; then part `rank` is complete, the others hold partial sums.

    Part r starts at rank r+1 and collects a summand at each stop, its owner's last.
    """
    parts = flat.tensor_split(group.size)
    after, before = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    for step in range(1, group.size):
        out, into = parts[(group.rank - step) % group.size], parts[before - step]
        group.exchange(out, after, into, before, op)
    return parts[group.rank]


def ring_all_gather(group: MeshGroup, flat: Tensor) -> None:
    """Part `rank` of `flat` is given; N−1 steps round the ring bring the others."""
    parts = flat.tensor_split(group.size)
    after, before = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    for step in range(group.size - 1):
        out, into = parts[(group.rank - step) % group.size], parts[before - step]
        group.exchange(out, after, into, before)


def ring_all_reduce(group: MeshGroup, flat: Tensor, op: Op) -> None:
    """Every rank sends 2(N−1)/N of the bytes, and all links work at once."""
    ring_reduce_scatter(group, flat, op)
    ring_all_gather(group, flat)


ALL_REDUCE: Mapping[str, Callable[[MeshGroup, Tensor, Op], None]] = {
    "naive": naive_all_reduce,
    "tree": tree_all_reduce,
    "ring": ring_all_reduce,
}
