"""The same requests in static batches and in a continuous one: who waits for whom.

In a static batch all start together, and a place stays empty from the end of its answer to the end
of the longest. In a continuous one the next request takes the place in the very next step.

Source: Yu et al., "Orca: A Distributed Serving System for Transformer-Based Generative Models",
OSDI 2022 (iteration-level scheduling).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from collections.abc import Sequence as Row
from dataclasses import dataclass
from statistics import mean
from typing import Annotated

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.core.trace import Recorder, Trace, now
from utils.llm import weights
from utils.llm_concurrency.batching import drive
from utils.llm_concurrency.engine import metrics
from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.core import Core, ModelRunner, Runner
from utils.llm_concurrency.engine.metrics import Served
from utils.llm_concurrency.engine.model import PagedModel
from utils.llm_concurrency.engine.policies import FirstCome, Static
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.scheduler import Scheduler
from utils.llm_concurrency.parallel.prompts import prompts
from utils.llm_concurrency.scheduling.virtual import Cost, VirtualRunner

POLICIES: dict[str, Callable[[int], FirstCome]] = {
    "static": Static,
    "continuous": lambda slots: FirstCome(),
}
SIZE = 16  # tokens of a block


@dataclass(frozen=True)
class Batched:
    """One run; `works` counts who had a place in which step."""

    slots: int
    steps: int
    works: int
    trace: Trace
    served: list[Served]
    answers: list[list[int]]

    @property
    def utilisation(self) -> float:
        """Share of the places, over all steps, at which somebody was computed."""
        return self.works / (self.steps * self.slots)


@dataclass(frozen=True)
class Race:
    """The same requests, by policy."""

    runs: dict[str, Batched]


def make_requests(count: int, longest: int, seed: int, *, sort: bool = False) -> list[Request]:
    """Short questions; answers of 2 to `longest` tokens, many short and few long."""
    dice = random.Random(seed)
    limits = [round(2 * (longest / 2) ** dice.random()) for _ in range(count)]
    made = [
        Request(tuple(prompt[-16:]), limit, ignore_end=True)
        for prompt, limit in zip(prompts(count), limits, strict=True)
    ]
    return sorted(made, key=lambda request: request.limit) if sort else made


def blocks_for(requests: Row[Request], slots: int) -> int:
    """Memory with which nobody ever waits for memory."""
    return slots * max(-(-request.length // SIZE) for request in requests)


def serve(
    runner: Runner,
    policy: FirstCome,
    requests: Row[Request],
    slots: int,
    clock: Callable[[], int] = now,
) -> Batched:
    """All requests, there from the start, by a model with `blocks_for` them."""
    recorder = Recorder()
    pool = BlockPool(blocks_for(requests, slots), SIZE, share=False)
    scheduler = Scheduler(pool, policy, slots=slots)
    core = Core(runner, scheduler, clock=clock, recorder=recorder)
    everybody = drive.serve(core, requests)
    trace = recorder.trace()
    works = sum(span.category != "queue" for span in trace.spans)
    served = [Served.of_sequence(one) for one in everybody]
    return Batched(slots, core.steps, works, trace, served, [one.generated for one in everybody])


def count(policy: str, requests: Row[Request], slots: int) -> Batched:
    """The same without a model: the engine's own schedule, in which a step takes a second."""
    runner = VirtualRunner(Cost(base=1, token=0))
    return serve(runner, POLICIES[policy](slots), requests, slots, clock=lambda: runner.time)


@experiment
def run(
    requests: Annotated[int, Range(2, 24)] = 12,
    longest: Annotated[int, Range(4, 64, 2, label="longest answer")] = 20,
    slots: Annotated[int, Range(1, 12)] = 4,
    sort: bool = False,
    seed: Annotated[int, Range(0, 99)] = 8,
) -> Race:
    """The real model, the same requests under both policies."""
    asked = make_requests(requests, longest, seed, sort=sort)
    model = PagedModel(weights.smollm2(), blocks_for(asked, slots), SIZE)
    runs = {
        name: serve(ModelRunner(model), policy(slots), asked, slots)
        for name, policy in POLICIES.items()
    }
    return Race(runs)


def plot(result: Race) -> plots.Picture:
    """A row a request, both runs on one scale."""
    rows = len(next(iter(result.runs.values())).served)
    fig, axes = plots.figure(10.5, 1.6 + 0.2 * rows, cols=2, sharey=True)
    until = 1.02 * max(run.trace.duration for run in result.runs.values())
    lanes = [f"request {number}" for number in range(rows)]
    for ax, (name, run) in zip(axes, result.runs.items(), strict=True):
        took = metrics.e2el(run.served)
        title = f"{name}: {run.steps} steps, {100 * run.utilisation:.0f} % of the places used\n"
        title += f"end to end: mean {mean(took):.2g} s, P99 {metrics.percentile(took, 99):.2g} s"
        plots.timeline(ax, run.trace, lanes=lanes, title=title, until=until)
    names = {"queue": "waits for a place", "prefill": "reads the prompt", "decode": "a token a bar"}
    plots.legend(fig, list(names), names)
    return fig
