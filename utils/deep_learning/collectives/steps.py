"""Who holds what after each step of an all-reduce, written down while the real one runs.

Rank r starts with the number 2^r in every part. A sum then tells who is in it: 0b0110 is ranks 1
and 2, and a summand that were added twice would show. A *step* is what can go on at the same time
if every rank sends at most one message and receives at most one.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.deep_learning.collectives.algorithms import ALL_REDUCE
from utils.deep_learning.collectives.group import Op
from utils.deep_learning.collectives.launch import launch
from utils.deep_learning.collectives.mesh import MeshGroup

Algorithm = Literal["naive", "tree", "ring"]


class Act(NamedTuple):
    """A rank sent to `to`, received from `source`, or both; then it held `parts`."""

    to: int | None
    source: int | None
    elements: int  # sent
    parts: tuple[int, ...]


class Recorded:
    """A group as an algorithm sees it, that writes down all its acts."""

    def __init__(self, group: MeshGroup, flat: Tensor) -> None:
        self.group, self.rank, self.size, self.flat = group, group.rank, group.size, flat
        self.acts: list[Act] = []

    def send(self, tensor: Tensor, to: int) -> None:
        self.group.send(tensor, to)
        self._write(to, None, len(tensor))

    def recv(self, tensor: Tensor, source: int, op: Op | None = None) -> None:
        self.group.recv(tensor, source, op)
        self._write(None, source, 0)

    def exchange(
        self, out: Tensor, to: int, into: Tensor, source: int, op: Op | None = None
    ) -> None:
        self.group.exchange(out, to, into, source, op)
        self._write(to, source, len(out))

    def _write(self, to: int | None, source: int | None, elements: int) -> None:
        self.acts.append(Act(to, source, elements, tuple(self.flat.tolist())))


def record(group: MeshGroup, algorithm: str) -> list[Act]:
    """One rank's acts in an all-reduce of as many parts as there are ranks."""
    recorded = Recorded(group, torch.full((group.size,), 2**group.rank))
    ALL_REDUCE[algorithm](recorded, recorded.flat, "sum")
    return recorded.acts


def number_steps(ranks: list[list[Act]]) -> list[list[int]]:
    """The step, from 1, of each act of each rank: both ends of a message are at it together."""
    ends = defaultdict(list)  # of the messages from one rank to another, in order
    for rank, acts in enumerate(ranks):
        for place, act in enumerate(acts):
            if act.to is not None:
                ends["sent", rank, act.to].append((rank, place))
            if act.source is not None:
                ends["taken", act.source, rank].append((rank, place))
    pairs = [
        pair
        for (kind, *link), sent in ends.items()
        if kind == "sent"
        for pair in zip(sent, ends["taken", *link], strict=True)
    ]
    steps, before = [[1] * len(acts) for acts in ranks], None
    while steps != before:  # as early as possible: later only when something comes before
        before = [row.copy() for row in steps]
        for (r, i), (s, j) in pairs:
            steps[r][i] = steps[s][j] = max(steps[r][i], steps[s][j])
        for row in steps:
            for place in range(1, len(row)):
                row[place] = max(row[place], row[place - 1] + 1)
    return steps


@dataclass(frozen=True)
class Steps:
    """`states[k][rank][part]` after step k: a bit for each summand. `sent`: elements, by rank."""

    algorithm: str
    states: tuple[tuple[tuple[int, ...], ...], ...]
    sent: tuple[int, ...]


@experiment
def run(algorithm: Algorithm = "ring", ranks: Annotated[int, Range(2, 8)] = 4) -> Steps:
    """Let `ranks` threads all-reduce, and put what they did in order."""
    acts = list(launch(record, ranks, algorithm, on="threads", deadline=10).results)
    states = [[(2**rank,) * ranks for rank in range(ranks)]]
    numbered = number_steps(acts)
    for step in range(1, max(map(max, numbered)) + 1):
        states.append(states[-1].copy())
        for rank in range(ranks):
            if step in numbered[rank]:
                states[-1][rank] = acts[rank][numbered[rank].index(step)].parts
    sent = tuple(sum(act.elements for act in of_rank) for of_rank in acts)
    return Steps(algorithm, tuple(map(tuple, states)), sent)


def plot(result: Steps) -> plots.Picture:
    """A table after each step: rows are ranks, columns parts, numbers how many are summed up."""
    size, columns = len(result.sent), min(len(result.states), 5)
    rows = -(-len(result.states) // columns)
    cell = 0.19 * size + 0.75
    fig, axes = plots.figure(
        max(6.5, columns * cell), 0.5 + rows * cell, rows, columns, squeeze=False
    )
    for step, ax in enumerate(axes.flat):
        if step == len(result.states):
            ax.set_title("")
        if step >= len(result.states):
            ax.axis("off")
            continue
        counts = [[part.bit_count() for part in rank] for rank in result.states[step]]
        texts = [[str(count) for count in row] for row in counts]
        outer = [str(rank) for rank in range(size)]
        plots.heat_map(ax, counts, texts, outer, outer, top=size)
        ax.set_title(f"after step {step}" if step else "at the start", loc="left", fontsize=10)
        if step:
            _outline(ax, result.states[step - 1], result.states[step])
    axes[0, 0].set_ylabel("rank", fontsize=9)
    axes[-1, 0].set_xlabel("part of the tensor", fontsize=9)
    share = max(result.sent) / size
    fig.suptitle(
        f"{result.algorithm}: {len(result.states) - 1} steps; the busiest rank sends "
        f"{share:.3g} × the tensor",
        fontsize=11,
    )
    return fig


def _outline(ax: Axes, before: tuple, after: tuple) -> None:
    """Frame what a message changed."""
    for rank, (old, new) in enumerate(zip(before, after, strict=True)):
        for part, (was, is_) in enumerate(zip(old, new, strict=True)):
            if was != is_:
                ax.add_patch(
                    Rectangle(
                        (part - 0.46, rank - 0.46), 0.92, 0.92,
                        fill=False, edgecolor=plots.color("communicate"), linewidth=1.8,
                    )
                )  # fmt: skip
