"""One service under one load, on both clocks: with a real model, or with a formula in its place.

`run` starts an engine and sends it real digits; `virtual` answers at once, so every slider can be
tried. The model's weights are random: they take as long to multiply as trained ones.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Annotated, Literal

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from torch import nn

from utils.core import machine, plots
from utils.core.experiment import Range, experiment
from utils.core.trace import Trace
from utils.core.workers import intra_op, lanes
from utils.deep_learning import digits, models
from utils.deep_learning.serving.batching import Batcher
from utils.deep_learning.serving.engine import Engine
from utils.deep_learning.serving.load import arrivals, closed_loop, open_loop
from utils.deep_learning.serving.served import Served
from utils.deep_learning.serving.simulate import simulate

SHOWN = 24  # requests on the timeline
MODELS = {
    "wide": partial(models.Tower, depth=3, width=2048),  # 40 MB of weights
    "tower": models.Tower,  # 2 MB
    "small": models.SmallCNN,
}
Name = Literal["wide", "tower", "small"]
Workers = Annotated[int, Range(1, max(4, machine.cores()))]
Threads = Annotated[int, Range(1, max(4, machine.cores()), label="torch threads each")]
Size = Annotated[int, Range(1, 64, label="max batch")]
Wait = Annotated[float, Range(0, 50, label="max wait [ms]")]
Rate = Annotated[int, Range(50, 4000, 50, label="requests a second")]


@cache
def model(name: Name) -> nn.Module:
    """The served model, one for all workers; nobody may change it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name]().eval().requires_grad_(False)


def measure(
    name: Name, rate: float, seconds: float, *, threads: int = 1, seed: int = 0, **settings: float
) -> Served:
    """Serve `rate` Poisson requests a second, for about so long, by an engine of these settings.

    Each of its workers may use `threads` threads inside torch.
    """
    images = digits.load()[1].images
    with intra_op(threads), Engine(model(name), **settings) as engine:
        closed_loop(engine, images, clients=2 * engine.workers, requests=3)  # first calls are slow
        records = open_loop(engine, images, arrivals(rate, seconds, seed))
    return Served(engine.workers, records)


@experiment
def run(
    model: Name = "wide",
    workers: Workers = 1,
    threads: Threads = 1,
    max_batch: Size = 32,
    max_wait: Wait = 0,
    rate: Rate = 600,
) -> Served:
    """Serve random arrivals for half a second with a real engine."""
    settings = {"workers": workers, "max_batch": max_batch, "max_wait": max_wait / 1e3}
    return measure(model, rate, 0.5, threads=threads, **settings)


@experiment
def virtual(
    workers: Annotated[int, Range(1, 16)] = 1,
    max_batch: Size = 32,
    max_wait: Wait = 0,
    rate: Rate = 600,
    fixed: Annotated[float, Range(0, 10, 0.1, label="ms a batch")] = 2,
    each: Annotated[float, Range(0.05, 5, 0.05, label="+ ms a request in it")] = 0.3,
    line: Literal["one for all", "one a worker"] = "one for all",
    slow: Annotated[float, Range(1, 5, 0.5, label="worker 1 slower ×")] = 1,
) -> Served:
    """Serve the same kind of arrivals for a second of the virtual clock.

    With a line a worker, requests are dealt in turn, as by a load balancer in front of engines.
    """

    def service(worker: int, size: int) -> float:
        return (slow if worker == 0 else 1) * (fixed + each * size) / 1e3

    everybody, planned = range(workers), arrivals(rate, 1.0)
    teams = [everybody] if line == "one for all" else [[worker] for worker in everybody]
    records = []
    for number, team in enumerate(teams):
        policy, share = Batcher(max_batch, max_wait / 1e3), planned[number :: len(teams)]
        records += simulate(policy, share, service, workers=team)
    return Served(workers, tuple(sorted(records)), "virtual")


def plot(result: Served) -> plots.Picture:
    """The first requests and who computed them; how long all of them took."""
    shown = min(SHOWN, len(result.records))
    rows = [*lanes(result.workers), "", *(f"request {number}" for number in range(shown))]
    fig, (ax, curve) = plots.figure(
        9.5, 1.4 + 0.125 * len(rows), cols=2, gridspec_kw={"width_ratios": [3, 2]}
    )
    until = max(record.ended for record in result.records[:shown])
    seen = Trace(span for span in result.trace.spans if span.start < until)
    plots.timeline(ax, seen, lanes=rows, until=(until - seen.start) / 1e9)
    marks = [*range(result.workers), *range(result.workers + 1, len(rows), 6)]
    ax.set_yticks(marks, [rows[row] for row in marks])
    batches = f"{result.mean_batch:.1f} requests a batch"
    ax.set_title(f"{result.clock} clock, {result.offered:.0f}/s offered: {batches}", loc="left")
    latencies = [1e3 * seconds for seconds in sorted(result.latencies)]
    curve.plot([100 * (rank + 1) / len(latencies) for rank in range(len(latencies))], latencies)
    for percent in (50, 90, 95, 99):
        at = percent, 1e3 * result.latency(percent)
        curve.plot(*at, "o", color=plots.ORANGE, markersize=5)
        text = f"P{percent} {at[1]:.3g}"
        curve.annotate(text, at, (-6, 3), textcoords="offset points", ha="right", fontsize=9)
    curve.set_ylim(0)
    curve.set_xlabel("% of the requests", fontsize=9)
    lost = len(result.records) - len(latencies)
    curve.set_title(f"latency [ms]; {result.throughput:.0f}/s answered, {lost} not", loc="left")
    names = {"queue": "a request waits", "load": "stacked", "compute": "computed"}
    plots.legend(fig, list(names), names)
    return fig


def log_scale(ax: Axes, which: Literal["x", "y"]) -> None:
    """1, 2, 5, 10 … instead of powers of ten."""
    ax.set(**{f"{which}scale": "log"})
    axis = getattr(ax, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(LogLocator(subs=()))
