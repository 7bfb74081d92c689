"""Who first? The same requests under every policy, on the virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean
from typing import Annotated, Literal

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.trace import Recorder, Span, Trace
from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.policies import (
    FairShare,
    FirstCome,
    Priority,
    Shortest,
    Static,
)
from utils.llm_concurrency.engine.scheduler import Scheduler
from utils.llm_concurrency.engine.sequence import Sequence
from utils.llm_concurrency.scheduling.load import BUSY, CALM, kind, poisson
from utils.llm_concurrency.scheduling.virtual import Cost, simulate

POLICIES: dict[str, Callable[[int], FirstCome]] = {  # for so many slots
    "static batches": Static,
    "first come": lambda _: FirstCome(),
    "shortest": lambda _: Shortest(),
    "priority": lambda _: Priority(),
    "fair share": lambda _: FairShare(),
}
GROUPS = {
    "short": lambda sequence: kind(sequence.request) == "short",
    "long": lambda sequence: kind(sequence.request) == "long",
    CALM: lambda sequence: sequence.request.user == CALM,
    BUSY: lambda sequence: sequence.request.user == BUSY,
}
ROWS = 24  # requests that are drawn


@dataclass(frozen=True)
class Orders:
    """`served` by policy: all requests, in order of arrival; the trace is the chosen policy's."""

    chosen: str
    served: dict[str, list[Sequence]]
    trace: Trace

    def wait(self, policy: str, group: str) -> float:
        """Mean time to the first token in seconds, of those in a group."""
        chosen = filter(GROUPS[group], self.served[policy])
        return mean((one.times[0] - one.arrived) / 1e9 for one in chosen)

    def makespan(self, policy: str) -> float:
        """Seconds until the last token of all."""
        return max(one.times[-1] for one in self.served[policy]) / 1e9


@experiment
def orders(
    policy: Literal[
        "static batches", "first come", "shortest", "priority", "fair share"
    ] = "first come",
    rate: Annotated[float, Range(0.5, 8, 0.5, label="requests a second")] = 3,
    requests: Annotated[int, Range(16, 200, 4)] = 60,
    slots: Annotated[int, Range(1, 32)] = 8,
    budget: Annotated[int, Range(32, 512, 32, label="tokens a step")] = 128,
    base: Annotated[float, Range(0, 50, 1, label="ms a step")] = 20,
    token: Annotated[float, Range(0.1, 5, 0.1, label="ms a token")] = 1.5,
) -> Orders:
    """Serve the same random requests under every policy."""
    served, traces = {}, {}
    for done, name in enumerate(POLICIES):
        checkpoint(done, len(POLICIES), name)
        recorder = Recorder()
        scheduler = Scheduler(
            BlockPool(1000, 16), POLICIES[name](slots), slots=slots, budget=max(budget, slots)
        )
        cost = Cost(base / 1e3, token / 1e3)
        served[name] = simulate(poisson(requests, rate), scheduler, cost, recorder)
        traces[name] = recorder.trace()
    return Orders(policy, served, traces[policy])


def joined(trace: Trace) -> Trace:
    """Spans of one kind that follow each other without a gap, as one: steps too short to draw."""
    spans: dict[str, list[Span]] = {}
    for span in trace.spans:
        row = spans.setdefault(span.lane, [])
        if row and (row[-1].category, row[-1].end) == (span.category, span.start):
            row[-1] = row[-1]._replace(end=span.end)
        else:
            row.append(span)
    return Trace(span for row in spans.values() for span in row)


def plot(result: Orders) -> plots.Picture:
    """The chosen policy's requests; and how long each group waits under every policy."""
    served = result.served[result.chosen]
    fig, (ax, bars) = plots.figure(10.5, 4.8, cols=2, gridspec_kw={"width_ratios": [3, 2]})
    lanes = [f"request {one.number}" for one in served[:ROWS]]
    plots.timeline(
        ax, joined(result.trace), lanes=lanes, title=f"{result.chosen}: the first {len(lanes)}"
    )
    marks = [f"{kind(one.request)}, {one.request.user}  {one.number:2}" for one in served[:ROWS]]
    ax.set_yticks(range(len(lanes)), marks, fontsize=7)
    ax.set_xlim(0, max(one.times[-1] for one in served[:ROWS]) / 1e9 * 1.02)
    colors = [plots.SKY, plots.BLUE, plots.YELLOW, plots.ORANGE]
    for row, name in enumerate(result.served):
        for line, (group, color) in enumerate(zip(GROUPS, colors, strict=True)):
            label = group if row == 0 else None
            place = row + (line - 1.5) * 0.2
            bars.barh(place, result.wait(name, group), 0.18, color=color, label=label)
    bars.set_yticks(range(len(result.served)), list(result.served))
    bars.invert_yaxis()
    bars.set_xlabel("seconds to the first token, mean", fontsize=9)
    bars.set_title("who waits how long", loc="left")
    bars.legend(fontsize=8, frameon=False)
    plots.legend(fig, ["queue", "prefill", "decode"], {"queue": "waits"})
    return fig
