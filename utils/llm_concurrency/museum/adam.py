"""A wrong scale of the gradient that parameters after a step of Adam do not show.

A batch is cut into micro-batches, and their gradients are added up. The bug: nobody divides by
their number, so the gradient is m times too long. Adam divides each gradient by the root of its own
mean square, and the m goes with it: a test that compares *parameters after a step* passes.

Public: https://github.com/karpathy/nanoGPT/issues/168 (gradients too long by the number of
accumulation steps, with the answer that Adam does not mind but clipping does);
https://github.com/pytorch/torchtitan/issues/1733 and /2972 (pipelines).
Source: Kingma and Ba, "Adam" (arXiv:1412.6980, section 2.1: invariant to the gradients' scale).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.workers import intra_op
from utils.llm.decoder import Decoder
from utils.llm_concurrency.museum.visitors import tiny

TOLERANCE = 1e-4  # of a usual test of equality
OPTIMISERS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
}


def gradients(model: Decoder, batch: Tensor, micro_batches: int, bug: bool) -> None:
    """Leave in `.grad` the sum over micro-batches, as a trainer would. `batch`: (texts, tokens)."""
    model.zero_grad()
    for part in batch.chunk(micro_batches):
        scores = model(part[:, :-1]).flatten(0, 1)
        loss = functional.cross_entropy(scores, part[:, 1:].flatten())
        (loss if bug else loss / micro_batches).backward()


@dataclass(frozen=True)
class Comparison:
    """What tests see: relative differences between wrong and right, by what they compare."""

    micro_batches: int
    differences: dict[str, float]


@experiment
def run(
    micro_batches: Annotated[int, Range(1, 8, label="micro-batches")] = 4,
    steps: Annotated[int, Range(1, 10, label="steps of the optimiser")] = 1,
) -> Comparison:
    """Train twins with and without the bug, and compare them in several ways."""
    batch = torch.randint(97, (8 * micro_batches, 12), generator=torch.Generator().manual_seed(1))
    differences = {}
    with intra_op(1):
        right, wrong = (_train(None, batch, micro_batches, bug, 1) for bug in (False, True))
        differences["raw gradients"] = _distance(wrong, right, lambda parameter: parameter.grad)
        for done, name in enumerate(OPTIMISERS):
            checkpoint(done, len(OPTIMISERS), name)
            right, wrong = (_train(name, batch, micro_batches, bug, steps) for bug in (False, True))
            differences[f"parameters after {name}"] = _distance(wrong, right, Tensor.detach)
    return Comparison(micro_batches, differences)


def _train(
    optimiser: str | None, batch: Tensor, micro_batches: int, bug: bool, steps: int
) -> Decoder:
    """A copy of the model after so many steps; without an optimiser, only its gradients are new."""
    model = copy.deepcopy(tiny()).requires_grad_(True)
    walker = OPTIMISERS[optimiser](model.parameters()) if optimiser else None
    for _ in range(steps):
        gradients(model, batch, micro_batches, bug)
        if walker is not None:
            walker.step()
    return model


def _distance(wrong: Decoder, right: Decoder, part: Callable[[Tensor], Tensor]) -> float:
    found, expected = (
        torch.cat([part(parameter).flatten() for parameter in model.parameters()])
        for model in (wrong, right)
    )
    return ((found - expected).norm() / expected.norm()).item()


def plot(result: Comparison) -> plots.Picture:
    """How far the wrong one is from the right one, by what a test compares."""
    fig, ax = plots.figure(9, 2.8)
    names, values = list(result.differences), list(result.differences.values())
    floor = 1e-10
    colors = [plots.BLUE if value > TOLERANCE else plots.GREY for value in values]
    ax.barh(names, [max(value, floor) for value in values], color=colors, left=floor / 10)
    ax.set_xscale("log")
    ax.set_xlim(floor / 10, 100)
    ax.invert_yaxis()
    ax.axvline(TOLERANCE, color=plots.VERMILION, linestyle="--", linewidth=1.2)
    ax.text(TOLERANCE * 1.2, -0.55, "tolerance of the test", color=plots.VERMILION, fontsize=9)
    for row, value in enumerate(values):
        ink = "white" if value > floor else plots.INK
        ax.text(2 * floor, row, f"{value:.1e}", va="center", fontsize=9, color=ink)
    ax.set_xlabel("‖wrong − right‖ ÷ ‖right‖", fontsize=9)
    ax.grid(axis="y", visible=False)
    return fig
