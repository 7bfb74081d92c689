"""What is to be trained, said once; and what each rank writes down while it does so."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, islice, takewhile
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from utils.core.trace import now
from utils.deep_learning import digits
from utils.deep_learning.collectives.group import Group
from utils.deep_learning.digits import Digits
from utils.deep_learning.models import MODELS, make
from utils.deep_learning.recipe import Recipe

WARMUP = 5  # steps that pay for first touches and are not timed
REPORT_EVERY = 0.1  # s: what a killed rank did since its last report is not known


@dataclass(frozen=True)
class Job:
    """One training, the same for all ranks. ValueError: a number that is not allowed.

    `steps` ends before the recipe does; `weights` says how much of each batch every worker takes.
    `micro_batches` is for accumulation, `local_steps` for Local SGD. `scratch` is a folder that
    lives as long as the run.
    """

    model: str
    workers: int
    recipe: Recipe
    scratch: Path
    data: Digits | None = None  # the 4000 digits, which each process loads itself
    steps: int | None = None
    weights: Sequence[float] | None = None  # equal parts
    micro_batches: int = 4
    local_steps: int = 8
    checkpoint: Path | None = None
    save_every: int = 50

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"model={self.model!r} is unknown: choose one of {', '.join(MODELS)}")
        for name in ("workers", "micro_batches", "local_steps", "save_every", "steps"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name}={number} is not allowed: give 1 or more")
        batch = min(self.recipe.batch, len(self.digits))
        if self.workers > batch:
            raise ValueError(
                f"workers={self.workers}: a batch has {batch} digits, too few for each to have one"
            )
        weights = self.weights
        if weights is not None and (len(weights) != self.workers or min(weights) <= 0):
            raise ValueError(f"weights={weights}: give {self.workers} numbers above 0")

    def new_model(self, seed: int | None = None) -> nn.Module:
        """The untrained model, the same for all ranks unless `seed` says otherwise."""
        dtype = self.digits.images.dtype
        return make(self.model, self.recipe.seed if seed is None else seed, dtype)

    @property
    def digits(self) -> Digits:
        return digits.load()[0] if self.data is None else self.data

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many digits each step learns from; the last batch of an epoch may be ragged."""
        samples, batch = len(self.digits), self.recipe.batch
        epoch = [min(batch, samples - start) for start in range(0, samples, batch)]
        return tuple(epoch * self.recipe.epochs)[: self.steps]

    @property
    def end(self) -> int:
        """The step after the last."""
        return len(self.sizes)

    @property
    def parts(self) -> Sequence[float]:
        """Each worker's weight."""
        return self.weights or (1.0,) * self.workers

    def batches(self, start: int) -> Iterator[tuple[int, Tensor]]:
        """(step, indices of its digits) from step `start` on."""
        return islice(enumerate(self.recipe.batches(len(self.digits))), start, self.end)

    def share(self, which: Tensor, worker: int) -> Tensor:
        """The part of a batch that is `worker`'s, in proportion to `weights`; perhaps nothing."""
        cuts = shares(len(which), self.parts)
        return which[cuts[worker] : cuts[worker + 1]]


def shares(count: int, weights: Sequence[float]) -> list[int]:
    """Where to cut `count` things: worker w gets those from the w-th place to the next.

    >>> shares(10, [1, 1, 3])
    [0, 2, 4, 10]
    """
    total = sum(weights)
    return [0, *(round(count * part / total) for part in accumulate(weights))]


class Entry(NamedTuple):
    """What one rank did in one step: so many samples, so much of the batch's mean loss."""

    step: int
    samples: int
    loss: float
    end: int  # ns of `now()`


class Log:
    """A rank's entries, reported to whoever launched it while the rank is at work."""

    def __init__(self, group: Group) -> None:
        self.entries: list[Entry] = []
        self._group, self._reported, self._due = group, 0, time.monotonic() + REPORT_EVERY

    def add(self, step: int, samples: int, loss: float) -> None:
        """FloatingPointError: the loss is not finite; the steps before are reported."""
        if not math.isfinite(loss):
            self.report()
            raise FloatingPointError(f"the loss of step {step} is {loss}")
        self.entries.append(Entry(step, samples, loss, now()))
        if time.monotonic() > self._due:
            self.report()

    def report(self) -> None:
        if new := self.entries[self._reported :]:
            self._group.report(new)
        self._reported = len(self.entries)
        self._due = time.monotonic() + REPORT_EVERY


def losses(entries: Sequence[Entry], sizes: Sequence[int]) -> tuple[float, ...]:
    """The mean loss of each batch from the first step that was done, as far as all are whole."""
    start = min((entry.step for entry in entries), default=0)
    seen, total = [0] * len(sizes), [0.0] * len(sizes)
    for entry in entries:
        seen[entry.step] += entry.samples
        total[entry.step] += entry.loss
    whole = takewhile(lambda step: seen[step] == sizes[step], range(start, len(sizes)))
    return tuple(total[step] for step in whole)


def samples_per_second(ranks: Iterable[Sequence[Entry]]) -> float:
    """What all ranks together did once each was warm; nan: one of them did less than two steps."""
    working = [entries for entries in ranks if entries]
    if not working or min(map(len, working)) < 2:
        return math.nan
    start = max(entries[min(WARMUP, len(entries) // 2) - 1].end for entries in working)
    later = [entry for entries in working for entry in entries if entry.end > start]
    return sum(entry.samples for entry in later) / (max(e.end for e in later) - start) * 1e9
