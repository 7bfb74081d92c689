"""Tensor parallelism, counted: who holds what, how many all-reduces, how many bytes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from utils.core import plots, trace
from utils.core.experiment import Range, experiment
from utils.deep_learning.collectives.launch import launch
from utils.deep_learning.collectives.mesh import MeshGroup
from utils.deep_learning.model_parallel.clocks import largest
from utils.deep_learning.model_parallel.tensor import Shard, parallelize, shares

PALETTE = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE)


@dataclass(frozen=True)
class Shards:
    """One forward and backward of `blocks` pairs of layers."""

    ranks: int
    width: int
    parameters: tuple[int, ...]  # of each rank
    all_reduces: tuple[int, int]  # of a rank: forward, backward
    sent: tuple[int, ...]  # bytes, by each rank
    formula: float  # bytes, by each rank
    errors: dict[str, float]  # largest difference from the model in one piece, of any rank


@experiment
def shards(
    ranks: Annotated[int, Range(1, 8)] = 2,
    blocks: Annotated[int, Range(1, 4, label="pairs of layers")] = 2,
    width: Annotated[int, Range(8, 256, 8)] = 64,
    batch: Annotated[int, Range(1, 256)] = 96,
) -> Shards:
    """Each pair is width → 4 width → ReLU → width, float64, on threads, beside the uncut one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for _ in range(blocks):
            layers += [nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)]
        model = nn.Sequential(*layers).double()
        x, y = torch.randn(2, batch, width, dtype=torch.float64)
    outcome = launch(one_rank, ranks, model, x, y, on="threads")
    calls = outcome.trace.select(lane="rank 0", category="communicate").spans
    turn = outcome.trace.select(lane="rank 0", category="backward").start
    backward = sum(call.start > turn for call in calls)
    every = outcome.results
    return Shards(
        ranks,
        width,
        tuple(result["parameters"] for result in every),
        (len(calls) - backward, backward),
        tuple(result["sent"] for result in every),
        2 * blocks * 2 * (ranks - 1) / ranks * x.nbytes,
        {name: max(result["errors"][name] for result in every) for name in every[0]["errors"]},
    )


def one_rank(group: MeshGroup, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Cut a copy of `model`, and compare what it computes for `x` with what `model` does."""
    whole, cut = copy.deepcopy(model), parallelize(copy.deepcopy(model), group)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    wanted = whole(x1)
    ((wanted - y) ** 2).mean().backward()
    sent = group.bytes_sent
    with trace.span("forward"):
        got = cut(x2)
    with trace.span("backward"):
        ((got - y) ** 2).mean().backward()
    sent = group.bytes_sent - sent
    weights = [
        largest(part.weight.grad, part.part_of(all_of_it.weight.grad))
        for part, all_of_it in zip(cut, whole, strict=True)
        if isinstance(part, Shard)
    ]
    errors = {"output": largest(got, wanted), "weight gradients": max(weights)}
    errors["input gradient"] = largest(x2.grad, x1.grad)
    parameters = sum(parameter.numel() for parameter in cut.parameters())
    return {"sent": sent, "errors": errors, "parameters": parameters}


def plot(result: Shards) -> plots.Picture:
    """Who holds which part of a pair's two weights; and the bytes that each rank sends."""
    fig, (first, second, bars) = plots.figure(
        10, 3.2, cols=3, gridspec_kw={"width_ratios": [0.7, 1.6, 1.7]}
    )
    names = [f"rank {rank}" for rank in range(result.ranks)]
    colors = [PALETTE[rank % len(PALETTE)] for rank in range(result.ranks)]
    sizes, start = shares(4 * result.width, result.ranks), 0
    for size, color, name in zip(sizes, colors, names, strict=True):
        first.barh(start, result.width, size, align="edge", color=color, edgecolor="white")
        second.bar(start, result.width, size, align="edge", color=color, edgecolor="white")
        second.text(start + size / 2, result.width / 2, name[5:], ha="center", color="white")
        start += size
    first.invert_yaxis()
    for ax, title in ((first, "first: by outputs"), (second, "second: by inputs")):
        ax.set_title(title, loc="left")
        ax.set_xlabel("inputs", fontsize=9)
        ax.set_ylabel("outputs", fontsize=9)
        ax.grid(visible=False)
    bars.bar(names, [sent / 1e3 for sent in result.sent], color=colors, width=0.6)
    bars.axhline(result.formula / 1e3, color=plots.INK, linestyle="--", linewidth=1)
    forward, backward = result.all_reduces
    bars.set_title(f"sent in {forward} + {backward} all-reduces (- - formula)", loc="left")
    bars.set_ylabel("kB", fontsize=9)
    bars.tick_params(axis="x", labelsize=8, rotation=30 if result.ranks > 4 else 0)
    return fig
