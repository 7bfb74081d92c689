"""What a stale gradient does: each gradient is applied so many updates after it was computed.

An asynchronous server has no control over that number; here it is a slider, and everything else
is as in serial training. Momentum is a memory, too, and adds to the effect.

Source: Zhang, Gupta, Lian, Liu, "Staleness-aware Async-SGD for Distributed Deep Learning", IJCAI
2016, who divide the learning rate by the staleness.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Annotated

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.workers import intra_op
from utils.deep_learning import digits, models
from utils.deep_learning.recipe import Recipe, loss_of
from utils.deep_learning.training.flat import Flat


@dataclass(frozen=True)
class Stale:
    """Loss of each batch, by how many updates late its gradient was applied."""

    losses: dict[int, list[float]]


@experiment
def run(
    staleness: Annotated[int, Range(1, 16, label="updates late")] = 4,
    momentum: Annotated[float, Range(0, 0.9, 0.1)] = 0.9,
    divide: bool = False,
    steps: Annotated[int, Range(20, 300, 20)] = 80,
) -> Stale:
    """Fresh and stale gradients; with `divide` the stale one's rate is divided by staleness + 1."""
    losses = {}
    for late in (0, staleness):
        recipe = Recipe(rate=0.05 / (late + 1) if divide else 0.05, momentum=momentum)
        with intra_op(1):
            losses[late] = _train(recipe, late, steps, before=steps * len(losses))
    return Stale(losses)


def _train(recipe: Recipe, late: int, steps: int, before: int) -> list[float]:
    train = digits.load()[0]
    model = models.make("small")
    flat = Flat(model)
    optimizer = recipe.optimizer([flat.parameter])
    under_way = deque([], maxlen=late + 1)  # gradients; the oldest is due
    losses = []
    for step, which in zip(range(steps), recipe.batches(len(train)), strict=False):
        checkpoint(before + step, 2 * steps, "training")
        flat.gradient.zero_()
        loss = loss_of(model, train[which])
        loss.backward()
        losses.append(loss.item())
        under_way.append(flat.gradient.clone())
        if step >= late:
            flat.gradient.copy_(under_way[0])
            optimizer.step()
    return losses


def plot(result: Stale) -> plots.Picture:
    """Both loss curves; a loss above that of guessing says that training is lost."""
    fig, ax = plots.figure(8, 3.2)
    for (late, losses), color in zip(
        result.losses.items(), (plots.BLUE, plots.VERMILION), strict=True
    ):
        label = "fresh" if late == 0 else f"{late} updates late"
        ax.plot([min(loss, 6) for loss in losses], color=color, label=label)
    ax.axhline(2.303, color=plots.GREY, linestyle="--", linewidth=1, label="guessing: ln 10")
    ax.set_ylim(0, 6)
    ax.set_xlabel("step", fontsize=9)
    ax.set_ylabel("loss of a batch (6 and above: at 6)", fontsize=9)
    ax.legend(frameon=False, fontsize=9)
    return fig
