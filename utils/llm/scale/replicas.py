"""Replicas: more requests a second, and not one of them sooner.

Three ways to answer the same requests: one worker with one core; some workers with a core each,
which all hold the whole model (data parallelism); and one worker with as many cores as they have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Literal

import torch

from utils.core import machine, plots
from utils.core.experiment import Range, checkpoint, experiment, gather
from utils.core.trace import Recorder, Trace, now
from utils.core.workers import crew, intra_op, lanes, process_crew
from utils.llm import weights
from utils.llm.generate import generate

DEADLINE = 120.0  # seconds for all requests of one way
Answer = tuple[int, int, list[int]]  # when it began and ended, in ns of `now`, and its tokens


@dataclass(frozen=True)
class Way:
    """How some workers answered the requests, in the order asked."""

    workers: int
    threads: int  # of torch, for each worker
    trace: Trace
    answers: tuple[tuple[int, ...], ...]

    @property
    def latency(self) -> float:
        """Seconds from a request's turn to its last token: the median."""
        return median(span.seconds for span in self.trace.spans)

    @property
    def throughput(self) -> float:
        """Requests a second."""
        return len(self.answers) / self.trace.duration


@dataclass(frozen=True)
class Replicas:
    ways: dict[str, Way]
    on: str


def answer(prompt: list[int], limit: int, threads: int) -> Answer:
    """One request, in whatever thread or process this is called."""
    torch.set_num_threads(threads)
    began = now()
    said = list(generate(weights.smollm2(), prompt, limit))
    return began, now(), said


@contextmanager
def workers(count: int, on: str) -> Iterator[Callable[..., object]]:
    """`submit` of so many workers. Threads read the same weights, processes each their own."""
    if on == "threads":
        with crew(count, "replica") as pool:
            yield pool.submit
    else:
        with process_crew(count, weights.smollm2) as pool:
            yield pool.submit


@experiment
def replicas(
    count: Annotated[int, Range(2, max(4, machine.cores()), label="replicas")] = 2,
    requests: Annotated[int, Range(2, 32)] = 4,
    tokens: Annotated[int, Range(2, 64, label="tokens an answer")] = 8,
    on: Literal["threads", "processes"] = "threads",
) -> Replicas:
    """Answer the same requests in three ways, each by as many workers as it says.

    Raises Cancelled, TimeoutError, or what a worker raised.
    """
    prompts = [[1, *range(100 + 40 * number, 132 + 40 * number)] for number in range(requests)]
    ways = {"one replica": (1, 1), "replicas": (count, 1), "one, more threads": (1, count)}
    weights.smollm2()
    found = {}
    for place, (name, (size, threads)) in enumerate(ways.items()):
        checkpoint(place, len(ways), name)
        with intra_op(threads), workers(size, on) as submit:
            gather([submit(answer, prompts[0], 1, threads) for _ in range(size)], timeout=DEADLINE)
            futures = [submit(answer, prompt, tokens, threads) for prompt in prompts]
            answers = gather(futures, timeout=DEADLINE)
        found[name] = Way(size, threads, _rows(answers, size), tuple(tuple(a[2]) for a in answers))
    return Replicas(found, on)


def _rows(answers: list[Answer], size: int) -> Trace:
    """Spans by lane: an answer stands in the first one that was free when it began."""
    recorder, free = Recorder(), dict.fromkeys(lanes(size, "replica"), 0)
    for number, (began, ended, _) in sorted(enumerate(answers), key=lambda entry: entry[1][0]):
        lane = min(free, key=lambda lane: (free[lane] > began, lane))
        free[lane] = ended
        recorder.add(lane, "decode", f"request {number}", began, ended)
    return recorder.trace()


def plot(result: Replicas) -> plots.Picture:
    """A timeline for each way, on one scale; a bar is a request."""
    rows = [way.workers for way in result.ways.values()]
    fig, axes = plots.figure(
        9, 1.5 + 0.75 * len(rows) + 0.3 * sum(rows), rows=len(rows), sharex=True, height_ratios=rows
    )
    until = 1.03 * max(way.trace.duration for way in result.ways.values())
    for ax, (name, way) in zip(axes, result.ways.items(), strict=True):
        plots.timeline(ax, way.trace, lanes=lanes(way.workers, "replica"), until=until)
        many = f"{way.workers} × {way.threads} torch thread{'s' * (way.threads > 1)}"
        figures = f"{way.latency:.2f} s a request, {way.throughput:.2f} requests/s"
        ax.set_title(f"{name} ({many}): {figures}", loc="left")
        ax.set_xlabel("seconds" if ax is axes[-1] else "")
    return fig
