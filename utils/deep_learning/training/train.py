"""`train`: one model, many ways. Everything a strategy needs is started here, and ended here."""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from utils.core.experiment import checkpoint as progress
from utils.core.experiment import current
from utils.core.trace import Trace
from utils.deep_learning import digits, models
from utils.deep_learning.collectives.group import Group
from utils.deep_learning.collectives.launch import On, RankFailed, launch
from utils.deep_learning.digits import Digits
from utils.deep_learning.recipe import Recipe
from utils.deep_learning.training.data_parallel import Accumulation, DataParallel, Overlapped
from utils.deep_learning.training.hogwild import Hogwild
from utils.deep_learning.training.job import Entry, Job, Log, losses, samples_per_second
from utils.deep_learning.training.local_sgd import LocalSGD
from utils.deep_learning.training.parameter_server import AsynchronousServer, ParameterServer
from utils.deep_learning.training.strategy import IntraOp, Serial, Strategy
from utils.deep_learning.training.torch_native import DDP, FSDP
from utils.deep_learning.training.zero import Zero

STRATEGIES: Mapping[str, type[Strategy]] = {
    "serial": Serial,
    "intra-op": IntraOp,
    "data parallel": DataParallel,
    "overlapped": Overlapped,
    "accumulation": Accumulation,
    "parameter server": ParameterServer,
    "asynchronous server": AsynchronousServer,
    "hogwild": Hogwild,
    "local sgd": LocalSGD,
    "zero": Zero,
    "ddp": DDP,
    "fsdp": FSDP,
}


@dataclass(frozen=True)
class TrainResult:
    """What came out: of all steps, or of those before a failure."""

    strategy: str
    model: str
    workers: int
    on: On
    losses: tuple[float, ...] = ()  # mean of each batch, from the first step of this run
    samples_per_second: float = math.nan  # without starting, and without the first steps
    bytes_sent: tuple[int | None, ...] = ()  # payload, by each rank; None: not counted
    state_bytes: tuple[int, ...] = ()  # what the optimiser keeps, on each rank
    staleness: tuple[int, ...] = ()  # of each update of an asynchronous server
    trace: Trace = field(default_factory=Trace, repr=False)
    state: Mapping[str, Tensor] | None = field(default=None, repr=False)  # the parameters, by name

    @cached_property
    def accuracy(self) -> float:
        """Share of the held-out digits named rightly, 0 to 1; nan if training did not end."""
        if self.state is None:
            return math.nan
        model = models.make(self.model)
        model.load_state_dict(self.state)
        return models.accuracy(model, digits.load()[1])


class TrainingFailed(RuntimeError):
    """A rank failed or died; all others were ended. `partial` is what was reported until then."""

    def __init__(self, reason: str, partial: TrainResult) -> None:
        super().__init__(f"{reason} ({len(partial.losses)} steps were done)")
        self.partial = partial


@dataclass(frozen=True)
class Finished:
    """What a rank hands back. Rank 0's state stands for all: they agree, or it is the server."""

    entries: list[Entry]
    bytes_sent: int | None
    state_bytes: int
    staleness: list[int]
    state: Mapping[str, Tensor] | None


def train(
    strategy: str = "data parallel",
    model: str = "small",
    workers: int = 2,
    *,
    recipe: Recipe | None = None,
    data: Digits | None = None,
    on: On = "processes",
    steps: int | None = None,
    weights: Sequence[float] | None = None,
    micro_batches: int = 4,
    local_steps: int = 8,
    checkpoint: Path | str | None = None,
    save_every: int = 50,
    deadline: float = 60,
) -> TrainResult:
    """Train `model` from its seed by one of `STRATEGIES`, on `data` (the 4000 digits).

    `steps` ends before the recipe's last epoch does. `weights`: how much of each batch every worker
    takes (equal parts). `micro_batches` is for "accumulation", `local_steps` for "local sgd". A
    `checkpoint` is written every `save_every` steps, and continued from if it is there already.
    `deadline`: seconds that one rank waits for another.

    ValueError: a name or number that is not allowed. TrainingFailed: see there. Cancelled.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r} is unknown: choose one of {', '.join(STRATEGIES)}")
    kind = STRATEGIES[strategy]
    if on not in kind.on:
        raise ValueError(f"on={on!r} is not possible with {strategy!r}: it needs {kind.on[0]}")
    if checkpoint is not None and not kind.resumable:
        raise ValueError(
            f"checkpoint={checkpoint}: with {strategy!r} no rank holds the whole state"
        )
    ranks, threads = kind.layout(workers)
    with tempfile.TemporaryDirectory(prefix="training-", ignore_cleanup_errors=True) as scratch:
        job = Job(
            model=model,
            workers=min(workers, ranks),  # alone, whatever the number
            recipe=recipe or Recipe(),
            data=data,
            steps=steps,
            weights=weights,
            micro_batches=micro_batches,
            local_steps=local_steps,
            checkpoint=Path(checkpoint) if checkpoint else None,
            save_every=save_every,
            scratch=Path(scratch),
        )
        about = partial(TrainResult, strategy, model, workers, on)
        return _launch(kind, job, ranks, about, on=on, threads=threads, deadline=deadline)


def _launch(
    kind: type[Strategy],
    job: Job,
    ranks: int,
    about: Callable[..., TrainResult],
    on: On,
    **options: Any,
) -> TrainResult:
    reported: list[list[Entry]] = [[] for _ in range(ranks)]

    def hear(rank: int, new: list[Entry]) -> None:
        reported[rank] += new
        progress(max(entry.step for entry in new) + 1, job.end, "training")

    stopped, fail = _signals(on)
    try:
        outcome = launch(run_rank, ranks, kind, job, stopped, fail, on=on, hear=hear, **options)
    except RankFailed as error:
        raise TrainingFailed(str(error), about(**_learnt(job, reported))) from error
    done: tuple[Finished, ...] = outcome.results
    return about(
        **_learnt(job, [rank.entries for rank in done]),
        bytes_sent=tuple(rank.bytes_sent for rank in done),
        state_bytes=tuple(rank.state_bytes for rank in done),
        staleness=tuple(done[0].staleness),
        trace=outcome.trace,
        state=done[0].state,
    )


def _signals(on: On) -> tuple[Callable[[], object], Callable[[], object]]:
    """How a rank asks whether to stop, and tells that it failed.

    Processes are ended from outside. A thread cannot be: it has to ask.
    """
    if on == "processes":
        return bool, bool  # always False
    cancelled, failed = current().stopped, threading.Event()
    return lambda: cancelled.is_set() or failed.is_set(), failed.set


def _learnt(job: Job, ranks: Sequence[Sequence[Entry]]) -> dict[str, Any]:
    entries = [entry for rank in ranks for entry in rank]
    return {"losses": losses(entries, job.sizes), "samples_per_second": samples_per_second(ranks)}


def run_rank(
    group: Group,
    kind: type[Strategy],
    job: Job,
    stopped: Callable[[], object] = bool,
    fail: Callable[[], object] = bool,
) -> Finished:
    """Be one rank of a training: what `launch` and torchrun call."""
    log = Log(group)
    strategy = kind(group, job.new_model(), job)
    try:
        strategy.run(log, stopped)
        state = strategy.state()  # together: where it is divided, all must give their part
    except BaseException:
        fail()
        raise
    finally:
        strategy.close()
        log.report()
    return Finished(
        log.entries,
        strategy.bytes_sent(),
        strategy.state_bytes(),
        strategy.staleness,
        state if group.rank == 0 else None,
    )
