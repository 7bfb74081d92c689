"""Pipeline parallelism: a rank has some of the layers, and hands the vectors on to the next.

The token that the last stage finds is what the first needs to go on. So one request keeps one
stage busy at a time; p requests in flight keep p of them busy.

Source: Huang et al., "GPipe" (arXiv:1811.06965), for the stages; micro-batches are requests here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch

from utils.core import plots, trace
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.trace import Span, Trace
from utils.core.workers import intra_op
from utils.deep_learning.collectives.launch import On, launch
from utils.deep_learning.collectives.mesh import MeshGroup
from utils.llm import weights
from utils.llm.decoder import Cache, Decoder
from utils.llm.generate import generate
from utils.llm.sampling import GREEDY, choose
from utils.llm_concurrency.parallel.parts import Said, bounds, parameters, short
from utils.llm_concurrency.parallel.prompts import prompts


@torch.inference_mode()
def be_stage(
    group: MeshGroup, source: Callable[[], Decoder], asked: Sequence[Sequence[int]], limit: int
) -> list[Said]:
    """This rank's layers for all requests, in turns; what it knows of each answer."""
    model = source()
    rank, last, dtype = group.rank, group.size - 1, model.norm.weight.dtype
    stage = short(model, *bounds(model.config, group.size)[rank : rank + 2])
    caches = [Cache(stage.config, 1, len(prompt) + limit, dtype) for prompt in asked]
    said: list[list[int]] = [[] for _ in asked]
    sent: list[list[int]] = [[] for _ in asked]
    for step in range(limit):
        for request, prompt in enumerate(asked):
            if rank > 0:
                x = torch.empty(1, 1 if step else len(prompt), stage.config.hidden, dtype=dtype)
                group.recv(x, rank - 1)
            elif step == 0:
                x = torch.tensor([prompt])
            else:
                x = torch.tensor([said[request][-1:]])
                if last > 0:
                    group.recv(x, last)
            kind = "decode" if step else "prefill"
            with trace.span(kind, f"request {request}", step=step, request=request):
                y = stage.hidden(x, caches[request])
                if rank == last:
                    said[request].append(choose(stage.lm_head(y[0, -1]), GREEDY))
            if rank < last:
                group.send(y, rank + 1)
                said[request].append(-1)  # known to the last rank only
            elif last > 0 and step + 1 < limit:
                group.send(torch.tensor([said[request][-1:]]), 0)
            sent[request].append(group.bytes_sent)
    size = parameters(stage)
    return [Said(tuple(a), tuple(b), size) for a, b in zip(said, sent, strict=True)]


def formula(model: Decoder, ranks: int, tokens: int, answered: int) -> int:
    """Bytes that all ranks send: a vector for each of `tokens` from stage to stage, and each token
    that was `answered` and is needed again, from the last to the first, as an int64."""
    vector = model.config.hidden * model.norm.weight.itemsize
    return (ranks - 1) * tokens * vector + (8 * answered if ranks > 1 else 0)


def simulate(p: int, m: int, steps: int, cost: Callable[[int, int, int], float]) -> Trace:
    """The same order of work on the virtual clock; `cost(rank, step, request)` in seconds."""
    free, ready = [0.0] * p, [0.0] * m  # of a rank; of a request's vectors, for the next rank
    spans = []
    for step in range(steps):
        checkpoint()
        for request in range(m):
            for rank in range(p):
                start = max(free[rank], ready[request])
                free[rank] = ready[request] = start + cost(rank, step, request)
                args = {"step": step, "request": request}
                kind = "decode" if step else "prefill"
                times = round(start * 1e9), round(free[rank] * 1e9)
                spans.append(Span(f"rank {rank}", kind, f"request {request}", *times, args))
    return Trace(spans)


def idle(spans: Trace, p: int) -> float:
    """The share of p ranks' time without work, from the first start to the last end."""
    return 1 - sum(span.seconds for span in spans.spans) / (p * spans.duration)


@dataclass(frozen=True)
class Flow:
    """`traces` by their title; `answers` by the number of requests in flight."""

    p: int
    traces: dict[str, Trace]
    answers: dict[int, tuple[tuple[int, ...], ...]]
    alone: tuple[tuple[int, ...], ...]  # the answers of one model that is not cut
    sent: int = 0  # bytes, with all requests in flight
    formula: int = 0


@experiment
def run(
    ranks: Annotated[int, Range(1, 4, label="stages p")] = 2,
    requests: Annotated[int, Range(1, 8, label="requests m")] = 2,
    tokens: Annotated[int, Range(3, 32, label="tokens an answer")] = 6,
    on: On = "threads",
) -> Flow:
    """One request alone, then `requests` in flight; and the latter on the virtual clock."""
    model, asked = weights.smollm2(), prompts(requests)
    with intra_op(1):  # as each rank
        alone = tuple(tuple(generate(model, prompt, tokens)) for prompt in asked)
    traces, answers, sent = {}, {}, 0
    for m in sorted({1, requests}):
        checkpoint(m, requests + 1, f"{m} in flight")
        outcome = launch(be_stage, ranks, weights.smollm2, asked[:m], tokens, on=on)
        answers[m] = tuple(said.tokens for said in outcome.results[-1])
        sent = sum(max(said.sent[-1] for said in results) for results in outcome.results)
        work = ("prefill", "decode")
        real = Trace(span for span in outcome.trace.spans if span.category in work)
        traces[f"{m} in flight, {on}"] = real
    took = {(int(s.lane[5:]), s.args["step"], s.args["request"]): s.seconds for s in real.spans}
    virtual = simulate(ranks, requests, tokens, lambda *key: took[key])
    traces[f"{requests} in flight, virtual clock"] = virtual
    length = sum(map(len, asked)) + requests * (tokens - 1)
    bytes = formula(model, ranks, length, requests * (tokens - 1))
    return Flow(ranks, traces, answers, alone, sent, bytes)


@experiment
def virtual(
    p: Annotated[int, Range(1, 8, label="stages p")] = 4,
    m: Annotated[int, Range(1, 16, label="requests m")] = 2,
    steps: Annotated[int, Range(2, 32, label="tokens an answer")] = 8,
    head: Annotated[float, Range(0, 4, 0.25, label="last stage is longer by")] = 0,
) -> Flow:
    """Stages that take 1 ms for a request, the last 1 + `head`; prefill is as short as decode."""
    spans = simulate(p, m, steps, lambda rank, *_: 1e-3 * (1 + (head if rank == p - 1 else 0)))
    return Flow(p, {f"{m} in flight, virtual clock": spans}, {}, ())


def plot(result: Flow) -> plots.Picture:
    """A timeline each, on one scale; a bar is a token of the request whose number it shows."""
    rows = len(result.traces)
    fig, axes = plots.figure(
        9.5, 0.9 + rows * (0.65 + 0.3 * result.p), rows=rows, sharex=True, squeeze=False
    )
    until = 1.02 * max(spans.duration for spans in result.traces.values())
    lanes = [f"rank {rank}" for rank in range(result.p)]
    for ax, (name, spans) in zip(axes[:, 0], result.traces.items(), strict=True):
        share = f"{100 * idle(spans, result.p):.0f} % idle"
        plots.timeline(ax, spans, lanes=lanes, title=f"{name}: {share}", until=until)
        for span in spans.spans:
            if span.seconds > until / 70:
                middle = ((span.start + span.end) / 2 - spans.start) / 1e9
                ax.text(
                    middle, lanes.index(span.lane), span.args["request"], color="white",
                    ha="center", va="center", fontsize=7,
                )  # fmt: skip
        if ax is not axes[-1, 0]:
            ax.set_xlabel("")
    plots.legend(fig, ["prefill", "decode"])
    return fig
