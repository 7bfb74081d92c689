"""Low rank: two thin matrices in place of one, by the singular values it can best do without.

W = U S Vᵀ, cut after the r largest singular values, is the nearest matrix of rank r; its distance
in the Frobenius norm is the root of the sum of the squares dropped (Eckart and Young, 1936). Two
layers of (m + n) r weights replace one of m n: that pays below rank m n / (m + n).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from utils.core import bench, plots
from utils.core.bench import Sample
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.workers import intra_op
from utils.deep_learning import digits, models, recipe


def factorise(layer: nn.Linear, rank: int) -> nn.Sequential:
    """Two linear layers, in_features → rank → out_features, that do nearly what `layer` does.

    ValueError: a rank outside 1 to that of a full matrix.
    """
    most = min(layer.weight.shape)
    if not 1 <= rank <= most:
        raise ValueError(f"rank={rank} is not allowed: give 1 to {most}")
    u, s, vt = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    root = s[:rank].sqrt()  # to each side one, so that neither has much larger weights
    pair = _pair(*layer.weight.shape, rank, layer.bias is not None).to(layer.weight.dtype)
    pair.requires_grad_(layer.weight.requires_grad)
    with torch.no_grad():
        pair[0].weight.copy_(root[:, None] * vt[:rank])
        pair[1].weight.copy_(u[:, :rank] * root)
        if layer.bias is not None:
            pair[1].bias.copy_(layer.bias)
    return pair


def _pair(rows: int, columns: int, rank: int, bias: bool) -> nn.Sequential:
    return nn.Sequential(nn.Linear(columns, rank, bias=False), nn.Linear(rank, rows, bias=bias))


def truncation_error(weight: Tensor, rank: int) -> float:
    """The Frobenius distance of `weight` from the nearest matrix of that rank."""
    return torch.linalg.svdvals(weight.detach())[rank:].square().sum().sqrt().item()


def break_even(rows: int, columns: int) -> float:
    """The rank at which the two layers have as many weights as the one."""
    return rows * columns / (rows + columns)


def narrowed(model: models.SmallCNN, rank: int) -> models.SmallCNN:
    """A copy of the CNN whose `fc1`, which has most of its weights, is factorised."""
    thin = copy.deepcopy(model)
    thin.fc1 = factorise(model.fc1, rank)
    return thin


RANKS = (1, 2, 4, 8, 12, 16, 24, 43, 50)  # of the CNN's fc1, a 50 × 320 matrix
PARTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of the width of the layer that is timed


@dataclass(frozen=True)
class Result:
    """Of the CNN: accuracy and relative error by rank. Of a square layer: times by rank."""

    rank: int
    width: int
    accuracy: dict[int, float]
    error: dict[int, float]
    whole: Sample
    halves: dict[int, Sample]


@experiment
def run(
    rank: Annotated[int, Range(1, 50, label="rank of fc1")] = 12,
    width: Annotated[int, Range(256, 2048, 256, label="width of the timed layer")] = 1024,
    batch: Annotated[int, Range(1, 256)] = 64,
) -> Result:
    """Factorise a layer of the trained CNN by ranks; time layers of `width`, one thread."""
    model, held_out = recipe.trained(), digits.load()[1]
    accuracy, error = {}, {}
    with intra_op(1):  # so small a network gains nothing by more threads
        for each in sorted({*RANKS, rank}):
            checkpoint(each, max(RANKS), "accuracy")
            accuracy[each] = models.accuracy(narrowed(model, each), held_out)
            error[each] = truncation_error(model.fc1.weight, each) / model.fc1.weight.norm().item()
    whole, images = nn.Linear(width, width), torch.randn(batch, width)
    ranks = [round(part * width) for part in PARTS]
    pairs = {r: _pair(width, width, r, bias=True) for r in ranks}
    works = {str(r): lambda pair=pair: pair(images) for r, pair in pairs.items()}
    with torch.inference_mode(), intra_op(1):
        times = bench.compare({"whole": lambda: whole(images), **works}, repeats=9, warmup=2)
    halves = {r: times[str(r)] for r in pairs}
    return Result(rank, width, accuracy, error, times["whole"], halves)


def plot(result: Result) -> plots.Picture:
    """Left, what the CNN still knows; right, time of two layers as a share of the one's."""
    fig, (quality, time) = plots.figure(10, 3.6, cols=2)
    for label, values, style in (
        ("right answers", result.accuracy, {"color": plots.BLUE, "marker": "o"}),
        ("error ‖W − Ŵ‖ / ‖W‖", result.error, {"color": plots.VERMILION, "marker": "s"}),
    ):
        quality.plot(values.keys(), [100 * v for v in values.values()], label=label, **style)
    quality.axvline(result.rank, color=plots.GREY, linewidth=1)
    even = break_even(50, 320)
    quality.axvline(even, color=plots.INK, linewidth=1, linestyle="--", label="as many weights")
    quality.set(xlabel="rank of fc1 (50 × 320)", ylabel="%", ylim=(0, 104), title="the CNN")
    parts = [100 * r / result.width for r in result.halves]
    ratios = [bench.ratio(half, result.whole) for half in result.halves.values()]
    low, high = zip(*(ratio.spread for ratio in ratios), strict=True)
    time.fill_between(parts, low, high, color=plots.BLUE, alpha=0.15, linewidth=0)
    time.plot(parts, [r.median for r in ratios], "o-", color=plots.BLUE, label="time, measured")
    time.plot([0, 75], [0, 1.5], ":", color=plots.color("theory"), label="weights and work")
    time.axhline(1, color=plots.INK, linewidth=1, linestyle="--")
    time.set(xlabel="rank, % of the width", ylabel="two layers ÷ one")
    time.set_ylim(0, max(2.0, 1.2 * max(ratio.median for ratio in ratios)))
    time.set_title(f"a layer of {result.width} × {result.width}")
    for ax in (quality, time):
        ax.legend(framealpha=0.9, edgecolor="none", fontsize=9)
    return fig
