"""All policies at the same tasks on the virtual clock, and the timeline of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from matplotlib.axes import Axes

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.workers import lanes
from utils.performance.balance.outcome import Outcome
from utils.performance.balance.policies import POLICIES, make_policy
from utils.performance.balance.tasks import Shape, make_tasks
from utils.performance.balance.virtual import simulate

MEAN = 0.01  # seconds of a task
ROWS = 16  # more workers than that are drawn as one curve
Name = Literal[
    "round robin",
    "least load",
    "shared queue",
    "chunks of 8",
    "guided chunks",
    "longest first",
    "work stealing",
]


@dataclass(frozen=True)
class Comparison:
    """`outcomes` by the name of the policy; `chosen` is the one whose timeline is drawn."""

    shape: Shape
    chosen: str
    outcomes: dict[str, Outcome]


@experiment
def compare(
    shape: Shape = "rhythm",
    policy: Name = "round robin",
    workers: Literal[1, 2, 4, 8, 16, 64, 256, 1024, 4096] = 4,
    tasks_each: Annotated[int, Range(1, 16, label="tasks a worker")] = 16,
    overhead: Annotated[float, Range(0, 500, 10, label="µs a visit to a queue")] = 0,
    error: Annotated[float, Range(0, 2, 0.1, label="error of estimates")] = 0,
) -> Comparison:
    """Let every policy do the same tasks, of 10 ms on average."""
    tasks = make_tasks(shape, workers * tasks_each, MEAN, error=error)
    outcomes = {}
    for done, name in enumerate(POLICIES):
        checkpoint(done, len(POLICIES), name)
        outcomes[name] = simulate(make_policy(name, workers), tasks, overhead / 1e6)
    return Comparison(shape, policy, outcomes)


def plot(result: Comparison) -> plots.Picture:
    """Who did what when under the chosen policy; how far all of them are from the bound."""
    chosen = result.outcomes[result.chosen]
    rows = min(chosen.workers, ROWS)
    fig, (ax, bars) = plots.figure(
        9.5, 2.4 + 0.16 * rows, cols=2, gridspec_kw={"width_ratios": [3, 2]}
    )
    draw(ax, chosen)
    idle, imbalance = f"{100 * chosen.idle:.0f} % idle", f"{chosen.imbalance:.2f} × the mean"
    ax.set_title(f"{result.chosen}: {idle}, busiest {imbalance}", loc="left")
    names = list(result.outcomes)
    values = [outcome.excess for outcome in result.outcomes.values()]
    colors = [plots.ORANGE if name == result.chosen else plots.BLUE for name in names]
    drawn = bars.barh(names, values, color=colors)
    bars.bar_label(drawn, fmt="%.2f", fontsize=9, padding=3)
    bars.axvline(1, color=plots.INK, linewidth=0.8)
    bars.invert_yaxis()
    bars.margins(x=0.16)
    bars.grid(visible=False)
    bars.set_title("time ÷ lower bound", loc="left")
    plots.legend(fig, ["compute", "queue"], {"compute": "a task", "queue": "waits at the queue"})
    return fig


def draw(ax: Axes, outcome: Outcome, until: float | None = None) -> None:
    """A row a worker; or, of many workers, how many are busy. The dashed line is the bound."""
    until = until or max(outcome.makespan, outcome.bound) * 1.02
    if outcome.workers <= ROWS:
        plots.timeline(ax, outcome.trace, lanes=lanes(outcome.workers), until=until)
    else:
        times, busy = busy_workers(outcome)
        ax.fill_between(times, busy, step="post", color=plots.color("compute"))
        ax.set_xlim(0, until)
        ax.set_ylim(0, outcome.workers)
        ax.set_ylabel("busy workers", fontsize=9)
        ax.set_xlabel("seconds", fontsize=9)
    ax.axvline(outcome.bound, color=plots.INK, linestyle="--", linewidth=1)


def busy_workers(outcome: Outcome) -> tuple[Sequence[float], Sequence[int]]:
    """Seconds at which the number of busy workers changes, and that number from then on."""
    spans = [span for span in outcome.trace.spans if span.category == "compute"]
    ends = np.array([span.end for span in spans] + [span.start for span in spans])
    steps = np.repeat([-1, 1], len(spans))  # at the same instant ends come first
    order = np.argsort(ends, kind="stable")
    return (ends[order] - outcome.began) / 1e9, np.cumsum(steps[order])
