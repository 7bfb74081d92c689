"""Latency is not throughput: the same requests with one worker, a few, and far too many.

Sixty-four requests wait at the start. A worker takes one, computes a hash (which gives the GIL
up), and takes the next. Beyond the number of cores more workers finish no more requests a second:
they share the same cores, so each request merely takes longer from start to end.
"""

from __future__ import annotations

import hashlib
import statistics
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

from utils.core import machine, plots
from utils.core.experiment import Range, experiment, gather
from utils.core.trace import Span, Trace, now

REQUESTS = 64
_DATA = bytes(2**20)
_ROUNDS = 4  # × 1 MiB: a few milliseconds, much longer than a switch of threads


@dataclass(frozen=True)
class Load:
    """One pool size: `trace` has a span a request, in the lane of the worker that served it."""

    workers: int
    trace: Trace

    @property
    def throughput(self) -> float:
        """Requests a second of wall time."""
        return len(self.trace) / self.trace.duration

    def latency(self, percent: int) -> float:
        """Seconds from the start of a request's service to its end, as a percentile."""
        return percentile([span.seconds for span in self.trace.spans], percent)


@dataclass(frozen=True)
class Rates:
    """The chosen pool size among smaller and larger ones; `cores` is where theory turns."""

    chosen: int
    cores: int
    loads: tuple[Load, ...]

    def load(self, workers: int) -> Load:
        """The load of that pool size; KeyError if it was not measured."""
        return {load.workers: load for load in self.loads}[workers]

    def expected_throughput(self, workers: int) -> float:
        """One worker's throughput times the cores that `workers` can use."""
        return self.loads[0].throughput * min(workers, self.cores)

    def expected_latency(self, workers: int) -> float:
        """One worker's latency, times the workers that share a core."""
        return self.loads[0].latency(50) * max(1.0, workers / self.cores)


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that `percent` % of `values` do not exceed (interpolated)."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


@experiment
def serve(workers: Annotated[int, Range(1, 32, label="workers in the pool")] = 8) -> Rates:
    """Serve the requests with 1, 2, 4, 8, 16 workers, one a core, and the chosen number."""
    sizes = sorted({1, 2, 4, 8, 16, machine.cores(), workers})
    loads = tuple(
        Load(size, _serve(size, before=index * REQUESTS, total=len(sizes) * REQUESTS))
        for index, size in enumerate(sizes)
    )
    return Rates(workers, machine.cores(), loads)


def _serve(workers: int, before: int, total: int) -> Trace:
    with ThreadPoolExecutor(workers, thread_name_prefix="worker") as pool:
        futures = [pool.submit(_request, number) for number in range(REQUESTS)]
        note = f"{workers} workers"
        return Trace(gather(futures, timeout=60, note=note, before=before, total=total))


def _request(number: int) -> Span:
    start = now()
    for _ in range(_ROUNDS):
        hashlib.sha256(_DATA).digest()
    return Span(threading.current_thread().name, "compute", f"request {number}", start, now())


def plot(result: Rates) -> plots.Picture:
    """Throughput and latency over the number of workers, and the chosen pool's timeline."""
    fig, axes = plots.figure(9, 5.2, rows=2, cols=2, height_ratios=[1, 1])
    grid = axes[1, 0].get_gridspec()
    for ax in axes[1]:
        ax.remove()
    sizes = [load.workers for load in result.loads]
    rate, delay = axes[0]
    reached = [load.throughput for load in result.loads]
    rate.plot(sizes, reached, "o-", color=plots.color("measured"))
    rate.plot(sizes, [*map(result.expected_throughput, sizes)], "--", color=plots.color("theory"))
    rate.set_title("throughput: requests a second", loc="left")
    for percent, style in ((50, "o-"), (99, "s:")):
        ms = [1e3 * load.latency(percent) for load in result.loads]
        delay.plot(sizes, ms, style, color=plots.color("measured"), label=f"P{percent}")
    theory = [1e3 * result.expected_latency(size) for size in sizes]
    delay.plot(sizes, theory, "--", color=plots.color("theory"), label="theory")
    delay.set_title("latency: milliseconds a request", loc="left")
    delay.legend(frameon=False, fontsize=9)
    for ax in (rate, delay):
        ax.set_xscale("log", base=2)
        ax.set_xticks(sizes, sizes)
        ax.minorticks_off()
        ax.axvline(result.cores, color=plots.GREY, linewidth=0.8)
        ax.axvline(result.chosen, color=plots.ORANGE, linewidth=6, alpha=0.25)
        ax.set_ylim(bottom=0)
        ax.set_xlabel("workers (grey line: cores)", fontsize=9)
    chosen = result.load(result.chosen)
    ax = plots.style(fig.add_subplot(grid[1, :]))
    plots.timeline(ax, chosen.trace, title=f"{result.chosen} workers: a bar a request")
    ax.set_yticks([])
    return fig
