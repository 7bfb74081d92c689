"""How few bits will do: the same network with its weights on coarser and coarser grids.

The network is ReLU and maximum pooling between layers, so one channel may be multiplied by a
factor and its readers divided by it: the function stays the same (cf. Nagel et al., "Data-Free
Quantization Through Weight Equalization and Bias Correction", ICCV 2019, who do the reverse). A
grid for a whole tensor must then reach out to that one channel; a grid per channel need not.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.workers import intra_op
from utils.deep_learning import digits, models, recipe
from utils.deep_learning.acceleration.quantise import symmetric
from utils.deep_learning.models import SmallCNN

WIDTHS = (8, 6, 5, 4, 3, 2)
AXES = {"one scale a tensor": None, "one scale a channel": 0}


@dataclass(frozen=True)
class Result:
    """`accuracy` (0 to 1) for each number of bits in `WIDTHS`, by granularity (`AXES`).

    `weights` are those of the second convolution, (20, 10, 5, 5).
    """

    bits: int
    stretched: int
    original: float
    accuracy: dict[str, tuple[float, ...]]
    weights: Tensor


@experiment
def run(
    bits: Annotated[int, Range(2, 8)] = 4,
    stretch: Annotated[int, Range(1, 64, label="stretch one channel")] = 1,
) -> Result:
    """Round all weights of the trained small network to `bits` bits, with one channel stretched."""
    model = stretched(recipe.trained("small"), stretch)
    held_out = digits.load()[1]
    accuracy: dict[str, list[float]] = {name: [] for name in AXES}
    with intra_op(1):  # so small a network gains nothing by more threads
        original = models.accuracy(model, held_out)
        for number, width in enumerate(WIDTHS):
            checkpoint(number, len(WIDTHS), f"{width} bits")
            for name, axis in AXES.items():
                accuracy[name].append(models.accuracy(rounded(model, width, axis), held_out))
    return Result(
        bits=bits,
        stretched=stretch,
        original=original,
        accuracy={name: tuple(values) for name, values in accuracy.items()},
        weights=model.conv2.weight,
    )


@torch.no_grad()
def stretched(model: SmallCNN, factor: float) -> SmallCNN:
    """A copy that computes the same, with one channel of its second convolution `factor` × larger.

    The channel's 16 pixels are what the first linear layer divides by `factor` again.
    """
    model = copy.deepcopy(model)
    model.conv2.weight[0] *= factor
    model.conv2.bias[0] *= factor
    model.fc1.weight[:, :16] /= factor
    return model


@torch.no_grad()
def rounded(model: SmallCNN, bits: int, axis: int | None) -> SmallCNN:
    """A copy with every weight matrix on a grid of `bits` bits; biases stay as they are."""
    model = copy.deepcopy(model)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.copy_(symmetric(weight, bits, axis).round(weight))
    return model


def plot(result: Result) -> plots.Picture:
    """Left: the weights and the one grid they share. Right: accuracy by bits."""
    fig, (left, right) = plots.figure(9.5, 3.4, cols=2)
    weights = result.weights.flatten()
    grid = symmetric(weights, result.bits)
    left.hist(weights.numpy(), bins=80, color=plots.SKY)
    for code in range(grid.low, grid.high + 1) if result.bits < 7 else ():
        left.axvline(code * grid.scale.item(), color=plots.INK, linewidth=0.5)
    left.set_yscale("log")
    left.set_title(
        f"{grid.high - grid.low + 1} values for the 2nd convolution's weights", loc="left"
    )
    left.set_xlabel("weight (lines: the grid of one scale a tensor)", fontsize=9)
    left.set_ylabel("weights", fontsize=9)
    for name, style in zip(result.accuracy, ("s-", "o-"), strict=True):
        shade = plots.VERMILION if style == "s-" else plots.BLUE
        right.plot(WIDTHS, [100 * a for a in result.accuracy[name]], style, color=shade, label=name)
    right.axhline(100 * result.original, color=plots.GREY, linestyle="--", label="float32")
    right.axvline(result.bits, color=plots.PAPER_GREY, linewidth=6, zorder=0)
    right.set_ylim(0, 102)
    right.set_title("Held-out digits named rightly", loc="left")
    right.set_xlabel("bits a weight", fontsize=9)
    right.set_ylabel("%", fontsize=9)
    fig.legend(loc="outside lower right", ncols=3, frameon=False, fontsize=9)
    return fig
