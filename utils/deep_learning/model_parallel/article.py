"""The article's `model_parallel_train`, taken at its word: what would it compute?

Its loop lets every worker train on every batch, one after the other; nobody exchanges anything.
What a worker's model is, `split_model` hides. There are two readings, and both are tried.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from utils.core.workers import intra_op
from utils.deep_learning import digits, models
from utils.deep_learning.model_parallel.clocks import largest
from utils.deep_learning.model_parallel.stages import cut


@dataclass(frozen=True)
class Literal:
    """What came of both readings.

    If each worker has all parts: the largest `difference` of a parameter between workers and from
    one serial run, and how many batches were trained on (`trained`) for how many that exist
    (`batches`). If worker k has part k: how its first step ended (`steps`), and how many
    parameters any two workers have in common.
    """

    difference: float
    trained: int
    batches: int
    steps: tuple[str, ...]
    common: int


def model_parallel_train(workers: int = 2, samples: int = 256) -> Literal:
    """Train a tower as the article says, by both readings. ValueError: more workers than layers."""
    model = models.make("tower", dtype=torch.float64)
    parts = [nn.Sequential(*layers) for layers in cut(model, workers)]
    data = digits.load()[0][:samples].to(torch.float64)
    images, labels = data.images.tensor_split(workers), data.labels.tensor_split(workers)
    batches = list(zip(images, labels, strict=True))

    # Reading 1: models = [split_model(model, num_heads) for _ in range(num_workers)]
    clones = [copy.deepcopy(nn.Sequential(*parts)) for _ in range(workers)]
    serial, trained = copy.deepcopy(model), 0
    with intra_op(1):
        for batch in batches:
            train_step(serial, *batch)
            for worker in range(workers):
                train_step(clones[worker], *batch)
                trained += 1
    difference = max(
        largest(a, b)
        for clone in clones
        for a, b in zip(clone.parameters(), serial.parameters(), strict=True)
    )

    # Reading 2: worker k has the k-th part, and is given the batch all the same.
    steps = []
    for part in parts:
        try:
            before = nn.utils.parameters_to_vector(part.parameters())
            train_step(part, *batches[0])
            after = nn.utils.parameters_to_vector(part.parameters())
            steps.append(f"runs, changes {int((before != after).sum())} parameters")
        except (RuntimeError, IndexError) as error:
            steps.append(f"{type(error).__name__}: {error}")
    owners = [{id(parameter) for parameter in part.parameters()} for part in parts]
    common = sum(len(a & b) for a in owners for b in owners if a is not b)
    return Literal(difference, trained, len(batches), tuple(steps), common)


def train_step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One step of gradient descent, all that the article's `train_step` can mean."""
    model.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.05 * parameter.grad
