"""Who has how much to do in a ring under a causal mask, and what zigzag order changes.

The first tokens see few others, the last see all. If rank 0 has the first stretch of a text, it
soon has nothing to do, and everybody waits for the last rank. In zigzag order each rank has a
stretch from the front and one from the back, and all have the same.

Sources: Liu et al. (see ring.py); Brandon et al., "Striped Attention" (arXiv:2311.09431), which
deals the tokens in turns; the zigzag of two stretches is that of the Llama 3 report
(arXiv:2407.21783, section 3.3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.trace import Trace, now
from utils.core.workers import intra_op
from utils.deep_learning.collectives.launch import launch
from utils.deep_learning.collectives.mesh import MeshGroup
from utils.llm import weights
from utils.llm_concurrency.parallel.cuts import attend, enter, texts
from utils.llm_concurrency.parallel.ring import deal, in_sight, ring_attention

Order = Literal["stretches", "zigzag"]


def be_link(
    group: MeshGroup, q: Tensor, k: Tensor, v: Tensor, positions: list[Tensor]
) -> tuple[Tensor, int, int]:
    """This rank's rows, the bytes it sent for them, and when it began."""
    own = positions[group.rank]
    with torch.inference_mode():
        group.barrier()
        before, began = group.bytes_sent, now()
        rows = ring_attention(group, q[:, :, own], k[:, :, own], v[:, :, own], positions)
        return rows, group.bytes_sent - before, began


def pairs(positions: list[Tensor]) -> list[list[int]]:
    """Scores of a query and a key that rank r (row) computes in step s (column) of the ring."""
    table = []
    for rank, mine in enumerate(positions):
        blocks = [positions[(rank - step) % len(positions)] for step in range(len(positions))]
        cut = [in_sight(mine, theirs, causal=True) for theirs in blocks]
        table.append([(len(mine) - first) * end for first, end in cut])
    return table


@dataclass(frozen=True)
class Stretches:
    """`traces` and `pairs` by the order of the tokens; `error`: largest difference from dense."""

    ranks: int
    pairs: dict[Order, list[list[int]]]
    traces: dict[Order, Trace]
    error: float
    sent: int  # bytes, of all ranks, in either order
    formula: int


@experiment
def run(
    ranks: Annotated[int, Range(1, 4)] = 2,
    tokens: Annotated[int, Range(64, 2048, 64)] = 1024,
    layer: Annotated[int, Range(0, 29)] = 1,
) -> Stretches:
    """One layer's attention of the real model, over ranks as threads, in both orders."""
    model, read = weights.smollm2(), texts(1, tokens)
    with intra_op(1), torch.inference_mode():
        q, k, v = enter(model, read, layer)
        dense = attend(q, k, v)
    table: dict[Order, list[list[int]]] = {}
    traces: dict[Order, Trace] = {}
    error, sent = 0.0, 0
    for done, order in enumerate(("stretches", "zigzag")):
        checkpoint(done, 2, order)
        positions = deal(tokens, ranks, order == "zigzag")
        outcome = launch(be_link, ranks, q, k, v, positions, on="threads")
        for own, (rows, _, _) in zip(positions, outcome.results, strict=True):
            error = max(error, (rows - dense[:, :, own]).abs().max().item())
        sent = sum(bytes for _, bytes, _ in outcome.results)
        began = min(began for *_, began in outcome.results)
        table[order] = pairs(positions)
        traces[order] = Trace(span for span in outcome.trace.spans if span.start >= began)
    formula = (ranks - 1) * (k.nbytes + v.nbytes)  # every block goes to all others, once
    return Stretches(ranks, table, traces, error, sent, formula)


def plot(result: Stretches) -> plots.Picture:
    """For both orders: what each rank computes in each step, and when it really did."""
    lanes = [f"rank {rank}{end}" for rank in range(result.ranks) for end in ("", " wire")]
    fig, axes = plots.figure(10, 2.0 + 0.7 * len(lanes), 2, 2, gridspec_kw={"width_ratios": [1, 2]})
    until = 1.02 * max(spans.duration for spans in result.traces.values())
    top = max(max(map(max, table)) for table in result.pairs.values())
    for (work, line), order in zip(axes, result.pairs, strict=True):
        table = np.array(result.pairs[order])
        texts = [[f"{100 * cell / table.sum():.0f} %" for cell in row] for row in table]
        ranks = [f"rank {rank}" for rank in range(result.ranks)]
        steps = [str(step) for step in range(result.ranks)]
        plots.heat_map(work, table, texts, ranks, steps, top=top)
        busiest = table.sum(1).max() / table.sum(1).mean()
        work.set_title(f"{order}: busiest {busiest:.2f} × mean", loc="left")
        work.set_xlabel("step of the ring", fontsize=9)
        plots.timeline(line, result.traces[order], lanes=lanes, until=until)
    axes[0, 0].set_xlabel("")
    axes[0, 1].set_xlabel("")
    names = {"compute": "a block", "communicate": "a hop", "queue": "waits for a block"}
    plots.legend(fig, list(names), names)
    return fig
