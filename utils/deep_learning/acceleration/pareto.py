"""Which variant? None is best: one is faster, one smaller, one right more often.

A variant is *dominated* if another one costs no more and is right at least as often, and is better
in one of the two. What is not dominated is the Pareto frontier: the only ones worth choosing from,
and a choice among them is one between costs and answers, which no measurement makes for you.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.deep_learning import recipe
from utils.deep_learning.acceleration import compressed, engines, floats, gpu
from utils.deep_learning.acceleration.measure import Measured, Variant, measure

SHADES = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE, plots.VERMILION, plots.SKY)


@dataclass(frozen=True)
class Result:
    """All variants, the original first, measured in turns with one thread each."""

    batch: int
    measured: tuple[Measured, ...]


@cache
def variants() -> dict[str, Variant]:
    """The trained small network in every way of this section, made once a process."""
    model = recipe.trained("small")
    made = compressed.variants(model)
    made["float16"] = floats.narrow(model, torch.float16)
    checkpoint(0, note="making the graphs")
    made |= engines.variants(engines.graph_of(model), made["float32"].macs)
    if there := gpu.device():
        made["GPU"] = gpu.on(model, there)
        made["GPU float16"] = gpu.on(model, there, torch.float16)
    return made


@experiment
def run(batch: Annotated[int, Range(1, 256)] = 64) -> Result:
    """Measure every variant for batches of this size."""
    return Result(batch, tuple(measure(variants(), batch=batch, repeats=3)))


def frontier(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Which places are not dominated, cheapest first; of equal ones all."""
    points = list(zip(costs, gains, strict=True))
    kept = [
        place
        for place, (cost, gain) in enumerate(points)
        if not any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
    ]
    return sorted(kept, key=points.__getitem__)


def plot(result: Result) -> plots.Picture:
    """Accuracy by time and by size, with rings around what is not dominated."""
    fig, axes = plots.figure(10, 0.24 * len(result.measured) + 2, cols=2, sharey=True)
    entries = result.measured
    accuracy = [100 * entry.accuracy for entry in entries]
    milliseconds = [entry.milliseconds for entry in entries]
    kilobytes = [1e3 * entry.megabytes for entry in entries]
    labels = f"ms for {result.batch} images", "kB of parameters, as stored"
    for ax, costs, label in zip(axes, (milliseconds, kilobytes), labels, strict=True):
        best = frontier(costs, accuracy)
        ax.plot(
            [costs[i] for i in best], [accuracy[i] for i in best], "o-",
            color=plots.GREY, markersize=12, markerfacecolor="none", zorder=1,
        )  # fmt: skip
        for place, (cost, share) in enumerate(zip(costs, accuracy, strict=True)):
            name = f"{place + 1} {entries[place].name}"
            ax.scatter(cost, share, s=36, color=SHADES[place % len(SHADES)], zorder=2, label=name)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel(label, fontsize=9)
        ax.margins(x=0.1, y=0.35)
    axes[0].set_ylabel("% of held-out digits named rightly", fontsize=9)
    axes[0].set_title("Grey: not dominated by any other", loc="left")
    axes[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9)
    fig.draw_without_rendering()  # now a point's place in the picture is known
    _number(axes[0], list(zip(milliseconds, accuracy, strict=True)))
    _number(axes[1], list(zip(kilobytes, accuracy, strict=True)))
    return fig


def _number(ax: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Write its number beside each point, moved up or down until it meets no point nor number."""
    taken = [ax.transData.transform(point) for point in points]
    height, width = 11 * ax.figure.dpi / 72, 15 * ax.figure.dpi / 72
    steps = sorted(range(-12, 13), key=lambda step: (abs(step), -step))
    for place, point in enumerate(points):
        x, y = taken[place]
        free = (
            step
            for step in steps
            if all(abs(x - a) >= width or abs(y + step * height - b) >= height for a, b in taken)
        )
        shift = next(free, 1)
        taken.append((x, y + shift * height))
        ax.annotate(
            str(place + 1), point, (0, 11 * shift), textcoords="offset points",
            ha="center", va="center", fontsize=8, zorder=3,
            arrowprops={"arrowstyle": "-", "color": plots.PAPER_GREY, "linewidth": 0.6},
        )  # fmt: skip
