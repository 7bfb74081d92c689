"""The mended variants beside a serial run: what each change is worth, measured in turns.

The last rung is the same program as "own gradients", with as many threads as there are cores and no
more: fewer of ours, each with a smaller team of torch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Annotated

import torch

from utils.core import machine, plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.workers import lanes
from utils.deep_learning.document.program import Report, Settings, run

SERIAL, SERIAL_ALL_CORES = "serial, 1 torch thread", "serial, torch on all cores"


def rungs(settings: Settings) -> dict[str, tuple[str, Settings]]:
    """The name of each rung, its variant and its settings."""
    few = min(settings.workers, machine.cores())
    fitted = replace(settings, workers=few, inside=max(1, machine.cores() // few))
    return {
        SERIAL: ("serial", replace(settings, inside=1)),
        SERIAL_ALL_CORES: ("serial", settings),
        "one lock": ("one lock", settings),
        "bounded window": ("bounded window", settings),
        "own gradients": ("own gradients", settings),
        "own gradients, threads ≤ cores": ("own gradients", fitted),
    }


@dataclass(frozen=True)
class Ladder:
    """`reports[rung]`: one report a round; all rungs took turns in each round."""

    reports: dict[str, tuple[Report, ...]]

    def rate(self, rung: str) -> float:
        """Samples a second, the median of the rounds."""
        return median(report.rate or 0.0 for report in self.reports[rung])

    def speedup(self, rung: str, base: str = SERIAL) -> float:
        """Times as fast as `base`, the median of the rounds' ratios."""
        pairs = zip(self.reports[base], self.reports[rung], strict=True)
        return median(slow.seconds / fast.seconds for slow, fast in pairs)

    def repeatable(self, rung: str) -> bool:
        """Whether every round led to the same parameters, to the bit."""
        first, *others = (report.parameters for report in self.reports[rung])
        return all(torch.equal(first, other) for other in others)


@experiment
def climb(
    workers: Annotated[int, Range(1, 16, label="threads")] = 4,
    batch: Annotated[int, Range(10, 500, 10, label="digits a batch")] = 50,
    samples: Annotated[int, Range(500, 4000, 500, label="digits")] = 500,
    epochs: Annotated[int, Range(1, 5)] = 1,
    rounds: Annotated[int, Range(2, 9)] = 2,
) -> Ladder:
    """Train by every mended variant, `rounds` times in turns."""
    plan = rungs(Settings(samples, batch, epochs, workers))
    reports: dict[str, list[Report]] = {rung: [] for rung in plan}
    run("serial", Settings(100))  # whatever is paid only once, nobody pays
    for number in range(rounds):
        for rung, (variant, settings) in plan.items():
            checkpoint(number, rounds, rung)
            reports[rung].append(run(variant, settings))
    return Ladder({rung: tuple(several) for rung, several in reports.items()})


def plot(result: Ladder) -> plots.Picture:
    """Samples a second of every rung, a dot a round; the line is serial, with one torch thread."""
    fig, ax = plots.figure(9, 3.2)
    names = list(result.reports)
    ax.barh(names, [result.rate(rung) for rung in names], color=plots.color("measured"))
    for row, several in enumerate(result.reports.values()):
        ax.plot([r.rate or 0.0 for r in several], [row] * len(several), "o", color=plots.INK, ms=3)
        speedup = f" {result.speedup(names[row]):.2f} ×"
        ax.text(1, row, speedup, va="center", fontsize=10, transform=ax.get_yaxis_transform())
    ax.axvline(result.rate(names[0]), color=plots.INK, linestyle="--", linewidth=1)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlim(left=0)
    ax.set_xlabel(
        "samples a second (bar: median of the rounds; right: times as fast as the first)",
        fontsize=9,
    )
    return fig


def plot_timelines(result: Ladder, rungs: Sequence[str], steps: int = 4) -> plots.Picture:
    """Who computed and who waited in the first `steps` steps of the first round."""
    shown = [result.reports[rung][0] for rung in rungs]
    rows = [[*lanes(report.settings.workers), "main"] for report in shown]
    heights = [len(names) + 0.8 for names in rows]
    grid = {"height_ratios": heights}
    fig, axes = plots.figure(9, 1 + 0.3 * sum(heights), len(rungs), sharex=True, gridspec_kw=grid)
    until = max(_end_of_step(report, steps) for report in shown)
    for ax, rung, report, names in zip(axes, rungs, shown, rows, strict=True):
        plots.timeline(ax, report.trace, lanes=names, title=rung, until=until)
    axes[0].set_xlabel("")
    what = {"lock": "waits for the lock", "communicate": "adds gradients up and steps"}
    plots.legend(fig, ["compute", *what], what)
    return fig


def _end_of_step(report: Report, steps: int) -> float:
    """Seconds from the start of the trace to the end of the `steps`-th step."""
    names = {f"step {number}" for number in report.order[:steps]}
    return max((s.end - report.trace.start) / 1e9 for s in report.trace.spans if s.name in names)
