"""Why batches help: the weights are read once for all inputs that go together.

A linear layer does two operations with each weight for each input. Alone, an input waits for every
weight to come from memory; together with others it shares that wait. Operations ÷ bytes is the
*arithmetic intensity*; below the machine's own ratio of rates, memory decides. (S. Williams,
A. Waterman, D. Patterson, "Roofline: An Insightful Visual Performance Model for Multicore
Architectures", CACM 52(4), 2009.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn

from utils.core import bench, machine, plots
from utils.core.experiment import Range, experiment
from utils.core.workers import intra_op
from utils.deep_learning import digits, models
from utils.deep_learning.serving.service import log_scale

SIZES = (1, 2, 4, 8, 16, 32, 64)
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Intensity:
    """Of batches of `SIZES`: seconds an item; and the ceilings of the machine.

    `weights` and `activations` (of one item: what its layers read and write) are numbers of floats;
    `read` is in bytes/s, `matrix` in operations/s.
    """

    weights: int
    activations: int
    read: float
    matrix: float
    seconds: tuple[float, ...]

    def moved(self, size: int) -> float:
        """Bytes an item."""
        return FLOAT * (self.weights / size + self.activations)

    def intensity(self, size: int) -> float:
        """Operations a byte."""
        return 2 * self.weights / self.moved(size)


@experiment
def intensity(
    width: Literal[256, 512, 1024, 2048, 4096] = 2048,
    depth: Annotated[int, Range(1, 6)] = 3,
    threads: Annotated[int, Range(1, machine.cores(), label="torch threads")] = 1,
) -> Intensity:
    """Time a tower of linear layers with growing batches."""
    images, tower = digits.load()[1].images, models.Tower(depth, width).requires_grad_(False)
    layers = [layer for layer in tower if isinstance(layer, nn.Linear)]
    ceilings = machine.ceilings(0.5)
    column = 0 if threads == 1 else -1  # measured with one thread and with all cores
    works = {size: lambda batch=images[:size]: tower(batch) for size in SIZES}
    with intra_op(threads), torch.inference_mode():
        samples = bench.compare(works, repeats=7, warmup=2)
    return Intensity(
        sum(layer.weight.numel() for layer in layers),
        sum(layer.in_features + layer.out_features for layer in layers),
        1e9 * ceilings.read[column],
        1e9 * ceilings.matrix[column],
        tuple(sample.median / size for size, sample in samples.items()),
    )


def plot(result: Intensity) -> plots.Picture:
    """Time an item over the size of the batch, beside what moving its bytes and computing take."""
    fig, ax = plots.figure(8, 3.6)
    moving = [1e3 * result.moved(size) / result.read for size in SIZES]
    computing = [1e3 * 2 * result.weights / result.matrix] * len(SIZES)
    measured = [1e3 * seconds for seconds in result.seconds]
    ax.plot(SIZES, moving, "--", color=plots.PURPLE, label="its bytes, at the rate of memory")
    ax.plot(SIZES, computing, "--", color=plots.GREEN, label="its operations, at the matrix rate")
    ax.plot(SIZES, measured, "o-", color=plots.color("measured"), label="measured")
    for size, height in zip(SIZES, measured, strict=True):
        text = f"{result.intensity(size):.2g} op/B"
        ax.annotate(text, (size, height), (3, 6), textcoords="offset points", fontsize=8)
    ax.margins(0.08, 0.1)
    ax.set_title(f"ms an item, {result.weights * FLOAT / 1e6:.1f} MB of weights", loc="left")
    log_scale(ax, "y")
    ax.set_xscale("log", base=2)
    ax.set_xticks(SIZES, SIZES)
    ax.set_xlabel("items a batch", fontsize=9)
    ax.legend(frameon=False, fontsize=9)
    return fig
