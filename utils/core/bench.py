"""Fair timing: warm up, repeat, take the median, say how far it spreads, compare in turns.

A single timing on a shared machine is an anecdote. Two alternatives timed one after the other
also compare two moments of the machine, so `compare` runs them in turns, A B A B, and forms the
ratio of each pair; the median of those ratios holds even when the machine's speed drifts.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from utils.core.experiment import checkpoint

Work = Callable[[], object]


@dataclass(frozen=True)
class Sample:
    """Repeated measurements of one thing, in seconds or, for a ratio, without a unit."""

    values: tuple[float, ...]
    unit: Literal["s", "×"] = "s"

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """Lowest and highest measurement."""
        return min(self.values), max(self.values)

    def __str__(self) -> str:
        show = seconds if self.unit == "s" else "{:.2f} ×".format
        low, high = map(show, self.spread)
        return f"{show(self.median)} ({low} to {high}, n={len(self.values)})"


def seconds(value: float) -> str:
    """`0.00123` as `1.23 ms`: three digits and the unit that fits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def once(work: Work) -> float:
    """Seconds of one call, with the cyclic garbage collector held off, as `timeit` does."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    finally:
        if collecting:
            gc.enable()


def measure(work: Work, *, repeats: int = 5, warmup: int = 1) -> Sample:
    """Time `work` alone."""
    return next(iter(compare({"": work}, repeats=repeats, warmup=warmup).values()))


def compare(works: Mapping[str, Work], *, repeats: int = 5, warmup: int = 1) -> dict[str, Sample]:
    """Time several alternatives in turns; each round runs every one of them once."""
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats={repeats}, warmup={warmup}: give at least 1 and at least 0")
    if not works:
        raise ValueError("works is empty: give at least one thing to time")
    taken: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(warmup + repeats):
        checkpoint(round_, warmup + repeats, "measuring")
        for name, work in works.items():
            elapsed = once(work)
            if round_ >= warmup:
                taken[name].append(elapsed)
    return {name: Sample(tuple(values)) for name, values in taken.items()}


def ratio(slow: Sample, fast: Sample) -> Sample:
    """How many times longer `slow` takes, pair by pair (both from one `compare`)."""
    return Sample(tuple(a / b for a, b in zip(slow.values, fast.values, strict=True)), "×")
