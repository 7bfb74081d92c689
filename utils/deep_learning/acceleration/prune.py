"""Unstructured pruning: set the smallest weights to zero, wherever they are, and keep them there.

A weight near zero adds little to any sum, so let it add nothing (Han et al., "Learning both Weights
and Connections for Efficient Neural Networks", 2015). A mask says which weights stay; then a little
training lets these make up for the lost ones. Nothing gets smaller or faster by it: a zero is
stored and multiplied like any number, until a format or a kernel makes use of it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.workers import intra_op
from utils.deep_learning import digits, models, recipe
from utils.deep_learning.recipe import Recipe

Scope = Literal["global", "layer"]
RATE = 0.02  # of fine-tuning: below that of training, for the model is nearly right


def weighted(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with a weight matrix or kernel, by name, in the order of their definition."""
    layers = model.named_modules()
    return {name: layer for name, layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)}


def magnitude_masks(
    model: nn.Module, sparsity: float, scope: Scope = "global"
) -> dict[str, Tensor]:
    """A mask for each layer's weight, bool, True where it stays; biases stay anyway.

    Exactly `round(sparsity * n)` are False: of all n weights together (`global`), or of each
    layer's n. ValueError: a sparsity outside 0 to 1.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity={sparsity} is not allowed: give 0 to 1")
    sizes = {name: layer.weight.detach().abs() for name, layer in weighted(model).items()}
    if scope == "layer":
        return {
            name: _largest(size.flatten(), sparsity).view_as(size) for name, size in sizes.items()
        }
    everything = _largest(torch.cat([size.flatten() for size in sizes.values()]), sparsity)
    parts = everything.split([size.numel() for size in sizes.values()])
    return {name: part.view_as(sizes[name]) for name, part in zip(sizes, parts, strict=True)}


def _largest(sizes: Tensor, sparsity: float) -> Tensor:
    """True for all but the smallest (n,): by rank, not by a threshold, as some may be equal."""
    mask = torch.ones_like(sizes, dtype=torch.bool)
    mask[sizes.argsort(stable=True)[: round(sparsity * len(sizes))]] = False
    return mask


class Mask(nn.Module):
    """What a layer sees as its weight: the one that is trained, or 0 where the mask is False.

    Whatever an optimiser does to a masked weight, by its gradient, momentum or decay, the layer
    does not see it.
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.mask, weight, 0)


def hold(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """From now on each layer named in `masks` sees its masked weight only, also in training."""
    for name, mask in masks.items():
        parametrize.register_parametrization(model.get_submodule(name), "weight", Mask(mask))


def settle(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Write the zeros into the weights and take the masks off."""
    for name in masks:
        parametrize.remove_parametrizations(model.get_submodule(name), "weight")


def masked(model: nn.Module, masks: dict[str, Tensor], epochs: int = 0) -> nn.Module:
    """A copy of `model` with zeros where `masks` say so, fine-tuned if `epochs` is not 0."""
    sparse = copy.deepcopy(model).requires_grad_(True)
    hold(sparse, masks)
    tune(sparse, epochs)
    settle(sparse, masks)
    return sparse.eval().requires_grad_(False)


@cache
def pruned(
    model: nn.Module, sparsity: float, scope: Scope = "global", epochs: int = 0
) -> nn.Module:
    """A copy of `model` without its smallest weights, fine-tuned if `epochs` is not 0.

    Made once for the same arguments, so nobody may change `model` or the copy after that.
    """
    return masked(model, magnitude_masks(model, sparsity, scope), epochs)


def tune(model: nn.Module, epochs: int) -> None:
    """Train `model`, in place, a little longer on the digits it was trained on; on one thread."""
    if epochs:
        with intra_op(1):
            recipe.fit(model, digits.load()[0], Recipe(epochs, rate=RATE))


SPARSITIES = (0, 50, 70, 80, 90, 95, 98)  # %
TUNED = (95,)


@dataclass(frozen=True)
class Result:
    """Accuracy, 0 to 1, by sparsity in %: as cut, for both scopes; and fine-tuned, for `scope`."""

    scope: Scope
    sparsity: int
    epochs: int
    cut: dict[Scope, dict[int, float]]
    tuned: dict[int, float]
    left: dict[Scope, dict[str, float]]  # share of each layer's weights that stay at `sparsity`


@experiment
def run(
    sparsity: Annotated[int, Range(0, 99, label="zeros, %")] = 90,
    scope: Scope = "global",
    epochs: Annotated[int, Range(0, 3, label="epochs of fine-tuning")] = 1,
) -> Result:
    """Prune the trained CNN and ask it the held-out digits."""
    model, held_out = recipe.trained(), digits.load()[1]
    grid = sorted({*SPARSITIES, sparsity})
    cut, left = {}, {}
    again = sorted({*TUNED, sparsity}) if epochs else ()

    def right(percent: int, scope: Scope, epochs: int) -> float:
        return models.accuracy(pruned(model, percent / 100, scope, epochs), held_out)

    with intra_op(1):  # so small a network gains nothing by more threads
        for number, each in enumerate(("global", "layer")):
            checkpoint(number, 2, "pruning")
            cut[each] = {s: right(s, each, 0) for s in grid}
            masks = magnitude_masks(model, sparsity / 100, each)
            left[each] = {name: mask.float().mean().item() for name, mask in masks.items()}
        tuned = {s: right(s, scope, epochs) for s in again}
    return Result(scope, sparsity, epochs, cut, tuned, left)


def plot(result: Result) -> plots.Picture:
    """Left, accuracy over sparsity; right, what is left of each layer."""
    fig, (curve, layers) = plots.figure(10, 3.6, cols=2, width_ratios=(3, 2))
    colors = {"global": plots.BLUE, "layer": plots.ORANGE}
    names = {"global": "smallest of all", "layer": "smallest of each layer"}
    for offset, (scope, cut) in enumerate(result.cut.items()):
        scores = [100 * score for score in cut.values()]
        curve.plot(cut.keys(), scores, "o-", color=colors[scope], label=f"{names[scope]}, as cut")
        places = [place + 0.4 * offset - 0.2 for place in range(len(result.left[scope]))]
        shares = [100 * share for share in result.left[scope].values()]
        bars = layers.bar(places, shares, 0.4, color=colors[scope], label=names[scope])
        layers.bar_label(bars, fmt="%.0f", fontsize=8)
    if result.tuned:
        scores = [100 * score for score in result.tuned.values()]
        label = f"{names[result.scope]}, fine-tuned"
        curve.plot(result.tuned.keys(), scores, "s--", color=plots.GREEN, label=label)
    curve.axvline(result.sparsity, color=plots.GREY, linewidth=1)
    curve.set(xlabel="zeros, %", ylabel="right answers, %", ylim=(0, 104))
    curve.legend(frameon=False, fontsize=9, loc="lower left")
    layers.set_xticks(range(len(result.left["layer"])), list(result.left["layer"]))
    layers.set(ylabel="weights left, %", title=f"at {result.sparsity} % zeros")
    layers.margins(y=0.15)
    return fig
