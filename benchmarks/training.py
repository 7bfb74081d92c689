"""Training: our ranks beside PyTorch's DDP, the deeper model on all cores, and what they learn.

Rates are counted inside the ranks, after the first steps, in fresh processes and in turns. Accuracy
is the mean of several seeds: of 1000 held-out digits, one run's is uncertain by half a point.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from utils.core.bench import Sample
from utils.deep_learning.recipe import Recipe
from utils.deep_learning.training.train import train

ROUNDS = 5
SEEDS = 3
# Hogwild and Local SGD are other algorithms; the rest computes the same.
LEARNT = ("serial", "data parallel", "parameter server", "hogwild", "local sgd", "zero")


def figures() -> Iterator[str]:
    for model, steps in (("small", 150), ("deep", 16)):
        for strategy in ("data parallel", "overlapped"):
            ours, theirs = _pairs(model, steps, strategy, "ddp")
            yield f"{model}: {strategy} ÷ DDP over gloo, 2 processes: {_ratio(ours, theirs)}"
    for strategy in ("intra-op", "data parallel", "overlapped"):
        two, one = _pairs("deep", 16, strategy, "serial")
        yield f"deep: {strategy} with 2 workers ÷ serial, one thread: {_ratio(two, one)}"
    for strategy in LEARNT:
        runs = [_accuracy(strategy, seed) for seed in range(SEEDS)]
        yield (
            f"{strategy}, 10 epochs: {100 * statistics.mean(runs):.2f} % of the held-out digits "
            f"({', '.join(f'{100 * run:.1f}' for run in runs)})"
        )


def _pairs(model: str, steps: int, *strategies: str) -> list[list[float]]:
    """Samples a second of each strategy, in turns, and each second round the other way round."""
    rates: dict[str, list[float]] = {strategy: [] for strategy in strategies}
    for round_ in range(ROUNDS):
        for strategy in strategies if round_ % 2 == 0 else strategies[::-1]:
            result = train(strategy, model, 2, steps=steps)
            rates[strategy].append(result.samples_per_second)
    return list(rates.values())


def _ratio(one: list[float], other: list[float]) -> str:
    rates = Sample(tuple(a / b for a, b in zip(one, other, strict=True)), "×")
    return f"{rates}; {statistics.median(one):.0f} and {statistics.median(other):.0f} digits/s"


def _accuracy(strategy: str, seed: int) -> float:
    return train(strategy, recipe=Recipe(shift=1, seed=seed), on="threads").accuracy
