"""The article's data-parallel pseudo-code, executed as it is printed, and mended line by line.

Its gaps are filled in the plainest way: `clone` copies, `split_dataset` cuts the data into as many
parts as there are workers, `train_step` is forward, backward and update, and
`synchronize_gradients` gives all replicas the mean of their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.workers import intra_op
from utils.deep_learning import digits, models
from utils.deep_learning.digits import Digits
from utils.deep_learning.recipe import Recipe, loss_of

RECIPE = Recipe(epochs=2)
APART = 1e-4  # more than rounding explains
COLUMNS = (
    "updates",
    "digits computed\n÷ digits there are",
    "replicas apart",
    "from one model,\nsame batches",
    "held-out digits\nright",
)


@dataclass(frozen=True)
class Version:
    """What is mended. Each line of `VERSIONS` mends one thing more than the line before."""

    name: str
    small_batches: bool = False  # `split_dataset` cuts batches of 64, not one part a worker
    own_part: bool = False  # a worker gets its part of the batch, not all of it
    gradients_first: bool = False  # synchronise, then update


VERSIONS = (
    Version("as printed"),
    Version("+ small batches", True),
    Version("+ a part each", True, True),
    Version("+ average, then update", True, True, True),
)


@dataclass(frozen=True)
class Outcome:
    """What one version did with the digits."""

    updates: int  # of one replica
    computed: float  # digits through forward and backward ÷ digits there were to learn from
    gap: float  # largest difference between two replicas' parameters
    from_serial: float  # largest difference between replica 0 and one model, same batches
    accuracy: float  # of replica 0, held-out digits


@dataclass(frozen=True)
class Ladder:
    workers: int
    outcomes: dict[str, Outcome]


@experiment
def run(
    workers: Annotated[int, Range(2, 8)] = 2,
    count: Annotated[int, Range(256, 4000, label="digits")] = 512,
) -> Ladder:
    """Every version on the same digits for two epochs."""
    train = digits.load()[0][:count]
    outcomes = {}
    with intra_op(1):
        for done, version in enumerate(VERSIONS):
            checkpoint(done, len(VERSIONS), version.name)
            outcomes[version.name] = _try(version, workers, train)
    return Ladder(workers, outcomes)


def _try(version: Version, workers: int, train: Digits) -> Outcome:
    original = models.make("small")
    batches = _split(train, version, workers)
    replicas = [deepcopy(original) for _ in range(workers)]  # clone(model)
    computed = data_parallel_train(replicas, batches, version)
    serial = deepcopy(original)
    data_parallel_train([serial], batches, version)
    return Outcome(
        updates=len(batches),
        computed=computed / (RECIPE.epochs * len(train)),
        gap=max(_distance(replicas[0], other) for other in replicas[1:]),
        from_serial=_distance(replicas[0], serial),
        accuracy=models.accuracy(replicas[0], digits.load()[1]),
    )


def _split(train: Digits, version: Version, workers: int) -> list[Digits]:
    if version.small_batches:
        return [train[which] for which in RECIPE.batches(len(train))]
    parts = torch.arange(len(train)).tensor_split(workers)
    return [train[part] for _ in range(RECIPE.epochs) for part in parts]


def data_parallel_train(
    replicas: Sequence[nn.Module], batches: Sequence[Digits], version: Version
) -> int:
    """The article's three loops; how many digits went through the replicas."""
    optimizers = [RECIPE.optimizer(replica.parameters()) for replica in replicas]
    computed = 0
    for batch in batches:
        checkpoint()
        parts = torch.arange(len(batch)).tensor_split(len(replicas))
        for replica, optimizer, part in zip(replicas, optimizers, parts, strict=True):
            mine = batch[part] if version.own_part else batch
            optimizer.zero_grad()
            share = len(mine) * len(replicas) / len(batch) if version.gradients_first else 1
            (loss_of(replica, mine) * share).backward()
            computed += len(mine)
            if not version.gradients_first:
                optimizer.step()
        synchronize_gradients(replicas)
        if version.gradients_first:
            for optimizer in optimizers:
                optimizer.step()
    return computed


def synchronize_gradients(replicas: Sequence[nn.Module]) -> None:
    """Give all replicas the mean of their gradients."""
    for same in zip(*(replica.parameters() for replica in replicas), strict=True):
        mean = torch.stack([parameter.grad for parameter in same]).mean(0)
        for parameter in same:
            parameter.grad.copy_(mean)


def _distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def plot(result: Ladder) -> plots.Picture:
    """A row a version, a column a question; coloured where something is still wrong."""
    texts, wrong = [], []
    for out in result.outcomes.values():
        texts.append(
            [
                f"{out.updates}",
                f"{out.computed:.0f} ×",
                f"{out.gap:.0e}",
                f"{out.from_serial:.0e}",
                f"{100 * out.accuracy:.0f} %",
            ]
        )
        few = out.updates <= RECIPE.epochs * result.workers
        wrong.append([few, out.computed > 1, out.gap > APART, out.from_serial > APART, False])
    fig, ax = plots.figure(9, 2.9)
    shades = [[0.6 * bad for bad in row] for row in wrong]
    plots.heat_map(ax, shades, texts, list(result.outcomes), COLUMNS, top=1, cmap="Oranges")
    ax.set_title(f"{result.workers} workers, {RECIPE.epochs} epochs", loc="left")
    return fig
