"""Data parallelism: whole copies of the model, each with its own requests.

Training must add up the replicas' gradients after each step. Inference makes no gradients: the
replicas have nothing to tell each other. Nor need each have the weights in memory of its own:
threads share them, and processes that *map* the file do, because nobody writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import psutil
import torch

from utils.core import plots, trace
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.trace import Trace
from utils.deep_learning.collectives.launch import On, launch
from utils.deep_learning.collectives.mesh import MeshGroup
from utils.llm import weights
from utils.llm.decoder import Decoder
from utils.llm.generate import generate
from utils.llm_concurrency.parallel.parts import Said, parameters
from utils.llm_concurrency.parallel.prompts import prompts


def be_replica(
    group: MeshGroup, source: Callable[[], Decoder], asked: Sequence[Sequence[int]], limit: int
) -> list[Said]:
    """Answer every N-th of the requests, one after another, and talk to nobody."""
    model, said = source(), []
    group.barrier()  # all have the model
    before = group.bytes_sent
    for request in range(group.rank, len(asked), group.size):
        tokens, sent = [], []
        with trace.span("decode", f"request {request}", request=request):
            for token in generate(model, asked[request], limit):
                tokens.append(token)
                sent.append(group.bytes_sent - before)
        said.append(Said(tuple(tokens), tuple(sent), parameters(model)))
    return said


@torch.inference_mode()
def weigh(group: MeshGroup) -> tuple[int, int]:
    """Bytes that only this process has for the real model: with its file mapped, and copied.

    That is by how much its *unique set size* grows: what would be free again if it ended.
    """
    process = psutil.Process()
    before = process.memory_full_info().uss
    model = weights.smollm2()
    group.barrier()
    for parameter in model.parameters():
        parameter.sum()  # what is mapped is in memory once somebody has read it
    group.barrier()  # now everybody has
    mapped = process.memory_full_info().uss - before
    for rank in range(group.size):  # one after another, for who has little memory
        group.barrier()
        if rank == group.rank:
            copies = [parameter.clone() for parameter in model.parameters()]
            copied = process.memory_full_info().uss - before
            del copies
    return mapped, copied


@dataclass(frozen=True)
class Way:
    """Replicas with some threads each, and what became of the requests, in order."""

    answers: tuple[tuple[int, ...], ...]
    trace: Trace
    sent: int  # bytes, from replica to replica

    @property
    def latency(self) -> float:
        """Seconds from a request's turn to its last token, mean."""
        return self.trace.total("decode") / len(self.answers)

    @property
    def rate(self) -> float:
        """Tokens a second of all replicas together."""
        return sum(map(len, self.answers)) / self.trace.duration


@dataclass(frozen=True)
class Replicas:
    """`ways` by name, all with the same requests; the last is the one with all replicas."""

    replicas: int
    on: On
    ways: dict[str, Way]


@experiment
def run(
    replicas: Annotated[int, Range(2, 4)] = 2,
    requests: Annotated[int, Range(1, 8)] = 2,
    tokens: Annotated[int, Range(3, 32, label="tokens an answer")] = 6,
    on: On = "threads",
) -> Replicas:
    """The same requests for one replica with one thread, one with more threads, and more replicas.

    The replicas have a thread each. One replica alone is always a thread of this process.
    """
    weights.smollm2()
    asked, ways = prompts(requests), {}
    plan: tuple[tuple[int, int, On], ...] = (
        (1, 1, "threads"), (1, replicas, "threads"), (replicas, 1, on),
    )  # fmt: skip
    for done, (size, threads, where) in enumerate(plan):
        name = f"{size} replica{'s' * (size > 1)} × {threads} thread{'s' * (threads > 1)}"
        checkpoint(done, len(plan), name)
        outcome = launch(
            be_replica, size, weights.smollm2, asked, tokens, on=where, threads=threads
        )
        said = outcome.results
        ways[name] = Way(
            tuple(said[request % size][request // size].tokens for request in range(requests)),
            outcome.trace.select(category="decode"),
            sum(one.sent[-1] for row in said for one in row),
        )
    return Replicas(replicas, on, ways)


def plot(result: Replicas) -> plots.Picture:
    """Who served which request when, on one scale; throughput, and the time of a request."""
    fig, axes = plots.figure(
        10, 2.8 + 0.35 * result.replicas, 3, 2, gridspec_kw={"width_ratios": [2.4, 1]}
    )
    until = 1.02 * max(way.trace.duration for way in result.ways.values())
    for ax, (name, way) in zip(axes[:, 0], result.ways.items(), strict=True):
        size = result.replicas if way is list(result.ways.values())[-1] else 1
        lanes = [f"rank {rank}" for rank in range(size)]
        plots.timeline(ax, way.trace, lanes=lanes, title=name, until=until)
        ax.set_xlabel("" if size == 1 else "seconds", fontsize=9)
    (rate, latency, rest), names = axes[:, 1], list(result.ways)
    rest.axis("off")
    drawn = rate.barh(names, [way.rate for way in result.ways.values()], color=plots.GREEN)
    rate.bar_label(drawn, fmt="%.1f", fontsize=9, padding=3)
    rate.set_title("tokens a second, all", loc="left")
    drawn = latency.barh(names, [way.latency for way in result.ways.values()], color=plots.BLUE)
    latency.bar_label(drawn, fmt="%.2f", fontsize=9, padding=3)
    latency.set_title("seconds a request", loc="left")
    for ax in (rate, latency):
        ax.invert_yaxis()
        ax.margins(x=0.25)
        ax.grid(visible=False)
    return fig
