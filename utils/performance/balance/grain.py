"""How many tasks to take at a time: a visit to the queue costs, and so does a large last chunk.

Chunks too small: every task pays a visit to the one queue, and visitors wait for each other. Chunks
too large: at the end somebody has a whole chunk left while the others idle. (C. Kruskal, A. Weiss,
"Allocating Independent Subtasks on Parallel Processors", IEEE TSE SE-11(10), 1985.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from utils.core import machine, plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.performance.balance.policies import Guided, Policy, SharedQueue
from utils.performance.balance.real import jobs, run
from utils.performance.balance.tasks import lower_bound, make_tasks
from utils.performance.balance.virtual import simulate

CHUNKS = (1, 4, 16, 64, 256, 512)
TASKS, VISITS, ROUNDS = 1024, 1000, 3


@dataclass(frozen=True)
class Grain:
    """Seconds by chunk size on both clocks, and for guided chunks (the last entry of each)."""

    workers: int
    chunks: tuple[int, ...]
    visit: float  # seconds of a visit to the queue, measured
    real: tuple[float, ...]
    virtual: tuple[float, ...]
    bound: float


@experiment
def grain(
    workers: Annotated[int, Range(1, max(8, machine.cores()))] = machine.cores(),
    microseconds: Annotated[float, Range(20, 200, 10, label="µs a task (mean)")] = 100,
) -> Grain:
    """1024 small tasks, each a little longer than the one before, by chunk size."""
    tasks = make_tasks("growing", TASKS, microseconds / 1e6)
    visit = _visit()
    kinds = range(len(CHUNKS) + 1)
    virtual = [simulate(_policy(workers, kind), tasks, visit).makespan for kind in kinds]
    real = [math.inf] * len(kinds)
    with jobs("threads", workers) as job:
        for round_ in range(ROUNDS):  # the fastest of them: other programs only ever take away
            for kind in kinds:
                checkpoint(round_ * len(kinds) + kind, ROUNDS * len(kinds), "chunk sizes")
                real[kind] = min(real[kind], run(_policy(workers, kind), tasks, job).makespan)
    bound = lower_bound([task.cost for task in tasks], workers)
    return Grain(workers, CHUNKS, visit, tuple(real), tuple(virtual), bound)


def _policy(workers: int, number: int) -> Policy:
    return SharedQueue(workers, CHUNKS[number]) if number < len(CHUNKS) else Guided(workers)


def _visit() -> float:
    """Seconds that one worker needs for a task of no length."""
    tasks = make_tasks("equal", VISITS, 1e-9)
    return run(SharedQueue(1), tasks, lambda task: None).makespan / VISITS


def plot(result: Grain) -> plots.Picture:
    """Seconds over chunk size; guided chunks at the right."""
    fig, ax = plots.figure(7.5, 3.2)
    places = [*range(len(result.chunks)), len(result.chunks) + 0.5]
    for name, values, style in (
        ("theory", result.virtual, "s--"),
        ("measured", result.real, "o-"),
    ):
        label = "virtual clock" if name == "theory" else "threads"
        milliseconds = [1e3 * value for value in values]
        ax.plot(places[:-1], milliseconds[:-1], style, color=plots.color(name), label=label)
        ax.plot(places[-1], milliseconds[-1], style[0], color=plots.color(name))
    ax.axhline(
        1e3 * result.bound, color=plots.INK, linestyle="--", linewidth=1, label="lower bound"
    )
    ax.set_xticks(places, [*map(str, result.chunks), "guided"])
    ax.set_ylim(bottom=0)
    ax.set_xlabel("tasks taken at a time", fontsize=9)
    ax.set_ylabel("milliseconds for all", fontsize=9)
    visit = f"{1e6 * result.visit:.0f} µs a visit to the queue"
    ax.set_title(f"{TASKS} tasks, {result.workers} workers, {visit}", loc="left")
    ax.legend(frameon=False, fontsize=9)
    return fig
