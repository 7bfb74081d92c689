"""Fit a law to measurements: the best parameters, and which others the data do not rule out.

What is fitted is the logarithm of the throughput, so that 5 % too slow weighs the same for one
worker and for eight; the unit of the throughput then only moves the scale.

Not ruled out are all parameters whose squared residuals exceed the least ones by no more than an F
test allows. The values that a number has in that region, be it σ, κ, the optimum or a height of the
curve, are its 95 % interval: the *profile likelihood*. (D. Bates, D. Watts, "Nonlinear Regression
Analysis and Its Applications", 1988.) Unlike "estimate ± 2 standard errors" it stays within
0 ≤ σ ≤ 1 and 0 ≤ κ, and the optimum's may reach to infinity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from scipy.optimize import least_squares
from scipy.special import stdtrit

from utils.performance.laws.formulas import optimum, usl

Law = Literal["amdahl", "usl"]
PARAMETERS = {"amdahl": 2, "usl": 3}  # the scale, σ and, for universal scalability, κ
STEEPEST = 1e3  # the largest κ looked at: a second worker then costs 1000 times what it could add
HIGHEST = np.array([1.0, STEEPEST])  # σ and κ
DIRECTIONS = 120  # in which the edge of the region is looked for
EXACT = 1e-8  # relative: no measurement is better than this, nor is the arithmetic


class Estimate(NamedTuple):
    """The best value, and the lowest and highest that are not ruled out at the 95 % level."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True, eq=False)
class Fit:
    """`law` through measurements: throughput ≈ scale · usl(workers, contention, coherence)."""

    law: Law
    workers: np.ndarray
    throughput: np.ndarray
    scale: float  # throughput of one worker, by the law
    contention: Estimate  # σ
    coherence: Estimate  # κ; 0 for Amdahl's law
    optimum: Estimate  # workers
    squares: float  # sum of the squared residuals of the logarithms
    allowed: float  # the same, for what is just not ruled out
    edge: np.ndarray = field(repr=False)  # (σ, κ): the best, then the edge of the region

    def throughput_at(self, workers: np.ndarray) -> np.ndarray:
        """The fitted curve, in the unit of the measurements."""
        return self.scale * usl(workers, self.contention.value, self.coherence.value)

    @property
    def residuals(self) -> np.ndarray:
        """How far each measurement lies above the curve, as a share of the curve's value."""
        return self.throughput / self.throughput_at(self.workers) - 1

    @property
    def at_bounds(self) -> tuple[str, ...]:
        """Parameters on the edge of what the law allows; what would fit best may lie beyond it."""
        edges = {
            "σ = 0: no contention to be seen": self.contention.value == 0,
            "σ = 1: a second worker gains nothing": self.contention.value == 1,
            "κ = 0: no loss by exchange to be seen": self.law == "usl"
            and self.coherence.value == 0,
        }
        return tuple(text for text, reached in edges.items() if reached)

    @property
    def aicc(self) -> float:
        """Akaike's criterion for few measurements: smaller is better, each parameter has its price.

        `inf` if they are too few to pay for the parameters. (C. Hurvich, C. Tsai, "Regression and
        Time Series Model Selection in Small Samples", Biometrika 76(2), 1989.)
        """
        count, fitted = len(self.workers), PARAMETERS[self.law] + 1  # and the size of the noise
        if count <= fitted + 1:
            return math.inf
        price = 2 * fitted * count / (count - fitted - 1)
        return count * math.log(self.squares / count) + price

    def band(self, workers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest curve that is not ruled out."""
        points = _Points(self.workers, self.throughput)
        inwards = np.linspace(1, 0, 8)[:, None, None]
        region = (self.edge[0] + inwards * (self.edge - self.edge[0])).reshape(-1, 2)
        shares, costs = region[:, :1], region[:, 1:]
        spare = np.maximum(0, self.allowed - points.squares(shares, costs))
        shift = np.exp(np.sqrt(spare / len(self.workers)))[:, None]  # what the scale may be off by
        curves = points.scales(shares, costs)[:, None] * usl(workers, shares, costs)
        return (curves / shift).min(axis=0), (curves * shift).max(axis=0)


def fit(
    law: Law,
    workers: Sequence[float],
    *,
    throughput: Sequence[float] | None = None,
    seconds: Sequence[float] | None = None,
) -> Fit:
    """Fit `law` to what `workers` reached: give `throughput`, or `seconds` for the same work.

    A worker count may occur several times (repeats). ValueError says what cannot be fitted.
    """
    if law not in PARAMETERS:
        raise ValueError(f"law={law!r} is not allowed: give one of {', '.join(PARAMETERS)}")
    if (throughput is None) == (seconds is None):
        raise ValueError("give either throughput or seconds")
    name, values = ("seconds", seconds) if throughput is None else ("throughput", throughput)
    n, measured = np.asarray(workers, float), np.asarray(values, float)
    if n.ndim != 1 or n.shape != measured.shape:
        raise ValueError(
            f"workers {n.shape} and {name} {measured.shape}: give one for each, in a row"
        )
    _refuse("workers", n[~(np.isfinite(n) & (n >= 1))], "finite numbers, 1 or more")
    _refuse(name, measured[~(np.isfinite(measured) & (measured > 0))], "finite numbers above 0")
    needed = PARAMETERS[law]
    if len(set(n)) < needed:
        raise ValueError(f"{len(set(n))} different workers: the law {law!r} needs {needed} or more")
    return _fit(law, n, measured if seconds is None else 1 / measured)


def _refuse(name: str, bad: np.ndarray, wanted: str) -> None:
    if bad.size:
        raise ValueError(f"{name} holds {bad[0]:g}, which is not allowed: give {wanted}")


class _Points:
    """Measurements, and how far from them the law with one or many (σ, κ) is, at its best scale."""

    def __init__(self, workers: np.ndarray, throughput: np.ndarray) -> None:
        self._workers, self._logs = workers, np.log(throughput)

    def residuals(self, shares: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """Of the logarithms. The best scale makes their mean 0."""
        distances = self._logs - np.log(usl(self._workers, shares, costs))
        return distances - distances.mean(axis=-1, keepdims=True)

    def scales(self, shares: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """The best scale of each."""
        distances = self._logs - np.log(usl(self._workers, shares, costs))
        return np.exp(distances.mean(axis=-1))

    def squares(self, shares: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """Sums of squares, never less than the arithmetic can tell from nothing."""
        found = (self.residuals(shares, costs) ** 2).sum(axis=-1)
        return np.maximum(found, len(self._logs) * EXACT**2)


def _fit(law: Law, n: np.ndarray, rate: np.ndarray) -> Fit:
    points, free = _Points(n, rate), PARAMETERS[law] - 1  # the scale needs no search
    search = least_squares(
        lambda x: points.residuals(x[0], x[1] if free == 2 else 0.0),
        (0.1, 0.01)[:free],
        bounds=(0, HIGHEST[:free]),
        x_scale="jac",
        xtol=1e-12,
        ftol=1e-14,
        gtol=1e-14,
    )
    share, cost = (float(value) for value in (*search.x, 0.0)[:2])
    # The search stays inside the bounds: what is as good on one as a hair's breadth off is on it.
    bounds = [(0.0, 0.0), (1.0, 0.0), (0.0, cost), (1.0, cost), (share, 0.0)]
    tie = points.squares(share, cost) * (1 + 1e-6)
    share, cost = next((b for b in bounds if points.squares(*b) <= tie), (share, cost))
    least, spare = float(points.squares(share, cost)), len(n) - PARAMETERS[law]
    allowed = least * (1 + stdtrit(spare, 0.975) ** 2 / spare) if spare else math.inf
    edge = _edge(points, np.array([share, cost]), search.jac, allowed)
    tops = [optimum(*both) for both in edge]
    return Fit(
        law,
        n,
        rate,
        float(points.scales(share, cost)),
        Estimate(share, *_span(edge[:, 0])),
        Estimate(cost, *_span(edge[:, 1])),
        Estimate(tops[0], min(tops), max(tops)),
        least,
        allowed,
        edge,
    )


def _edge(points: _Points, best: np.ndarray, slopes: np.ndarray, allowed: float) -> np.ndarray:
    """`best`, and the last point not ruled out in each direction from it, one a row.

    Where the law is nearly linear the region is an ellipse, often a very thin one, so directions
    are spread evenly over the circle that it is when seen along its axes.
    """
    values, axes = np.linalg.eigh(slopes.T @ slopes)
    axes = axes / np.sqrt(np.maximum(values, 1e-30))
    turn = np.linspace(0, 2 * np.pi, DIRECTIONS, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)])[: len(axes)]
    ways = np.zeros((DIRECTIONS + 4, 2))
    ways[:DIRECTIONS, : len(axes)] = (axes @ circle).T
    ways[DIRECTIONS:] = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]]) * [1, len(axes) == 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.where(ways > 0, HIGHEST - best, -best) / ways  # steps to each bound
    inside, outside = np.zeros(len(ways)), np.nanmin(np.where(ways == 0, np.inf, room), axis=1)
    outside[np.isinf(outside)] = 0  # a way that leads nowhere
    step = outside
    for _ in range(80):  # halve the doubt, beginning at the bound itself
        there = np.clip(best + step[:, None] * ways, 0, HIGHEST)
        good = points.squares(there[:, :1], there[:, 1:]) <= allowed
        inside, outside = np.where(good, step, inside), np.where(good, outside, step)
        step = (inside + outside) / 2
    return np.vstack([best, np.clip(best + inside[:, None] * ways, 0, HIGHEST)])


def _span(values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest of them, where the highest that was looked at stands for infinity."""
    low, high = float(values.min()), float(values.max())
    return low, math.inf if high == STEEPEST else high
