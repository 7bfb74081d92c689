"""A systolic array, the heart of a TPU: a matrix product without fetching anything twice.

One multiplier a weight, K rows and N columns of them, and the weights stay. Activations enter at
the left, row k delayed by k cycles, and move right; partial sums move down and leave below as
results. Each number that has come in is used N times without memory being asked again. There is
no thread and no instruction here: a clock, and neighbours.
Source: Jouppi et al., "In-Datacenter Performance Analysis of a Tensor Processing Unit", ISCA 2017
(256 × 256 multipliers of 8 bits, sums in 32); Kung, "Why Systolic Architectures?", 1982.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment

SHOWN = 4  # moments in the picture


@dataclass(frozen=True)
class Result:
    """`product` (M, N) int64 and `busy` (cycles, K, N): which multipliers had something to do."""

    product: np.ndarray
    busy: np.ndarray

    @property
    def cycles(self) -> int:
        return len(self.busy)

    @property
    def utilisation(self) -> float:
        """Busy share of all multipliers over all cycles."""
        return float(self.busy.mean())


def multiply(left: np.ndarray, weights: np.ndarray) -> Result:
    """`left` (M, K) @ `weights` (K, N), integers, cycle by cycle: M + K + N − 2 of them."""
    (count, depth), width = left.shape, weights.shape[1]
    values, sums = np.zeros((2, depth, width), np.int64)  # what each multiplier holds
    valid = np.zeros((depth, width), bool)
    product, busy = np.zeros((count, width), np.int64), []
    row, column = np.arange(depth), np.arange(width)
    for cycle in range(count + depth + width - 2):
        entering = cycle - row  # which activation row reaches each array row now
        here = (entering >= 0) & (entering < count)
        values = np.column_stack([np.where(here, left[entering % count, row], 0), values[:, :-1]])
        valid = np.column_stack([here, valid[:, :-1]])
        sums = np.vstack([np.zeros((1, width), np.int64), sums[:-1]]) + values * weights
        leaving = cycle - (depth - 1) - column  # which result row each column gives out now
        done = (leaving >= 0) & (leaving < count)
        product[leaving[done], column[done]] = sums[-1, done]
        busy.append(valid)
    return Result(product, np.array(busy))


@experiment
def run(
    rows: Annotated[int, Range(1, 128, label="rows of activations (the batch)")] = 8,
    inputs: Annotated[int, Range(2, 64, label="array rows (inputs)")] = 16,
    outputs: Annotated[int, Range(2, 64, label="array columns (outputs)")] = 16,
) -> Result:
    """Multiply random 8-bit matrices on an array of inputs × outputs multipliers."""
    checkpoint()
    source = np.random.default_rng(0)
    return multiply(
        source.integers(-128, 128, (rows, inputs)), source.integers(-128, 128, (inputs, outputs))
    )


def plot(result: Result) -> plots.Picture:
    """Above: multipliers at some moments, blue where busy. Below: how many, over time."""
    fig, axes = plots.figure(9, 2.4, cols=SHOWN + 1, width_ratios=[1] * SHOWN + [2.2])
    moments = np.linspace(0, result.cycles - 1, SHOWN + 2)[1:-1].round().astype(int)
    for ax, cycle in zip(axes, moments, strict=False):
        shades = np.where(result.busy[cycle][..., None], (0, 0.447, 0.698), (0.95, 0.95, 0.95))
        ax.imshow(shades)
        ax.set_title(f"cycle {cycle + 1}", loc="left")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.grid(visible=False)
    axes[0].set_ylabel("activations enter here →", fontsize=9)
    axes[0].set_xlabel("↓ sums leave below", fontsize=9)
    use = 100 * result.busy.mean((1, 2))
    axes[-1].fill_between(np.arange(1, result.cycles + 1), use, step="mid", color=plots.SKY)
    axes[-1].set_ylim(0, 105)
    axes[-1].set_xlabel("cycle", fontsize=9)
    axes[-1].set_ylabel("% busy", fontsize=9)
    title = f"{result.cycles} cycles, {100 * result.utilisation:.0f} % busy"
    axes[-1].set_title(title, loc="left")
    return fig
