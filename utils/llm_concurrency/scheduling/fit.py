"""What a step of the real model costs: measured, and fitted by the virtual clock's formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from scipy.optimize import nnls

from utils.core import plots
from utils.core.bench import once
from utils.core.experiment import Range, checkpoint, experiment
from utils.llm import weights
from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.model import PagedModel
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.scheduler import Plan, Work
from utils.llm_concurrency.engine.sequence import Sequence
from utils.llm_concurrency.scheduling.virtual import Cost, features

SIZE = 16
SHAPES = ((1, 1), (1, 16), (1, 48), (1, 96), (4, 1), (8, 1), (16, 1), (4, 16))  # sequences, tokens


@dataclass(frozen=True)
class Fit:
    """`seconds` of each step that was measured, what the formula says, and the formula."""

    shapes: tuple[tuple[int, int, int], ...]  # sequences, new tokens of each, tokens before
    seconds: tuple[float, ...]
    expected: tuple[float, ...]
    cost: Cost


@experiment
def fit(
    past: Annotated[int, Range(16, 512, 16, label="tokens before")] = 128,
    repeats: Annotated[int, Range(1, 9)] = 2,
) -> Fit:
    """Time steps of several shapes, at the beginning of a text and after `past` tokens."""
    most = max(count for count, _ in SHAPES)
    longest = past + max(tokens for _, tokens in SHAPES)
    pool = BlockPool(most * (-(-longest // SIZE)), SIZE, share=False)
    model = PagedModel(weights.smollm2(), pool.count, SIZE)
    shapes = [(count, tokens, before) for count, tokens in SHAPES for before in (0, past)]
    rows, seconds = [], []
    for done, (count, tokens, before) in enumerate(shapes):
        checkpoint(done, len(shapes), "steps")
        plan = Plan([_work(number, tokens, before, pool) for number in range(count)])
        model.scores(plan.work)
        seconds.append(min(once(lambda plan=plan: model.scores(plan.work)) for _ in range(repeats)))
        rows.append(features(plan))
        for work in plan.work:
            work.sequence.leave(pool)
    # Relative errors count: else the longest steps alone would decide.
    matrix = np.array(rows, dtype=float) / np.array(seconds)[:, None]
    (base, token, pair), _ = nnls(matrix, np.ones(len(rows)))
    cost = Cost(float(base), float(token), float(pair))
    expected = tuple(float(np.dot((base, token, pair), row)) for row in rows)
    return Fit(tuple(shapes), tuple(seconds), expected, cost)


def _work(number: int, tokens: int, before: int, pool: BlockPool) -> Work:
    sequence = Sequence(number, Request((1,) * (before + tokens)))
    sequence.grow(pool, before + tokens)
    sequence.computed = before  # what the cache really holds does not change the time
    return Work(sequence, before, tokens)


def plot(result: Fit) -> plots.Picture:
    """Measured against expected; on the line they agree."""
    fig, ax = plots.figure(6, 4.2)
    for before, color in ((0, plots.SKY), (max(shape[2] for shape in result.shapes), plots.BLUE)):
        chosen = [n for n, shape in enumerate(result.shapes) if shape[2] == before]
        x = [1e3 * result.expected[n] for n in chosen]
        y = [1e3 * result.seconds[n] for n in chosen]
        ax.scatter(x, y, color=color, label=f"after {before} tokens", zorder=3)
    both = [1e3 * value for value in (*result.seconds, *result.expected)]
    ends = [min(both) * 0.8, max(both) * 1.25]
    ax.plot(ends, ends, color=plots.GREY, linewidth=1)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("ms by the formula", fontsize=9)
    ax.set_ylabel("ms measured", fontsize=9)
    ax.legend(fontsize=9, frameon=False)
    cost = result.cost
    parts = f"{1e3 * cost.base:.1f} ms + {1e3 * cost.token:.2f} ms a token"
    ax.set_title(f"{parts} + {1e9 * cost.pair:.0f} ns a pair", loc="left")
    return fig
