"""A long prompt arrives while others are answered: at once, or in chunks between their tokens?

Source: Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve"
(arXiv:2403.02310).
"""

from __future__ import annotations

from collections.abc import Sequence as Row
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.trace import Recorder, Trace
from utils.llm import weights
from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.core import Core, ModelRunner
from utils.llm_concurrency.engine.model import PagedModel
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.scheduler import Scheduler
from utils.llm_concurrency.engine.sequence import Sequence
from utils.llm_concurrency.scheduling.virtual import Cost, simulate

TALK = 40  # tokens of each answer that is under way
CHUNKS = (16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Visit:
    """What one way of taking the prompt did to those who were there; times in seconds."""

    chunk: int
    trace: Trace
    gaps: tuple[float, ...]  # between two tokens of those who were there (ITL)
    first: float  # the newcomer's time to the first token
    tokens: tuple[tuple[int, ...], ...]  # of everybody, the newcomer last

    @staticmethod
    def of(chunk: int, served: Row[Sequence], recorder: Recorder) -> Visit:
        *there, newcomer = served
        gaps = [b - a for one in there for a, b in pairwise(one.times)]
        first = newcomer.times[0] - newcomer.arrived
        tokens = tuple(tuple(one.generated) for one in served)
        return Visit(chunk, recorder.trace(), tuple(np.array(gaps) / 1e9), first / 1e9, tokens)

    @property
    def p99(self) -> float:
        return float(np.percentile(self.gaps, 99))


@dataclass(frozen=True)
class Chunks:
    """The chosen chunk and the whole prompt at once, and every chunk in `curve` (virtual only)."""

    visits: tuple[Visit, ...]
    curve: tuple[Visit, ...] = ()


def _arrivals(people: int, prompt: int, second: float) -> list[tuple[float, Request]]:
    talk = [Request((n,) * 16, TALK, ignore_end=True) for n in range(1, people + 1)]
    newcomer = Request(tuple(range(100, 100 + prompt)), 8, ignore_end=True)
    return [*((0.0, request) for request in talk), (second, newcomer)]


def _scheduler(chunk: int, people: int, prompt: int) -> Scheduler:
    pool = BlockPool((people * (16 + TALK) + prompt + 8) // 16 + people + 2, 16, share=False)
    return Scheduler(pool, slots=people + 1, budget=chunk + people, chunk=chunk)


@experiment
def virtual(
    chunk: Annotated[int, Range(16, 1024, 16)] = 64,
    prompt: Annotated[int, Range(100, 2000, 100, label="tokens of the prompt")] = 1000,
    people: Annotated[int, Range(1, 16, label="answers under way")] = 4,
    base: Annotated[float, Range(0, 50, 1, label="ms a step")] = 20,
    token: Annotated[float, Range(0.1, 5, 0.1, label="ms a token")] = 1.5,
) -> Chunks:
    """On the virtual clock: the prompt comes in the middle of the others' answers."""
    cost = Cost(base / 1e3, token / 1e3)
    middle = cost.base * TALK / 3

    def visit(chunk: int) -> Visit:
        recorder, scheduler = Recorder(), _scheduler(chunk, people, prompt)
        served = simulate(_arrivals(people, prompt, middle), scheduler, cost, recorder)
        return Visit.of(chunk, served, recorder)

    curve = tuple(visit(size) for size in CHUNKS if size < prompt)
    return Chunks((visit(chunk), visit(prompt)), curve)


@experiment
def real(
    chunk: Annotated[int, Range(16, 512, 16)] = 48,
    prompt: Annotated[int, Range(100, 1000, 50, label="tokens of the prompt")] = 250,
    people: Annotated[int, Range(1, 8, label="answers under way")] = 3,
) -> Chunks:
    """With the real model; the prompt comes after a third of the others' steps."""
    decoder = weights.smollm2()
    visits = []
    for size in (chunk, prompt):
        scheduler, recorder = _scheduler(size, people, prompt), Recorder()
        model = PagedModel(decoder, scheduler.pool.count, scheduler.pool.size)
        core = Core(ModelRunner(model), scheduler, recorder=recorder)
        sequences = [Sequence(n, r) for n, (_, r) in enumerate(_arrivals(people, prompt, 0))]
        for sequence in sequences[:-1]:
            core.add(sequence)
        while not scheduler.idle:
            checkpoint(core.steps, TALK, f"chunks of {size}")
            core.step()
            if core.steps == TALK // 3:
                core.add(sequences[-1])
        visits.append(Visit.of(size, sequences, recorder))
    return Chunks(tuple(visits))


def plot(result: Chunks) -> plots.Picture:
    """The timelines under each other, on one scale; and what a chunk's size trades."""
    lanes = result.visits[0].trace.lanes
    until = max(visit.trace.duration for visit in result.visits) * 1.02
    height = 1.2 + 0.3 * len(lanes) * len(result.visits)
    widths = [3, 2] if result.curve else [1]
    fig, axes = plots.figure(
        10 if result.curve else 8,
        height + 1,
        rows=len(result.visits),
        cols=len(widths),
        squeeze=False,
        gridspec_kw={"width_ratios": widths},
    )
    for (ax, *_), visit in zip(axes, result.visits, strict=True):
        gap, first = f"{1e3 * visit.p99:.0f} ms", f"{visit.first:.2f} s"
        title = f"chunks of {visit.chunk}: P99 of the gaps {gap}, newcomer's first token {first}"
        plots.timeline(ax, visit.trace, lanes=lanes, until=until)
        ax.set_title(title, loc="left", fontsize=9)
        ax.set_yticks(range(len(lanes)), [*map(str, range(1, len(lanes))), "newcomer"])
    if result.curve:
        for row, (name, values) in enumerate(
            {
                "P99 of the gaps between tokens, ms": [1e3 * visit.p99 for visit in result.curve],
                "newcomer's first token, s": [visit.first for visit in result.curve],
            }.items()
        ):
            ax = axes[row][1]
            ax.plot([visit.chunk for visit in result.curve], values, "o-", color=plots.BLUE)
            ax.axvline(result.visits[0].chunk, color=plots.INK, linestyle="--", linewidth=0.8)
            ax.set_xscale("log", base=2)
            ax.set_ylim(0)
            ax.set_title(name, loc="left", fontsize=9)
            ax.set_xlabel("tokens a chunk", fontsize=9)
    plots.legend(fig, ["queue", "prefill", "decode"], {"queue": "waits for its turn"})
    return fig
