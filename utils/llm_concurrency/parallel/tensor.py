"""Tensor parallelism: every layer is cut, and all ranks work on the same token at the same time.

A rank has some heads and some channels of each layer. What attention and MLP add to the stream of
vectors is then a sum over the ranks: one all-reduce for each, two in a layer. The functions f and
g around each part are those of Shoeybi et al., "Megatron-LM" (arXiv:1909.08053, section 3).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor, nn

from utils.core import plots, trace
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.trace import Trace
from utils.core.workers import intra_op
from utils.deep_learning.collectives.launch import On, launch
from utils.deep_learning.collectives.mesh import MeshGroup
from utils.deep_learning.model_parallel.tensor import CopyTo, SumFrom
from utils.llm import weights
from utils.llm.decoder import Decoder
from utils.llm.generate import generate
from utils.llm_concurrency.parallel.parts import Said, narrow, parameters
from utils.llm_concurrency.parallel.prompts import prompts


class Summed(nn.Module):
    """A part of attention or MLP whose output is summed up over the ranks: g(part(f(x)))."""

    def __init__(self, part: nn.Module, group: MeshGroup) -> None:
        super().__init__()
        self.part, self.group = part, group

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        return SumFrom.apply(self.part(CopyTo.apply(x, self.group), *rest), self.group)


def cut(model: Decoder, group: MeshGroup, channels: Sequence[int] | None = None) -> Decoder:
    """This rank's part of `model` (see `narrow`). All ranks must call it with the same tokens.

    Embedding, norms and head are whole: every rank computes them, and gets the same scores.
    """
    part = narrow(model, group.rank, group.size, channels)
    for block in part.layers:
        block.self_attn = Summed(block.self_attn, group)
        block.mlp = Summed(block.mlp, group)
    return part


def be_rank(
    group: MeshGroup, source: Callable[[], Decoder], prompt: Sequence[int], limit: int,
    channels: Sequence[int] | None = None,
) -> Said:  # fmt: skip
    """Answer together with the others; everybody finds the same tokens."""
    part = cut(source(), group, channels)
    group.barrier()
    before = group.bytes_sent
    tokens, sent = [], []
    for token in timed(part, prompt, limit):
        tokens.append(token)
        sent.append(group.bytes_sent - before)
    return Said(tuple(tokens), tuple(sent), parameters(part))


def timed(model: Decoder, prompt: Sequence[int], limit: int) -> Iterator[int]:
    """The tokens of an answer, with a span for each."""
    answer = generate(model, prompt, limit)
    for number in range(limit):
        with trace.span("compute", f"token {number}", number=number):
            token = next(answer)
        yield token


def formula(model: Decoder, ranks: int, tokens: int) -> int:
    """Bytes that all ranks send together while `tokens` go through the model.

    Two all-reduces a layer, each of a vector for every token, in which a rank sends 2(N−1)/N of it.
    """
    vector = model.config.hidden * model.norm.weight.itemsize
    return 2 * model.config.layers * 2 * (ranks - 1) * tokens * vector


@dataclass(frozen=True)
class Cut:
    """An answer by ranks, and by one model alone with one thread and with as many as ranks."""

    ranks: int
    on: On
    said: tuple[Said, ...]
    alone: tuple[int, ...]  # tokens
    seconds: dict[str, float]  # a token, median while decoding
    formula: int  # bytes, of all ranks
    step: Trace  # of the last token

    @property
    def exposed(self) -> float:
        """Share of the last token's time in which a rank sends, waits or adds up: 0 to 1."""
        return self.step.total("communicate") / self.step.total("compute")


@experiment
def run(
    ranks: Annotated[int, Range(1, 3)] = 2,
    tokens: Annotated[int, Range(3, 64)] = 10,
    on: On = "threads",
) -> Cut:
    """Let ranks with one thread each answer a question together."""
    model, (prompt,) = weights.smollm2(), prompts(1)
    seconds, alone = {}, []
    for done, threads in enumerate(sorted({1, ranks})):
        checkpoint(done, 3, f"one model, {threads} threads")
        with intra_op(threads), trace.recording() as recorder:
            alone = list(timed(model, prompt, tokens))
        seconds[f"1 model, {threads} thread{'s' * (threads > 1)}"] = pace(recorder.trace())
    checkpoint(2, 3, f"{ranks} {on}")
    outcome = launch(be_rank, ranks, weights.smollm2, prompt, tokens, on=on)
    seconds[f"{ranks} ranks"] = pace(outcome.trace)
    bytes = formula(model, ranks, len(prompt) + tokens - 1)
    last = f"token {tokens - 1}"
    began = min(span.start for span in outcome.trace.spans if span.name == last)
    step = Trace(
        span
        for span in outcome.trace.spans
        if span.start >= began and span.category in ("compute", "communicate")
    )
    return Cut(ranks, on, outcome.results, tuple(alone), seconds, bytes, step)


def pace(spans: Trace) -> float:
    """Median seconds of a token while decoding."""
    computed = spans.select(category="compute").spans
    return statistics.median(span.seconds for span in computed if span.args["number"] > 0)


def plot(result: Cut) -> plots.Picture:
    """The last token on all ranks; its first tenth, enlarged; and what a token takes."""
    fig, axes = plots.figure(
        10, 2.6 + 0.5 * result.ranks, 2, 2, gridspec_kw={"width_ratios": [3, 1]}
    )
    lanes = [f"rank {rank}" for rank in range(result.ranks)]
    whole = result.step.duration
    titles = f"one token: {100 * result.exposed:.0f} % communication", "its first tenth"
    for ax, part, title in zip(axes[:, 0], (1, 0.1), titles, strict=True):
        plots.timeline(ax, result.step, lanes=lanes, title=title, until=part * whole)
        for bars in ax.collections:
            bars.set_linewidth(0)
    axes[0, 0].set_xlabel("")
    bars, held = axes[:, 1]
    times = [1e3 * seconds for seconds in result.seconds.values()]
    drawn = bars.barh(list(result.seconds), times, color=plots.color("measured"))
    bars.bar_label(drawn, fmt="%.0f", fontsize=9, padding=3)
    bars.set_title("ms a token", loc="left")
    numbers = [said.parameters / 1e6 for said in result.said]
    held.bar_label(held.barh(lanes, numbers, color=plots.GREY), fmt="%.0f", fontsize=9, padding=3)
    held.set_title("million parameters", loc="left")
    for ax in (bars, held):
        ax.invert_yaxis()
        ax.margins(x=0.25)
        ax.grid(visible=False)
    names = {"compute": "computes", "communicate": "all-reduce: sends, waits, adds up"}
    plots.legend(fig, list(names), names)
    return fig
