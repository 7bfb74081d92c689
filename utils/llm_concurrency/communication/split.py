"""The small networks of SmolLM2, split over ranks: compute, add up, go on; or do both at once.

Each rank has a part of the columns of `gate` and `up` and of the rows of `down`, so its product is
one summand of the result: an all-reduce a layer, in the middle of the computation. Half of the
batch can compute while the other half's sum travels. Source: Shoeybi et al., "Megatron-LM",
arXiv:1909.08053 (the split); Wang et al., "Domino", arXiv:2409.15241 (halves that overlap).
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from utils.core import plots, trace
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.trace import Trace
from utils.deep_learning.collectives.buckets import WAITING
from utils.deep_learning.collectives.group import Group
from utils.deep_learning.collectives.launch import launch
from utils.llm import weights
from utils.llm.decoder import Block, Decoder

DEADLINE = 60.0  # seconds for a sum
WAYS = {"one after the other": False, "overlapping": True}


class Layer:
    """One rank's part of a block's small network; its weights are views, not copies."""

    def __init__(self, block: Block, rank: int, size: int) -> None:
        self.norm, mlp = block.post_attention_layernorm, block.mlp
        self.gate = mlp.gate_proj.weight.tensor_split(size)[rank]
        self.up = mlp.up_proj.weight.tensor_split(size)[rank]
        self.down = mlp.down_proj.weight.tensor_split(size, dim=1)[rank]

    def summand(self, x: Tensor) -> Tensor:
        """What this rank adds to the result: (rows, hidden) → (rows, hidden)."""
        x = self.norm(x)
        inner = functional.silu(functional.linear(x, self.gate)) * functional.linear(x, self.up)
        return functional.linear(inner, self.down)


def forward(group: Group, layers: list[Layer], x: Tensor, overlap: bool) -> Tensor:
    """All layers, x + sum of all ranks' summands each, two halves of the rows in turns."""
    halves = list(x.chunk(2))
    travelling: list[tuple[Tensor, Future[None]] | None] = [None] * len(halves)

    def arrived(half: int) -> None:
        if (sent := travelling[half]) is not None:
            with trace.span("queue", WAITING, lane=group.lane):
                sent[1].result(DEADLINE)
            halves[half] = halves[half] + sent[0]
            travelling[half] = None

    def name_wire() -> None:
        threading.current_thread().name = f"{group.lane} wire"
        torch.get_num_threads()  # takes over how many threads operations may use here

    with ThreadPoolExecutor(1, initializer=name_wire) as wire:  # one, so sums stay in order
        for layer in layers:
            checkpoint()
            for half in range(len(halves)):
                arrived(half)
                with trace.span("compute", f"half {half + 1}", lane=group.lane):
                    summand = layer.summand(halves[half])
                travelling[half] = summand, wire.submit(group.all_reduce, summand)
                if not overlap:
                    arrived(half)
        for half in range(len(halves)):
            arrived(half)
    return torch.cat(halves)


@dataclass(frozen=True)
class Split:
    """The result and the trace of each way; `whole` is the result of one rank."""

    ranks: int
    whole: Tensor
    results: dict[str, Tensor]
    traces: dict[str, Trace]

    def exposed(self, way: str) -> float:
        """Share of the ranks' time in which they wait for a sum."""
        spans = self.traces[way]
        lanes = [f"rank {rank}" for rank in range(self.ranks)]
        return sum(spans.total("queue", lane) for lane in lanes) / (self.ranks * spans.duration)


@torch.no_grad()  # not inference_mode: the wire's thread, which is outside, changes the tensors
def _rank(group: Group, model: Decoder, depth: int, x: Tensor, overlap: bool) -> tuple[Tensor, int]:
    layers = [Layer(block, group.rank, group.size) for block in model.layers[:depth]]
    for _ in range(2):  # the first is a warm-up
        group.barrier()
        began = trace.now()
        found = forward(group, layers, x, overlap)
    return found, began


@experiment
def run(
    ranks: Annotated[int, Range(1, 4)] = 2,
    rows: Annotated[int, Range(2, 128, 2, label="tokens in a step")] = 32,
    layers: Annotated[int, Range(2, 30)] = 6,
) -> Split:
    """Both ways, with ranks as threads of one process."""
    checkpoint(0, note="loading the model")
    model, dice = weights.smollm2(), torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocabulary, (rows,), generator=dice)
    x = model.embed_tokens(tokens)
    with torch.inference_mode():
        whole = x
        for block in model.layers[:layers]:
            whole = whole + block.mlp(block.post_attention_layernorm(whole))
    results, traces = {}, {}
    for name, overlap in WAYS.items():
        outcome = launch(_rank, ranks, model, layers, x, overlap, on="threads")
        results[name] = outcome.results[0][0]
        began = min(start for _, start in outcome.results)
        kept = ("compute", "communicate", "queue")
        traces[name] = Trace(
            span
            for span in outcome.trace.spans
            if span.start >= began
            and span.category in kept
            and (span.category != "queue" or span.name == WAITING)
        )  # without the waits of single messages
    return Split(ranks, whole, results, traces)


def plot(result: Split) -> plots.Picture:
    """Both ways on one scale."""
    lanes = [f"rank {rank}{end}" for rank in range(result.ranks) for end in ("", " wire")]
    until = 1.03 * max(spans.duration for spans in result.traces.values())
    fig, axes = plots.figure(9.5, 1.8 + 0.6 * len(lanes), rows=2, sharex=True)
    for ax, (way, spans) in zip(axes, result.traces.items(), strict=True):
        plots.timeline(ax, spans, lanes=lanes, until=until)
        ax.set_title(f"{way}: {100 * result.exposed(way):.0f} % of the time is waiting", loc="left")
    axes[0].set_xlabel("")
    names = {"compute": "a layer, half of the tokens", "communicate": "all-reduce"}
    plots.legend(fig, ["compute", "communicate", "queue"], {**names, "queue": "waits for a sum"})
    return fig
