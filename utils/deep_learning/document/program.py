"""The article's threaded training program in our words, and a ladder of variants that mend it.

Its idea: each batch is a task of a thread pool that zeroes the gradients, computes them and takes a
step; all tasks share one model, one optimizer and one `.grad` a parameter. `UNSAFE` variants may
corrupt the memory of their process, so `crash` runs them in processes of their own.

How often did a batch's gradient reach the parameters? A *tracer* tells: one more parameter, with an
element a step. The loss of step k contains element k, so its gradient is 1 there and 0 elsewhere;
it is shared, wiped and added to as all others are, and its learning rate is 1. After training,
minus the tracer counts: 1 is right, 0 lost, 2 twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import islice
from time import perf_counter

import psutil
import torch
from torch import Tensor, nn

from utils.core import machine, trace
from utils.core.experiment import checkpoint, gather
from utils.core.trace import Trace
from utils.core.workers import crew, intra_op
from utils.deep_learning import digits, models
from utils.deep_learning.digits import Digits
from utils.deep_learning.recipe import Recipe, loss_of
from utils.threads.primitives.mutex import Mutex

DEADLINE = 60.0  # seconds for anything that blocks


@dataclass(frozen=True)
class Settings:
    """Train on the first `samples` digits; `inside` is the size of each thread's torch team."""

    samples: int = 1000
    batch: int = 50
    epochs: int = 1
    workers: int = 4
    inside: int = machine.cores()  # torch's default is of that order; the article leaves it alone
    rate: float = 0.05
    seed: int = 0

    @property
    def steps(self) -> int:
        return self.epochs * -(-self.samples // self.batch)


class Job:
    """What a variant trains, and what is seen of it meanwhile."""

    def __init__(self, settings: Settings, dtype: torch.dtype = torch.float32) -> None:
        self.settings = settings
        self.train = digits.load()[0][: settings.samples].to(dtype)
        self.model = models.make("small", settings.seed, dtype)
        self.network: Callable[[Tensor], Tensor] = self.model
        self.tracer = nn.Parameter(torch.zeros(settings.steps, dtype=dtype))
        recipe = Recipe(settings.epochs, settings.batch, settings.rate, seed=settings.seed)
        self._indices = recipe.batches(settings.samples)
        self.optimizer = recipe.optimizer(self.model.parameters())
        counting = {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}
        self.optimizer.add_param_group({"params": [self.tracer], **counting})
        self.parameters = [*self.model.parameters(), self.tracer]
        # Many threads append to these lists; one append is atomic in CPython, GIL or not.
        self.order: list[int] = []  # steps in the order in which they were taken
        self.errors: list[str] = []
        self.ended: list[int] = []
        self.os_threads = [psutil.Process().num_threads()]
        self.made = self.held = 0  # batches made so far; most that were waiting or in use

    def batches(self) -> Iterator[tuple[int, Digits]]:
        """The batches of the next epoch with the numbers of their steps."""
        for which in islice(self._indices, self.settings.steps // self.settings.epochs):
            checkpoint(self.made, self.settings.steps, "steps")
            number, self.made = self.made, self.made + 1
            self.held = max(self.held, self.made - len(self.ended))
            yield number, self.train[which]

    def loss(self, number: int, batch: Digits) -> Tensor:
        return loss_of(self.network, batch) + self.tracer[number]

    def attempt(self, step: Step, number: int, batch: Digits) -> None:
        """Take a step, and note whether it failed."""
        torch.set_num_threads(self.settings.inside)  # a new thread has not been told
        try:
            step(self, number, batch)
        except Exception as error:
            self.errors.append(f"{type(error).__name__}: {error}")
        self.os_threads.append(psutil.Process().num_threads())
        self.ended.append(number)


Step = Callable[[Job, int, Digits], None]


def shared_step(job: Job, number: int, batch: Digits, set_to_none: bool = True) -> None:
    """The article's step. `.grad` belongs to the parameter: to all threads at once."""
    with trace.span("compute", f"step {number}"):
        job.optimizer.zero_grad(set_to_none)
        job.loss(number, batch).backward()
        job.optimizer.step()
        job.order.append(number)


def all_at_once(job: Job, step: Step) -> None:
    """The article's loop: a new pool each epoch, and all batches of the epoch submitted at once."""
    for _ in range(job.settings.epochs):
        with crew(job.settings.workers) as pool:
            futures = [pool.submit(job.attempt, step, *numbered) for numbered in job.batches()]
            gather(futures, timeout=DEADLINE)


def as_printed(job: Job) -> None:
    """`F` is used and never imported: no step gets beyond the first layer."""

    def forward(images: Tensor) -> Tensor:
        return F.relu(job.model.conv1(images))  # noqa: F821 - as in the article

    job.network = forward
    all_at_once(job, shared_step)


def import_mended(job: Job) -> None:
    """One model, one optimizer, one `.grad`, no lock."""
    all_at_once(job, shared_step)


def zeroed_in_place(job: Job) -> None:
    """Gradients are overwritten, never freed: the memory stays sound, the training does not."""
    for parameter in job.parameters:
        parameter.grad = torch.zeros_like(parameter)
    all_at_once(job, partial(shared_step, set_to_none=False))


def one_lock(job: Job) -> None:
    """The whole step is one critical section: every gradient counts once, one step at a time."""
    all_at_once(job, _locked())


def bounded_window(job: Job) -> None:
    """One pool for all epochs, and never more than two batches a worker under way."""
    step, window = _locked(), deque[Future[None]]()
    with crew(job.settings.workers) as pool:
        for _ in range(job.settings.epochs):
            for numbered in job.batches():
                if len(window) == 2 * job.settings.workers:
                    gather([window.popleft()], timeout=DEADLINE)
                window.append(pool.submit(job.attempt, step, *numbered))
        gather(window, timeout=DEADLINE)


def _locked() -> Step:
    mutex = Mutex(name="the model")  # must be held from zero_grad to the end of step

    def step(job: Job, number: int, batch: Digits) -> None:
        with mutex:
            shared_step(job, number, batch)

    return step


def own_gradients(job: Job) -> None:
    """Each thread computes the gradients of its part of *one* batch; then one step for all.

    Nobody writes parameters while others read them, and no gradient is shared.
    """
    with crew(job.settings.workers) as pool:
        for _ in range(job.settings.epochs):
            for number, batch in job.batches():
                parts = torch.arange(len(batch)).tensor_split(job.settings.workers)
                shares = [(batch[part], len(part) / len(batch)) for part in parts if len(part)]
                futures = [pool.submit(_gradients, job, number, *share) for share in shares]
                each = gather(futures, timeout=DEADLINE)
                with trace.span("communicate", f"step {number}", lane="main"):
                    for parameter, *grads in zip(job.parameters, *each, strict=True):
                        parameter.grad = torch.stack(grads).sum(0)
                    job.optimizer.step()
                job.order.append(number)
                job.ended.append(number)


def _gradients(job: Job, number: int, part: Digits, weight: float) -> tuple[Tensor, ...]:
    """The share of `part` in the gradient of its batch: `weight` is its share of the samples."""
    torch.set_num_threads(job.settings.inside)
    with trace.span("compute", f"step {number}"):
        grads = torch.autograd.grad(job.loss(number, part) * weight, job.parameters)
    job.os_threads.append(psutil.Process().num_threads())
    return grads


def serial(job: Job) -> None:
    """No pool: one step after the other, in this thread."""
    for _ in range(job.settings.epochs):
        for numbered in job.batches():
            job.attempt(shared_step, *numbered)


_SAFE = one_lock, bounded_window, own_gradients, serial
_UNSAFE = as_printed, zeroed_in_place, import_mended
VARIANTS = {variant.__name__.replace("_", " "): variant for variant in _UNSAFE + _SAFE}
UNSAFE = tuple(VARIANTS)[: len(_UNSAFE)]


@dataclass(frozen=True, eq=False)
class Report:
    """What came of a variant; `applied[k]`: how often batch k's gradient reached the parameters."""

    variant: str
    settings: Settings
    applied: tuple[float, ...]
    errors: tuple[str, ...]  # of the steps that failed
    accuracy: float  # on held-out digits, 0 to 1
    seconds: float
    held: int  # most batches in memory that were waiting or in use
    os_threads: int  # most threads of the process beyond those it had before
    order: tuple[int, ...]
    parameters: Tensor
    trace: Trace

    @property
    def sound(self) -> bool:
        """Whether every gradient was applied exactly once. If not, its time means nothing."""
        return not self.errors and set(self.applied) == {1}

    @property
    def rate(self) -> float | None:
        """Samples a second; None unless sound: who skips work is always fast."""
        samples = self.settings.epochs * self.settings.samples
        return samples / self.seconds if self.sound else None


def run(
    variant: str,
    settings: Settings,
    dtype: torch.dtype = torch.float32,
    expendable: bool = False,
) -> Report:
    """Train by `variant`. ValueError: unknown, or unsafe in a process that is not `expendable`."""
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r} is none: choose one of {', '.join(VARIANTS)}")
    if variant in UNSAFE and not expendable:
        raise ValueError(f"variant={variant!r} may corrupt this process: run it by crash.trial")
    with intra_op(settings.inside), trace.recording() as recorder:
        job = Job(settings, dtype)
        start = perf_counter()
        VARIANTS[variant](job)
        seconds = perf_counter() - start
    applied = tuple(round(-count, 3) for count in job.tracer.tolist())
    with intra_op(1):  # not timed, and too small to be worth a team
        accuracy = models.accuracy(job.model, digits.load()[1].to(dtype))
    threads = max(job.os_threads) - job.os_threads[0]
    flat = torch.cat([parameter.detach().flatten() for parameter in job.model.parameters()])
    seen = applied, tuple(job.errors), accuracy, seconds, job.held, threads, tuple(job.order)
    return Report(variant, settings, *seen, flat, recorder.trace())
