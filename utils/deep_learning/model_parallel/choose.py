"""Which way to share a model: what each costs in memory, in bytes and in time, by formula.

The model is a row of L equal linear layers with ReLU, w × w; a step learns from B samples. Numbers
have 4 bytes. What can be exchanged while the ranks compute is: gradients during the backward (data
parallel), parameters at any time (ZeRO), activations while the next micro-batch is worked on
(pipeline). Not so in tensor parallelism: the next layer needs the sum.

Sources: Rajbhandari et al., "ZeRO", 2020, sections 5 and 7; Shoeybi et al., "Megatron-LM", 2019;
Narayanan et al., 2021, section 3; Thakur et al., 2005, for α + nβ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.deep_learning.model_parallel.schedules import one_f_one_b
from utils.deep_learning.model_parallel.simulate import simulate

STATE = 3  # numbers a parameter: itself, its gradient, its momentum (Adam: 4)
BYTES = 4


@dataclass(frozen=True)
class Job:
    """What is trained, and on what: `workers` with `rate` FLOP/s each, and links between them.

    A message of n bytes takes `latency` + n / `bandwidth` seconds.
    """

    width: int
    layers: int
    batch: int
    workers: int
    rate: float
    bandwidth: float
    latency: float
    micro: int = 8

    @property
    def parameters(self) -> int:
        return self.layers * (self.width + 1) * self.width

    @property
    def activations(self) -> int:
        """Numbers kept for the backward: what comes out of each layer's ReLU, for each sample."""
        return self.batch * self.layers * self.width

    @property
    def computing(self) -> float:
        """Seconds of one worker alone: 2 FLOP a weight and sample forward, 4 backward."""
        return 6 * self.layers * self.width**2 * self.batch / self.rate

    @property
    def around(self) -> float:
        """(N−1)/N: the share of a tensor that a rank sends in a reduce-scatter or all-gather."""
        return (self.workers - 1) / self.workers


@dataclass(frozen=True)
class Cost:
    """Of the worker that has most: bytes held, bytes sent a step; and seconds a step."""

    memory: float
    sent: float
    seconds: float


def alone(job: Job) -> Cost:
    """One worker does everything."""
    return Cost(BYTES * (STATE * job.parameters + job.activations), 0, job.computing)


def data_parallel(job: Job) -> Cost:
    """All of the model everywhere, a part of the batch each, one all-reduce of the gradients."""
    sent = 2 * job.around * BYTES * job.parameters
    memory = BYTES * (STATE * job.parameters + job.activations / job.workers)
    return _cost(job, memory, sent, 2 * (job.workers - 1), meanwhile=2 / 3)


def zero(job: Job) -> Cost:
    """ZeRO stage 3: 1/N of all state; each layer's parameters are gathered twice when needed."""
    sent = 3 * job.around * BYTES * job.parameters
    one_layer = job.parameters / job.layers
    state = STATE * job.parameters / job.workers + one_layer
    memory = BYTES * (state + job.activations / job.workers)
    return _cost(job, memory, sent, 3 * (job.workers - 1) * job.layers, meanwhile=1)


def tensor(job: Job) -> Cost:
    """A part of each layer, in pairs by columns and rows; activations are added up.

    One all-reduce a pair forward and one backward; the first pair's input needs no gradient.
    Only what is between the two layers of a pair is shared out, and the second's bias is not.
    """
    pairs, share = job.layers / 2, 1 / job.workers
    parameters = job.parameters * share + pairs * job.width * (1 - share)
    activations = job.activations * (1 + share) / 2
    sent = (2 * pairs - 1) * 2 * job.around * BYTES * job.batch * job.width
    memory = BYTES * (STATE * parameters + activations)
    return _cost(job, memory, sent, (2 * pairs - 1) * 2 * (job.workers - 1))


def pipeline(job: Job) -> Cost:
    """Some layers each, by 1F1B; activations to the next rank and their gradients back."""
    p, m = job.workers, job.micro
    held = job.activations / p * min(p, m) / m
    one = BYTES * job.batch * job.width  # one boundary, one way
    forward = job.computing / 3 / p / m
    seconds = {"F": forward, "B": 2 * forward}
    hop = job.latency + one / m / job.bandwidth
    run = simulate(one_f_one_b(p, m), lambda action: seconds[action.kind], hop)
    return Cost(
        BYTES * (STATE * job.parameters / p + held), one * min(p - 1, 2), run.trace.duration
    )


def _cost(job: Job, memory: float, sent: float, messages: float, meanwhile: float = 0) -> Cost:
    """`meanwhile`: the share of the computing during which messages can travel."""
    computing = job.computing / job.workers
    communicating = sent / job.bandwidth + messages * job.latency
    return Cost(memory, sent, computing + max(0, communicating - meanwhile * computing))


STRATEGIES: dict[str, Callable[[Job], Cost]] = {
    "alone": alone,
    "data": data_parallel,
    "ZeRO": zero,
    "tensor": tensor,
    "pipeline": pipeline,
}

WIDTHS = (256, 1024, 4096, 8192, 16384)
BATCHES = (8, 128, 2048, 32768)


@dataclass(frozen=True)
class Choice:
    """`costs[row][column]` of each strategy for that batch and that width; memory in bytes."""

    memory: float
    costs: tuple[tuple[dict[str, Cost], ...], ...]

    def best(self, row: int, column: int) -> str | None:
        """The fastest whose memory suffices; None if no memory does."""
        costs = self.costs[row][column]
        fits = [name for name, cost in costs.items() if cost.memory <= self.memory]
        return min(fits, key=lambda name: costs[name].seconds, default=None)


@experiment
def choose(
    workers: Annotated[int, Range(2, 64)] = 8,
    memory: Annotated[float, Range(1, 192, label="GB a worker")] = 16,
    bandwidth: Annotated[float, Range(0.5, 400, 0.5, label="GB/s a link")] = 10,
    latency: Annotated[float, Range(1, 200, label="µs a message")] = 10,
    rate: Annotated[float, Range(0.1, 200, 0.1, label="TFLOP/s a worker")] = 10,
) -> Choice:
    """16 layers of several widths, batches of several sizes; a pipeline has at most 16 workers."""
    table = []
    for batch in BATCHES:
        checkpoint()
        table.append([])
        for width in WIDTHS:
            job = Job(width, 16, batch, workers, rate * 1e12, bandwidth * 1e9, latency / 1e6)
            costs = {
                name: function(job)
                for name, function in STRATEGIES.items()
                if name != "pipeline" or workers <= job.layers
            }
            table[-1].append(costs)
    return Choice(memory * 1e9, tuple(map(tuple, table)))


def plot(result: Choice) -> plots.Picture:
    """The best strategy, how many times as fast as one worker it is, and which others fit."""
    fig, ax = plots.figure(10, 4.2)
    values, texts = [], []
    for row, costs_of_row in enumerate(result.costs):
        values.append([])
        texts.append([])
        for column, costs in enumerate(costs_of_row):
            best = result.best(row, column)
            faster = costs["alone"].seconds / costs[best].seconds if best else 0
            values[-1].append(faster)
            if best is None:
                texts[-1].append("nothing fits")
                continue
            more = [name for name in costs if name != best and costs[name].memory <= result.memory]
            texts[-1].append(f"{best}  × {faster:.1f}" + ("" if more else "\nonly this fits"))
    top = max(2.0, *(max(row) for row in values))
    rows, columns = [f"batch {b}" for b in BATCHES], [_size(width) for width in WIDTHS]
    plots.heat_map(ax, values, texts, rows, columns, top=top)
    ax.set_xlabel("16 layers of this width (parameters; memory of one worker alone, batch 8)")
    ax.set_title("fastest way that fits into memory, × one worker's speed", loc="left")
    return fig


def _size(width: int) -> str:
    job = Job(width, 16, BATCHES[0], 1, 1, 1, 0)
    exponent = math.floor(math.log10(job.parameters))
    unit, scale = ("G", 1e9) if exponent >= 9 else ("M", 1e6)
    return f"{width}\n({job.parameters / scale:.3g} {unit}; {alone(job).memory / 1e9:.2g} GB)"
