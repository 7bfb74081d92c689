"""How long requests take, over how busy the servers are: theory, virtual clock and real threads.

The theory is of the long run. A second of requests is a short one: the same arrivals and service
times are served on the virtual clock as well, and it is this run that the threads should match.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.performance.queueing.real import serve
from utils.performance.queueing.requests import SECOND, Run, poisson
from utils.performance.queueing.simulate import simulate
from utils.performance.queueing.theory import Steady

SERVICE = 0.005  # seconds on average
VARIABILITY = {"constant": 0.0, "exponential": 1.0, "heavy tail": 3.0}
BUSY = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # where the virtual clock runs
REQUESTS = 5000  # of each such run
LENGTH = 1.0  # seconds of requests for the threads
SHOWN = 0.3  # seconds on the timeline


@dataclass(frozen=True)
class Waiting:
    """Runs with `servers`: `simulated` at each of `BUSY`, `virtual` and `real` with one load."""

    busy: float
    servers: int
    service: str
    simulated: tuple[Run, ...]
    virtual: Run
    real: Run

    def theory(self, busy: float) -> Steady:
        """The long run, with the servers that busy."""
        rate = busy * self.servers / SERVICE
        return Steady(rate, SERVICE, self.servers, VARIABILITY[self.service])


@experiment
def wait(
    busy: Annotated[float, Range(0.1, 0.95, 0.05, label="how busy ρ")] = 0.8,
    servers: Annotated[int, Range(1, 8)] = 1,
    service: Literal["constant", "exponential", "heavy tail"] = "exponential",
    seed: Annotated[int, Range(1, 20)] = 8,
) -> Waiting:
    """Send requests of 5 ms at random, so many a second that the servers are `busy`."""
    spread = VARIABILITY[service]
    simulated = []
    for share in BUSY:
        checkpoint(note="virtual clock")
        load = poisson(share * servers / SERVICE, SERVICE, REQUESTS, variability=spread, seed=seed)
        simulated.append(simulate(load, servers))
    rate = busy * servers / SERVICE
    count = max(20, round(rate * LENGTH))
    load = poisson(rate, SERVICE, count, variability=spread, seed=seed)
    virtual, real = simulate(load, servers), serve(load, servers)
    return Waiting(busy, servers, service, tuple(simulated), virtual, real)


def plot(result: Waiting) -> plots.Picture:
    """Response times over ρ, how many requests there were, and who served or waited when."""
    lanes = ["queue", *(f"server {number + 1}" for number in range(result.servers))]
    height = 0.9 + 0.22 * len(lanes)
    fig, axes = plots.figure(9, 3.6 + height, rows=2, cols=2, height_ratios=[3, height])
    grid = axes[1, 0].get_gridspec()
    for ax in axes[1]:
        ax.remove()
    _draw_responses(axes[0, 0], result)
    _draw_present(axes[0, 1], result)
    ax = plots.style(fig.add_subplot(grid[1, :]))
    title = f"on threads, the first {SHOWN} s"
    plots.timeline(ax, result.real.trace(), lanes=lanes, title=title, until=SHOWN)
    plots.legend(fig, ["compute", "queue"], {"compute": "served", "queue": "somebody waits"})
    return fig


def _draw_responses(ax: plots.Axes, result: Waiting) -> None:
    shares = np.linspace(0.02, 0.97, 96)
    curve = [1e3 * result.theory(share).mean_response for share in shares]
    exact = result.servers == 1 or result.service == "exponential"
    label = "theory: mean" if exact else "approximation: mean"
    ax.plot(shares, curve, "--", color=plots.color("theory"), label=label)
    dots = [1e3 * run.mean_response for run in result.simulated]
    ax.plot(BUSY, dots, "o", color=plots.INK, markersize=4, label="virtual clock: mean")
    run, blue = result.real, plots.color("measured")
    ax.plot(run.utilisation, 1e3 * run.mean_response, "D", color=blue, label="threads: mean")
    for percent, mark in ((50, "v"), (90, "s"), (99, "^")):
        style = {"color": blue, "fillstyle": "none", "linestyle": "none", "label": f"P{percent}"}
        ax.plot(run.utilisation, 1e3 * run.response(percent), mark, **style)
    ax.set_yscale("log")
    ticks = [5, 10, 20, 50, 100, 200, 500, 1000, 2000]
    ax.set_yticks(ticks, ticks)
    ax.minorticks_off()
    ax.set_ylim(min(4.0, 900 * run.response(50)), 1.2 * max(*curve, *dots, 1e3 * run.response(99)))
    ax.set_xlim(0, 1.08)
    ax.set_xlabel("how busy the servers are, ρ", fontsize=9)
    ax.set_title("milliseconds from arrival to answer", loc="left")
    ax.legend(frameon=False, fontsize=8, loc="upper left")


def _draw_present(ax: plots.Axes, result: Waiting) -> None:
    for name, color, run in (
        ("virtual clock", plots.INK, result.virtual),
        ("threads", plots.color("measured"), result.real),
    ):
        moments, counts = zip(*run.present, strict=True)
        seconds = [(moment - moments[0]) / SECOND for moment in moments]
        law = f"{run.mean_number:.2f} = {run.arrival_rate:.0f}/s · {1e3 * run.mean_response:.1f} ms"
        ax.step(seconds, counts, where="post", color=color, linewidth=1, label=f"{name}: {law}")
    ax.set_ylim(0, 1.3 * max(count for _, count in result.virtual.present + result.real.present))
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("seconds", fontsize=9)
    ax.set_title("requests present, and L = λ · W", loc="left")
    ax.legend(frameon=False, fontsize=8, loc="upper left")
