"""Structured pruning: take whole channels and neurons out, so that all tensors really get smaller.

Removing output c of a layer removes its weights, its bias, *and* what the next layer did with it:
one input column of a linear layer, one input plane of a convolution, or, where a flattened image
goes in, one column for each of its pixels. The small network says exactly what the large one says
with these outputs set to zero. Which ones: those with the smallest norm (Li et al., "Pruning
Filters for Efficient ConvNets", 2017).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor, nn

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.core.workers import intra_op
from utils.deep_learning import digits, models, recipe
from utils.deep_learning.acceleration import measure, prune
from utils.deep_learning.acceleration.measure import Measured


def strongest(layer: nn.Module, share: float) -> Tensor:
    """The outputs of `layer` to keep, at least one: int64, ascending, by the norm of their weights.

    ValueError: a share outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} is not allowed: give 0 to 1")
    norms = layer.weight.detach().flatten(1).norm(dim=1)
    order = norms.argsort(descending=True, stable=True)
    return order[: max(1, round(share * len(norms)))].sort().values


def shrink(model: nn.Module, share: float) -> nn.Module:
    """A smaller copy: of every layer but the last, the `share` of outputs with the largest norms.

    `model` must be a chain in which 0 stays 0 between two layers, as ReLU, pooling and zero padding
    keep it; batch normalisation would not. ValueError: a layer does not fit the one before.
    """
    small = copy.deepcopy(model)
    # All choices first: they are to depend on the large model's weights.
    layers = list(prune.weighted(small).values())
    choices = [strongest(layer, share) for layer in layers[:-1]]
    for (before, after), kept in zip(pairwise(layers), choices, strict=True):
        connect(before, after, kept)
    return small


def connect(before: nn.Module, after: nn.Module, kept: Tensor) -> None:
    """Leave `before` with the outputs `kept` and `after` with the inputs that came from them."""
    outputs, inputs = len(before.weight), after.weight.shape[1]
    if inputs % outputs:
        raise ValueError(f"{after} does not follow {before}: {inputs} inputs, {outputs} outputs")
    pixels = inputs // outputs  # more than 1 where an image is flattened, channel by channel
    columns = (kept[:, None] * pixels + torch.arange(pixels)).flatten()
    before.weight = _parameter(before.weight[kept])
    if before.bias is not None:
        before.bias = _parameter(before.bias[kept])
    after.weight = _parameter(after.weight[:, columns])
    noun = "features" if isinstance(before, nn.Linear) else "channels"
    setattr(before, f"out_{noun}", len(kept))
    setattr(after, "in_features" if isinstance(after, nn.Linear) else "in_channels", len(columns))


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)


@torch.no_grad()
def zeroed(model: nn.Module, share: float) -> nn.Module:
    """A copy as large as `model` in which the outputs that `shrink` removes are always 0.

    Weights *and biases*: a channel without weights still says its bias, everywhere.
    """
    same_size = copy.deepcopy(model)
    for layer in list(prune.weighted(same_size).values())[:-1]:
        gone = torch.ones(len(layer.weight), dtype=torch.bool)
        gone[strongest(layer, share)] = False
        layer.weight[gone] = 0
        if layer.bias is not None:
            layer.bias[gone] = 0
    return same_size


@cache
def thinned(model: nn.Module, share: float, epochs: int = 0) -> nn.Module:
    """`shrink`, then fine-tuning for `epochs` if that is not 0.

    Made once for the same arguments, so nobody may change `model` or the small one after that.
    """
    small = shrink(model, share).requires_grad_(True)
    prune.tune(small, epochs)
    return small.eval().requires_grad_(False)


SHARES = (100, 50, 25, 10)  # % of the channels
TUNED = (25,)  # and the chosen share


@dataclass(frozen=True)
class Result:
    """By % of channels kept: what was measured as cut, and accuracy, 0 to 1, when fine-tuned."""

    kept: int
    batch: int
    cut: dict[int, Measured]
    tuned: dict[int, float]


@experiment
def run(
    kept: Annotated[int, Range(5, 100, 5, label="channels kept, %")] = 50,
    epochs: Annotated[int, Range(0, 3, label="epochs of fine-tuning")] = 1,
    batch: Annotated[int, Range(1, 512)] = 250,
) -> Result:
    """Take channels out of the trained CNN; time, size and right answers of what is left."""
    model, held_out = recipe.trained(), digits.load()[1]
    shares = sorted({*SHARES, kept}, reverse=True)
    variants = {f"{share} %": measure.of(thinned(model, share / 100)) for share in shares}
    cut = dict(zip(shares, measure.measure(variants, batch=batch, repeats=5), strict=True))
    again = sorted({*TUNED, kept} - {100}) if epochs else []
    with intra_op(1):
        tuned = {s: models.accuracy(thinned(model, s / 100, epochs), held_out) for s in again}
    return Result(kept, batch, cut, tuned)


def plot(result: Result) -> plots.Picture:
    """Left, right answers; right, size and time as shares of the whole model's."""
    fig, (answers, costs) = plots.figure(10, 3.6, cols=2)
    right = {share: 100 * each.accuracy for share, each in result.cut.items()}
    answers.plot(right.keys(), right.values(), "o-", color=plots.BLUE, label="as cut")
    if result.tuned:
        right = {share: 100 * accuracy for share, accuracy in result.tuned.items()}
        answers.plot(right.keys(), right.values(), "s--", color=plots.GREEN, label="fine-tuned")
    answers.set(ylabel="right answers, %", ylim=(0, 104))
    whole = result.cut[100]
    for label, color, value in (
        ("multiply-adds", plots.ORANGE, lambda each: each.macs / whole.macs),
        ("bytes", plots.PURPLE, lambda each: each.megabytes / whole.megabytes),
        (
            f"time of {result.batch}",
            plots.BLUE,
            lambda each: each.milliseconds / whole.milliseconds,
        ),
    ):
        shares = [100 * value(each) for each in result.cut.values()]
        costs.plot(result.cut.keys(), shares, "o-", color=color, label=label)
    squares = [share**2 / 100 for share in range(101)]
    costs.plot(range(101), squares, ":", color=plots.color("theory"), label="kept²")
    costs.set(ylabel="% of the whole model's", ylim=(0, None))
    for ax in (answers, costs):
        ax.axvline(result.kept, color=plots.GREY, linewidth=1)
        ax.set(xlabel="channels kept, %", xlim=(0, 103))
        ax.legend(frameon=False, fontsize=9)
    return fig
