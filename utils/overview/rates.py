"""Latency is not throughput: the same service with one person, a few, and far too many at once.

A closed loop: each of n people sends a request, waits for the answer and sends the next. A request
is a hash, computed outside the GIL. Up to the number of cores more people get more answers a
second; beyond it they share the same cores, and everybody waits longer.

Theory: Little's law, L = λ W (J. Little, "A Proof for the Queuing Formula L = λW", Operations
Research 9(3), 1961). With n requests always under way, the mean latency is n / throughput.
"""

from __future__ import annotations

import hashlib
import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from utils.core import machine, plots
from utils.core.experiment import Range, experiment, gather
from utils.core.trace import Span, Trace, now
from utils.core.workers import crew

MANY = 4 * machine.cores()  # people: clearly more than cores
REQUESTS = 24 * MANY
_DATA = bytes(2**20)
_ROUNDS = 2  # × 1 MiB: a millisecond or two of hashing


@dataclass(frozen=True)
class Load:
    """What `people` at once met: `trace` has a span a request, in the lane of its person."""

    people: int
    trace: Trace

    @property
    def throughput(self) -> float:
        """Requests a second of wall time."""
        return len(self.trace) / self.trace.duration

    @property
    def mean(self) -> float:
        """Mean latency: seconds from sending a request to its answer."""
        return statistics.mean(span.seconds for span in self.trace.spans)

    def latency(self, percent: int) -> float:
        """The same as a percentile."""
        return percentile([span.seconds for span in self.trace.spans], percent)


@dataclass(frozen=True)
class Rates:
    """The chosen number of people among smaller and larger ones; at `cores` the curves turn."""

    chosen: int
    cores: int
    loads: tuple[Load, ...]

    def load(self, people: int) -> Load:
        """The load of that many people; KeyError if it was not measured."""
        return {load.people: load for load in self.loads}[people]

    def expected_throughput(self, people: int) -> float:
        """One person's throughput times the cores that `people` can use."""
        return self.loads[0].throughput * min(people, self.cores)

    def expected_latency(self, people: int) -> float:
        """Mean seconds by Little's law, at the expected throughput."""
        return people / self.expected_throughput(people)


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that `percent` % of `values` do not exceed (interpolated)."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


@experiment
def serve(people: Annotated[int, Range(1, MANY, label="people at once")] = MANY) -> Rates:
    """Serve one person, one a core, twice and four times as many, and the chosen number."""
    cores = machine.cores()
    sizes = sorted({1, cores, 2 * cores, MANY, people})
    loads = tuple(
        Load(size, _serve(size, before=index * REQUESTS, total=len(sizes) * REQUESTS))
        for index, size in enumerate(sizes)
    )
    return Rates(people, cores, loads)


def _serve(people: int, before: int, total: int) -> Trace:
    with crew(people, "person") as pool:
        futures = [pool.submit(_request, number) for number in range(REQUESTS)]
        note = f"{people} people"
        return Trace(gather(futures, timeout=60, note=note, before=before, total=total))


def _request(number: int) -> Span:
    start = now()
    for _ in range(_ROUNDS):
        hashlib.sha256(_DATA).digest()
    return Span(threading.current_thread().name, "compute", f"request {number}", start, now())


def plot(result: Rates) -> plots.Picture:
    """Throughput and latency over the number of people, and the timeline of the chosen one."""
    fig, axes = plots.figure(9, 5.2, rows=2, cols=2)
    grid = axes[1, 0].get_gridspec()
    for ax in axes[1]:
        ax.remove()
    sizes = [load.people for load in result.loads]
    measured, theory = plots.color("measured"), plots.color("theory")
    rate, delay = axes[0]
    rate.plot(sizes, [load.throughput for load in result.loads], "o-", color=measured)
    rate.plot(sizes, [*map(result.expected_throughput, sizes)], "--", color=theory)
    rate.set_title("throughput: requests a second", loc="left")
    mean = [1e3 * load.mean for load in result.loads]
    delay.plot(sizes, mean, "o-", color=measured, label="mean")
    slow = [1e3 * load.latency(90) for load in result.loads]
    delay.plot(sizes, slow, "s:", color=measured, label="P90")
    expected = [1e3 * result.expected_latency(size) for size in sizes]
    delay.plot(sizes, expected, "--", color=theory, label="theory (mean)")
    delay.set_title("latency: milliseconds a request", loc="left")
    delay.legend(frameon=False, fontsize=9)
    for ax in (rate, delay):
        ax.set_xticks(sizes, sizes)
        ax.axvline(result.cores, color=plots.GREY, linewidth=0.8)
        ax.axvline(result.chosen, color=plots.ORANGE, linewidth=6, alpha=0.25)
        ax.set_ylim(bottom=0)
        ax.set_xlabel("people at once (thin line: cores)", fontsize=9)
    ax = plots.style(fig.add_subplot(grid[1, :]))
    title = f"{result.chosen} people: a row a person, a bar a request"
    plots.timeline(ax, result.load(result.chosen).trace, title=title)
    ax.set_yticks([])
    return fig
