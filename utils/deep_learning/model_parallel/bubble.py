"""How much of a pipeline idles, and what it keeps in memory: four schedules on the virtual clock.

Each rank has 1/p of the layers. A forward of a micro-batch through one rank takes 1 ms here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.deep_learning.model_parallel.schedules import (
    SCHEDULES,
    Action,
    Schedule,
    make_schedule,
)
from utils.deep_learning.model_parallel.simulate import Run, simulate

Name = Literal["GPipe", "1F1B", "interleaved", "zero bubble"]
FORWARD = 1e-3  # s


@dataclass(frozen=True)
class Bubbles:
    """A run of each schedule that p and m allow, and the idle share that theory gives it."""

    chosen: Name
    runs: dict[str, Run]
    theory: dict[str, float]


@experiment
def bubbles(
    schedule: Name = "1F1B",
    p: Annotated[int, Range(1, 16, label="stages p")] = 4,
    m: Annotated[int, Range(1, 64, label="micro-batches m")] = 8,
    backward: Annotated[float, Range(1, 3, 0.25, label="backward ÷ forward")] = 2,
    hop: Annotated[float, Range(0, 1, 0.05, label="message ÷ forward")] = 0,
) -> Bubbles:
    """One training step; a backward is half for the input and half for the weights."""
    runs, theory = {}, {}
    make_schedule(schedule, p, m)  # says what is wrong if these do not go together
    for name in SCHEDULES:
        if name == "interleaved" and m % p:
            continue
        plan = make_schedule(name, p, m)
        runs[name] = simulate(plan, costs(plan, backward), hop * FORWARD)
        theory[name] = expected(plan, backward)
    return Bubbles(schedule, runs, theory)


def costs(schedule: Schedule, backward: float) -> Callable[[Action], float]:
    """Seconds of an action: a stage is the shorter, the more of them a rank has."""
    unit = FORWARD * len(schedule.ranks) / schedule.stages
    whole = backward / 2 if schedule.split else backward
    seconds = {"F": unit, "B": unit * whole, "W": unit * whole}
    return lambda action: seconds[action.kind]


def expected(schedule: Schedule, backward: float = 2) -> float:
    """The bubble in theory, for m ≥ p and messages that take no time: 0 to 1.

    A rank idles for p−1 times a forward and a backward: (p−1)/(m+p−1) of the step (GPipe, section
    2.3). Interleaved, those are 1/v as long (Narayanan, section 2.2.2). In ZB-H1 it idles for p−1
    times F + B − W (Qi, table 1), and longer if B and W are longer than F.
    """
    p, v = len(schedule.ranks), schedule.stages // len(schedule.ranks)
    idle = (p - 1) * (1 if schedule.split else (1 + backward) / v)
    return idle / (idle + schedule.micro * (1 + backward))


def plot(result: Bubbles) -> plots.Picture:
    """The chosen schedule's timeline; beside it the idle share and the memory of all."""
    chosen = result.runs[result.chosen]
    rows = len(chosen.schedule.ranks)
    fig, (ax, idle, held) = plots.figure(
        11, 2.6 + 0.14 * rows, cols=3, gridspec_kw={"width_ratios": [4, 1.3, 1.3]}
    )
    until = 1.02 * max(run.trace.duration for run in result.runs.values())
    title = f"{result.chosen}: {100 * chosen.bubble:.0f} % idle"
    draw(ax, chosen, until, title)
    names = list(result.runs)
    colors = [plots.ORANGE if name == result.chosen else plots.GREY for name in names]
    shares = [100 * run.bubble for run in result.runs.values()]
    idle.bar_label(idle.barh(names, shares, color=colors), fmt="%.0f", fontsize=9, padding=3)
    marks = [100 * share for share in result.theory.values()]
    idle.scatter(marks, names, marker="|", s=160, color=plots.INK, zorder=3)
    idle.set_title("idle, % (| theory)", loc="left")
    most = [max(run.peaks) * rows / run.schedule.stages for run in result.runs.values()]
    held.bar_label(held.barh(names, most, color=colors), fmt="%.3g", fontsize=9, padding=3)
    held.set_title("micro-batches held", loc="left")
    held.set_yticks([])
    for bars in (idle, held):
        bars.invert_yaxis()
        bars.margins(x=0.25)
        bars.grid(visible=False)
    plots.legend(fig, ["forward", "backward", "weights"][: 2 + chosen.schedule.split])
    return fig


def draw(ax: plots.Axes, run: Run, until: float, title: str) -> None:
    """A row a rank, with the number of the micro-batch where there is room for it."""
    ranks = range(len(run.schedule.ranks))
    plots.timeline(ax, run.trace, lanes=[f"rank {r}" for r in ranks], title=title, until=until)
    if min(span.seconds for span in run.trace.spans) < until / 200:
        for bars in ax.collections:
            bars.set_linewidth(0)  # white edges would cover narrow bars
    widest = max(span.seconds for span in run.trace.spans)
    if widest > until / 60 and len(ranks) <= 8:
        for span in run.trace.spans:
            if span.seconds > until / 70:
                middle = ((span.start + span.end) / 2 - run.trace.start) / 1e9
                row, dark = int(span.lane.split()[1]), span.category != "weights"
                ax.text(
                    middle, row, span.args["micro"], ha="center", va="center", fontsize=7,
                    color="white" if dark else plots.INK,
                )  # fmt: skip
