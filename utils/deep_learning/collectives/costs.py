"""What an all-reduce costs: α for each step and β for each byte, fitted to what was measured.

time = α · steps + β · bytes, along the longest chain of messages that wait for each other. For N
ranks and n bytes:

    naive   2(N−1) steps,    2(N−1) n bytes        all go through rank 0
    tree    2⌈log₂ N⌉ steps, 2⌈log₂ N⌉ n bytes
    ring    2(N−1) steps,    2(N−1)/N n bytes

Source: Hockney, "The communication challenge for MPP", 1994; Thakur et al. (algorithms.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, log2
from typing import Annotated, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter
from scipy.optimize import nnls

from utils.core import bench, plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.deep_learning.collectives.algorithms import ALL_REDUCE
from utils.deep_learning.collectives.launch import On, launch
from utils.deep_learning.collectives.mesh import MeshGroup

SIZES = tuple(8**power * 1024 for power in range(5))  # bytes: 1 KB to 4 MB
ROUNDS = 7
STYLES = {  # colour, marker, width of line: ring and naive may lie on each other
    "naive": (plots.VERMILION, "o", 3.5),
    "tree": (plots.GREEN, "^", 1.2),
    "ring": (plots.BLUE, "s", 1.2),
}


def steps_and_bytes(algorithm: str, ranks: int, size: int) -> tuple[int, float]:
    """Along the longest chain: messages, and the bytes they carry."""
    if algorithm == "tree":
        steps = 2 * ceil(log2(ranks))
        return steps, steps * size
    steps = 2 * (ranks - 1)
    return steps, steps * (size / ranks if algorithm == "ring" else size)


class Model(NamedTuple):
    """`alpha` seconds a step, `beta` seconds a byte."""

    alpha: float
    beta: float

    def seconds(self, algorithm: str, ranks: int, size: int) -> float:
        steps, size_ = steps_and_bytes(algorithm, ranks, size)
        return self.alpha * steps + self.beta * size_


@dataclass(frozen=True)
class Costs:
    """`seconds[algorithm]`: medians for each of `sizes`, in bytes, on `ranks` ranks."""

    ranks: int
    on: On
    sizes: tuple[int, ...]
    seconds: dict[str, tuple[float, ...]]
    model: Model


def fit(ranks: int, sizes: Sequence[int], seconds: dict[str, Sequence[float]]) -> Model:
    """The α and β, not negative, with the least squares of *relative* errors."""
    rows = [
        np.array(steps_and_bytes(name, ranks, size)) / time
        for name, times in seconds.items()
        for size, time in zip(sizes, times, strict=True)
    ]
    matrix = np.array(rows)
    scale = matrix.max(0)  # bytes are a million times as many as steps
    return Model(*(nnls(matrix / scale, np.ones(len(rows)))[0] / scale))


def measure(group: MeshGroup) -> dict[str, list[float]]:
    """Seconds of an all-reduce by each algorithm, for each of `SIZES`, seen by this rank."""
    seconds: dict[str, list[float]] = {name: [] for name in ALL_REDUCE}
    for size in SIZES:
        group.report(size)
        tensor = torch.zeros(size // 4)
        calls = {name: partial(group.all_reduce, tensor, "sum", name) for name in ALL_REDUCE}
        works = {other: work for name in calls for other, work in
                 ((f"before {name}", group.barrier), (name, calls[name]))}  # fmt: skip
        taken = bench.compare(works, repeats=ROUNDS, warmup=2)
        for name in ALL_REDUCE:
            seconds[name].append(taken[name].median)
    return seconds


@experiment
def run(ranks: Annotated[int, Range(2, 8)] = 2, on: On = "processes") -> Costs:
    """Measure all-reduces of all sizes by all algorithms, and fit the model."""
    checkpoint(0, len(SIZES), f"starting {ranks} {on}")
    of_ranks = launch(
        measure,
        ranks,
        on=on,
        hear=lambda rank, size: checkpoint(SIZES.index(size), len(SIZES), f"{size} bytes"),
    ).results
    # It has ended when it has everywhere: the slowest rank counts.
    seconds = {name: tuple(map(max, *(rank[name] for rank in of_ranks))) for name in ALL_REDUCE}
    return Costs(ranks, on, SIZES, seconds, fit(ranks, SIZES, seconds))


def plot(result: Costs) -> plots.Picture:
    """Measured times and the fitted model; what it says for more ranks."""
    fig, (ax, small, large) = plots.figure(11, 3.6, cols=3)
    model = result.model
    for name, (color, marker, width) in STYLES.items():
        ax.plot(result.sizes, result.seconds[name], marker, color=color, markersize=5, label=name)
        line = [model.seconds(name, result.ranks, size) for size in result.sizes]
        ax.plot(result.sizes, line, "-", color=color, linewidth=width)
    ax.set_title(f"{result.ranks} {result.on}, measured (points)", loc="left")
    ax.set_xlabel("bytes of the tensor", fontsize=9)
    ax.set_ylabel("seconds", fontsize=9)
    ax.legend(frameon=False, fontsize=9)
    _predict(small, model, result.sizes[0])
    _predict(large, model, result.sizes[-1])
    for each in (ax, small, large):
        each.set_xscale("log", base=2 if each is not ax else 10)
        each.set_yscale("log")
        each.yaxis.set_minor_formatter(NullFormatter())
    rate = f"{1e-9 / model.beta:.2g} GB/s" if model.beta else "0 s/B"
    fig.suptitle(f"lines: α = {bench.seconds(model.alpha)} a step, 1/β = {rate}", fontsize=11)
    return fig


def _predict(ax: Axes, model: Model, size: int) -> None:
    ranks = [2**power for power in range(1, 11)]
    for name, (color, marker, width) in STYLES.items():
        times = [model.seconds(name, number, size) for number in ranks]
        ax.plot(ranks, times, color=color, marker=marker, markersize=3, linewidth=width)
    kilobytes = f"{size // 1024} KB" if size < 2**20 else f"{size // 2**20} MB"
    ax.set_title(f"the model: {kilobytes}", loc="left")
    ax.set_xlabel("ranks, each with a core of its own", fontsize=9)
