"""What an estimate of a task's length is worth, and how wrong it may be.

Longest first needs estimates, and so does least load; a shared queue needs none. Longest first
decides late: a wrong estimate costs the order of the tasks, and the shared queue still evens out
what it did wrong. Least load decides early, and its error stays.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.performance.balance.policies import make_policy
from utils.performance.balance.tasks import Shape, make_tasks
from utils.performance.balance.virtual import simulate

ERRORS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
SEEDS = range(20)
COLORS = {"shared queue": plots.GREY, "least load": plots.VERMILION, "longest first": plots.BLUE}


@dataclass(frozen=True)
class Estimates:
    """Time ÷ lower bound by policy: a row an error, a column a seed."""

    workers: int
    errors: tuple[float, ...]
    excess: Mapping[str, np.ndarray]


@experiment
def estimates(
    shape: Shape = "heavy tail",
    workers: Annotated[int, Range(2, 16)] = 4,
    tasks_each: Annotated[int, Range(2, 32, label="tasks a worker")] = 8,
) -> Estimates:
    """Let three policies do tasks whose estimates are more and more wrong, 20 times each."""
    excess: dict[str, list[list[float]]] = {name: [] for name in COLORS}
    for done, error in enumerate(ERRORS):
        checkpoint(done, len(ERRORS), f"error {error:g}")
        runs = [make_tasks(shape, workers * tasks_each, 0.01, error=error, seed=s) for s in SEEDS]
        for name, rows in excess.items():
            rows.append([simulate(make_policy(name, workers), tasks).excess for tasks in runs])
    return Estimates(workers, ERRORS, {name: np.array(rows) for name, rows in excess.items()})


def plot(result: Estimates) -> plots.Picture:
    """Mean of the seeds; the band holds half of them."""
    fig, ax = plots.figure(7.5, 3.2)
    for name, rows in result.excess.items():
        mean = [statistics.mean(row) for row in rows]
        low, high = np.quantile(rows, (0.25, 0.75), axis=1)
        ax.plot(result.errors, mean, "o-", color=COLORS[name], label=name, markersize=4)
        ax.fill_between(result.errors, low, high, color=COLORS[name], alpha=0.15, linewidth=0)
    ax.axhline(1, color=plots.INK, linestyle="--", linewidth=1)
    ax.set_xlabel("error of the estimates (standard deviation of its logarithm)", fontsize=9)
    ax.set_title(f"time ÷ lower bound, {result.workers} workers, 20 sets of tasks", loc="left")
    ax.legend(frameon=False, fontsize=9)
    return fig
