"""Uneven work: what a task takes, what one believes that it takes, and the least time for all.

No schedule on `workers` equal workers ends before the longest task is done, or before all of
them, always busy, have done their share: `lower_bound`. (R. Graham, "Bounds on Multiprocessing
Timing Anomalies", SIAM J. Appl. Math. 17(2), 1969.)
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Shape = Literal["equal", "rhythm", "growing", "heavy tail"]

LONG, RHYTHM = 20, 8  # every eighth task is twenty times as long as the others


@dataclass(frozen=True)
class Task:
    """`cost` seconds of work, believed to be `estimate`, there from second `arrival` on.

    The smaller its `priority`, the more urgent it is.
    """

    number: int
    cost: float
    estimate: float
    arrival: float = 0.0
    priority: int = 1

    def __post_init__(self) -> None:
        for name in ("cost", "estimate", "arrival"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:  # false for nan
                raise ValueError(f"{name}={value!r} is not allowed: give seconds, 0 or more")


def make_tasks(
    shape: Shape,
    count: int,
    mean: float,
    *,
    error: float = 0.0,
    urgent: float = 0.0,
    seed: int = 0,
) -> tuple[Task, ...]:
    """`count` tasks of `mean` seconds on average; the same seed gives the same tasks.

    An estimate is wrong by a random factor whose logarithm has the standard deviation `error`:
    with 0.7 about a third are wrong by a factor of two or more. A share `urgent` has priority 0.
    """
    if shape not in get_args(Shape):
        raise ValueError(f"shape={shape!r} is not allowed: give one of {get_args(Shape)}")
    if count < 1 or not 0 < mean < math.inf:
        raise ValueError(f"count={count}, mean={mean}: give at least 1, and more than 0 seconds")
    if not (error >= 0 and 0 <= urgent <= 1):
        raise ValueError(f"error={error}, urgent={urgent}: give 0 or more, and 0 to 1")
    chance = random.Random(seed)
    sizes = [_size(shape, number, chance) for number in range(count)]
    scale = mean * count / sum(sizes)
    return tuple(
        Task(
            number,
            size * scale,
            size * scale * chance.lognormvariate(0, error),
            priority=0 if chance.random() < urgent else 1,
        )
        for number, size in enumerate(sizes)
    )


def _size(shape: Shape, number: int, chance: random.Random) -> float:
    if shape == "rhythm":
        return LONG if number % RHYTHM == 0 else 1
    if shape == "growing":  # the rows of a triangular matrix
        return number + 1
    if shape == "heavy tail":
        return chance.lognormvariate(0, 1.5)
    return 1


def lower_bound(costs: Sequence[float], workers: int) -> float:
    """Seconds that no schedule of these tasks on `workers` workers can beat."""
    if workers < 1:
        raise ValueError(f"workers={workers} is not allowed: give 1 or more")
    return max(max(costs), sum(costs) / workers) if costs else 0.0
