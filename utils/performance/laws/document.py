"""The article's "Amdahl" formula, as it stands there, beside the laws it is meant to be.

It is called Amdahl's law and used with f = 0.7 "serial", c = 0.2 "communication" and n = 4 threads.
Two things can be read: the formula as printed, and the worked line under it, which is another
formula. Neither gives 1 for one thread, and neither is in Amdahl's paper (see `formulas`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.performance.laws.formulas import amdahl, gustafson, usl

MOST = 32  # threads drawn


def as_printed(threads: float, f: float = 0.7, c: float = 0.2) -> float:
    """1 / (1 - f/n + (c/n) · f / √(1 - f/n)): the formula; `math.inf` threads are allowed.

    ValueError unless 0 <= f < 1 (for f = 1 and n = 1 it has no value), c >= 0 and n >= 1.
    """
    if not (threads >= 1 and 0 <= f < 1 and 0 <= c < math.inf):
        raise ValueError(f"threads={threads}, f={f}, c={c}: give n ≥ 1, 0 ≤ f < 1 and c ≥ 0")
    rest = 1 - f / threads
    return 1 / (rest + c / threads * f / math.sqrt(rest))


def as_worked(f: float = 0.7, c: float = 0.2) -> float:
    """1 / (1 - f + (1 - f) · c / √(1 - f)): the worked line, where no n is left. 0 <= f < 1."""
    if not (0 <= f < 1 and 0 <= c < math.inf):
        raise ValueError(f"f={f}, c={c}: give 0 ≤ f < 1 and c ≥ 0")
    rest = 1 - f
    return 1 / (rest + rest * c / math.sqrt(rest))


@dataclass(frozen=True)
class Compared:
    """Speed-ups on 1 to `MOST` threads, a curve a formula."""

    serial: float
    curves: dict[str, np.ndarray]


@experiment
def compare(
    serial: Annotated[float, Range(0, 0.95, 0.05, label="serial share f")] = 0.7,
    communication: Annotated[float, Range(0, 1, 0.05, label="the article's c")] = 0.2,
    coherence: Annotated[float, Range(0, 0.1, 0.005, label="coherence κ")] = 0.02,
) -> Compared:
    """The article's formula beside the three laws, for the same serial share."""
    threads = np.arange(1, MOST + 1, dtype=float)
    printed = np.array([as_printed(n, serial, communication) for n in threads])
    curves = {
        "the article's": printed,
        "Amdahl": amdahl(threads, serial),
        "Gustafson": gustafson(threads, serial),
        "universal scalability": usl(threads, serial, coherence),
    }
    return Compared(serial, curves)


def plot(result: Compared) -> plots.Picture:
    """All four over the threads, on logarithmic axes."""
    fig, ax = plots.figure(9, 3.6)
    styles = {plots.VERMILION: "-", plots.BLUE: "-", plots.GREEN: "--", plots.PURPLE: "-"}
    for (name, values), (color, line) in zip(result.curves.items(), styles.items(), strict=True):
        width = 3 if color == plots.VERMILION else 1.6
        ax.plot(range(1, MOST + 1), values, line, color=color, linewidth=width, label=name)
    ax.axhline(1, color=plots.INK, linewidth=0.8)
    ticks = [2**k for k in range(6)]
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, ticks)
    ax.set_yscale("log", base=2)
    heights = [1 / 4, 1 / 2, *ticks]
    shown = [h for h in heights if ax.get_ylim()[0] <= h <= ax.get_ylim()[1]]
    ax.set_yticks(shown, [f"{h:g}" for h in shown])
    ax.minorticks_off()
    ax.set_xlabel("threads", fontsize=9)
    ax.set_title(f"times as fast as one thread, serial share {result.serial:g}", loc="left")
    ax.legend(frameon=False, fontsize=9)
    return fig
