"""How a model is trained here: which digits in which step, by which rule. The same for everyone.

Every strategy of this chapter follows one recipe, so that two of them can be compared step by step:
the batches are drawn from a seed, and the learning rate falls in a straight line to zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.core.experiment import checkpoint
from utils.core.workers import intra_op
from utils.deep_learning import digits, models
from utils.deep_learning.digits import Digits


@dataclass(frozen=True)
class Recipe:
    """Stochastic gradient descent with momentum over `epochs` of batches of `batch` digits.

    With `shift` each digit is moved by up to so many pixels, another way in each step: more to
    learn from the same digits.
    """

    epochs: int = 10
    batch: int = 64
    rate: float = 0.05
    momentum: float = 0.9
    decay: float = 5e-4
    shift: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1:
            raise ValueError(f"epochs={self.epochs}, batch={self.batch}: give at least 1 of each")
        if not 0 < self.rate < float("inf"):
            raise ValueError(f"rate={self.rate} is not allowed: give a number above 0")
        if not 0 <= self.shift < 28:
            raise ValueError(f"shift={self.shift} is not allowed: give 0 to 27 pixels")

    def steps(self, samples: int) -> int:
        """How many steps an epoch of `samples` digits has; the last may be smaller."""
        return -(-samples // self.batch)

    def batches(self, samples: int) -> Iterator[Tensor]:
        """The indices (≤ batch,) of each step of all epochs, mixed anew for each epoch."""
        source = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epochs):
            yield from torch.randperm(samples, generator=source).split(self.batch)

    def take(self, train: Digits, which: Tensor, step: int) -> Digits:
        """The digits at `which` as they are to be seen in `step`, whoever takes which of them."""
        taken = train[which]
        if not self.shift:
            return taken
        source = torch.Generator().manual_seed(self.seed + 1_000_003 * (step + 1))
        moves = torch.randint(-self.shift, self.shift + 1, (len(train), 2), generator=source)
        return Digits(_moved(taken.images, moves[which], self.shift), taken.labels)

    def rate_at(self, step: int, samples: int) -> float:
        """Learning rate of a step, from `rate` down to 0."""
        return self.rate * (1 - step / (self.epochs * self.steps(samples)))

    def optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.SGD:
        return torch.optim.SGD(
            parameters, lr=self.rate, momentum=self.momentum, weight_decay=self.decay
        )


def _moved(images: Tensor, moves: Tensor, most: int) -> Tensor:
    """Each image (n, 1, h, w) moved by its (down, right) in `moves` (n, 2), |move| ≤ `most`."""
    padded = F.pad(images, (most,) * 4, mode="replicate")[:, 0]
    rows, columns = (
        torch.arange(side) + most - move[:, None]
        for side, move in zip(images.shape[2:], moves.unbind(1), strict=True)
    )
    every = torch.arange(len(images))[:, None, None]
    return padded[every, rows[:, :, None], columns[:, None, :]][:, None]


def loss_of(model: nn.Module, batch: Digits) -> Tensor:
    """Mean cross-entropy of a batch, a scalar."""
    return F.cross_entropy(model(batch.images), batch.labels)


def share_of_loss(model: nn.Module, mine: Digits, whole: int) -> Tensor:
    """What `mine` contributes to the mean over a batch of `whole` digits: shares add up to it.

    With no digits at all it is zero, and so are its gradients.
    """
    return F.cross_entropy(model(mine.images), mine.labels, reduction="sum") / whole


def fit(model: nn.Module, train: Digits, recipe: Recipe | None = None) -> list[float]:
    """Train `model` in place, one step after the other in this thread; the loss of each step."""
    recipe = recipe or Recipe()
    optimizer = recipe.optimizer(model.parameters())
    total = recipe.epochs * recipe.steps(len(train))
    losses = []
    for step, which in enumerate(recipe.batches(len(train))):
        checkpoint(step, total, "training")
        optimizer.param_groups[0]["lr"] = recipe.rate_at(step, len(train))
        optimizer.zero_grad()
        loss = loss_of(model, recipe.take(train, which, step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def trained(name: str = "small") -> nn.Module:
    """A model trained on the 4000 digits, once a process. Nobody may change it: copy it first.

    On one thread: sums in another order would give another model on each machine.
    """
    return _trained(name)  # to `cache`, trained() and trained("small") are two calls


@cache
def _trained(name: str) -> nn.Module:
    model = models.make(name)
    with intra_op(1):
        fit(model, digits.load()[0], Recipe(epochs=5 if name == "deep" else 4, shift=1))
    return model.eval().requires_grad_(False)
