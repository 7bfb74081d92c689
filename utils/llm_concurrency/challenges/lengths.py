"""Sequences are not equally long: who waits for whom, and who computes for nobody.

A static batch is as long as its longest prompt and its longest answer: the others' places are
computed, too, and thrown away. Three remedies by arithmetic: batches of neighbours in length; a
place that is refilled when it is free (continuous batching; Yu et al., "Orca", OSDI 2022); and for
replicas, a split by work and not by count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import Annotated

import numpy as np

from utils.core import plots
from utils.core.experiment import Range, experiment


def static_steps(answers: Sequence[int], batch: int) -> int:
    """Steps until all are answered, `batch` at a time, each batch as long as its longest."""
    return sum(max(answers[start : start + batch]) for start in range(0, len(answers), batch))


def continuous_steps(answers: Sequence[int], batch: int) -> int:
    """Steps if a place is taken by the next as soon as it is free."""
    places = [0] * batch  # when each is free
    for length in answers:
        heapreplace(places, places[0] + length)
    return max(places)


def replica_loads(answers: Sequence[int], replicas: int, by_work: bool) -> list[int]:
    """Tokens for each replica: in turns, or the longest first to whoever has least."""
    if not by_work:
        return [sum(answers[start::replicas]) for start in range(replicas)]
    loads = [0] * replicas
    heapify(loads)
    for length in sorted(answers, reverse=True):
        heapreplace(loads, loads[0] + length)
    return sorted(loads, reverse=True)


@dataclass(frozen=True)
class Waste:
    """`steps` of a model with `batch` places; `loads`: tokens of each replica."""

    answers: tuple[int, ...]
    batch: int
    steps: dict[str, int]
    loads: dict[str, list[int]]

    def empty(self, way: str) -> float:
        """Share of all places in all steps that worked for nobody."""
        return 1 - sum(self.answers) / (self.batch * self.steps[way])


@experiment
def run(
    requests: Annotated[int, Range(8, 256, 8)] = 64,
    batch: Annotated[int, Range(1, 64)] = 8,
    spread: Annotated[float, Range(0, 1.5, 0.1, label="spread of lengths")] = 0.8,
    replicas: Annotated[int, Range(1, 8)] = 4,
) -> Waste:
    """Random answers of 64 tokens on average."""
    drawn = np.random.default_rng(0).lognormal(np.log(64) - spread**2 / 2, spread, requests)
    answers = tuple(max(1, round(length)) for length in drawn)
    longest_first = sorted(answers, reverse=True)
    steps = {
        "static, as they came": static_steps(answers, batch),
        "static, sorted": static_steps(longest_first, batch),
        "continuous, as they came": continuous_steps(answers, batch),
        "continuous, longest first": continuous_steps(longest_first, batch),
    }
    loads = {
        "in turns": replica_loads(answers, replicas, by_work=False),
        "by work": replica_loads(answers, replicas, by_work=True),
    }
    return Waste(answers, batch, steps, loads)


def plot(result: Waste) -> plots.Picture:
    """The places of the first static batches, the steps of each way, the load of each replica."""
    fig, (rows, bars, load) = plots.figure(11, 3.4, cols=3, width_ratios=[4, 3, 3])
    shown = result.answers[: min(4 * result.batch, 32)]
    for start in range(0, len(shown), result.batch):
        group = shown[start : start + result.batch]
        places = range(start, start + len(group))
        rows.barh(places, [max(group)] * len(group), 1, color=plots.color("queue"))
        rows.barh(places, group, 1, color=plots.color("decode"), edgecolor="white", linewidth=0.4)
    rows.invert_yaxis()
    rows.grid(visible=False)
    rows.set_yticks([])
    rows.set_xlabel("tokens (grey: computed for nobody)", fontsize=9)
    rows.set_title(f"static batches of {result.batch}", loc="left")
    drawn = bars.barh(list(result.steps), list(result.steps.values()), color=plots.BLUE)
    bars.bar_label(drawn, [f"{100 * result.empty(way):.0f} %" for way in result.steps], padding=3)
    bars.invert_yaxis()
    bars.margins(x=0.2)
    bars.grid(visible=False)
    bars.set_title("steps (%: empty places)", loc="left")
    replicas = len(result.loads["in turns"])
    for offset, (way, loads) in enumerate(result.loads.items()):
        color = (plots.VERMILION, plots.GREEN)[offset]
        places = [place + 0.4 * offset for place in range(replicas)]
        load.bar(places, sorted(loads, reverse=True), 0.4, color=color, label=way)
    load.axhline(sum(result.answers) / replicas, color=plots.INK, linewidth=1)
    load.set_xticks([place + 0.2 for place in range(replicas)], range(1, replicas + 1))
    load.set_title("tokens of each replica", loc="left")
    load.margins(y=0.3)
    load.legend(frameon=False, fontsize=9, ncols=2)
    return fig
