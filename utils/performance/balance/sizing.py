"""How many workers a pool should have: by a rule, by measurement, and by a pool that finds out.

A task that waits W seconds and computes C seconds keeps a core busy for a share C / (W + C) of its
time, so it takes cores × (1 + W / C) workers to keep all cores busy (Goetz et al., "Java
Concurrency in Practice", 2006, section 8.2). Fewer workers do workers / (W + C) tasks a second, and
no number of them does more than cores / C.

Who doesn't know W and C can measure throughput and climb: try another size, keep it if it pays
(J. Hellerstein, V. Morrison, E. Eilebrecht, "Optimizing Concurrency Levels in the .NET ThreadPool:
A Case Study of Controller Design and Implementation", FeBID 2008; theirs estimates a slope, ours
only compares). Throughput is noisy, and flat above the best size: a climber needs a margin.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

from utils.core import bench, machine, plots
from utils.core.experiment import Range, checkpoint, experiment, gather
from utils.core.workers import crew
from utils.performance import work
from utils.threads.primitives.condition import Condition

MOST = 4 * max(2, machine.cores())  # workers
SECONDS = 0.07  # of one measurement
SAMPLES = 48  # of a climb, half of them before the work changes
PROBE = 2**19  # bytes to hash
NOISE = 0.03  # standard deviation of throughput on the virtual clock
DEADLINE = 30.0  # seconds for anything that blocks


def rule(cores: int, wait: float, compute: float) -> float:
    """Workers that keep `cores` busy with tasks of `wait` and `compute` seconds."""
    return cores * (1 + wait / compute)


def bound(workers: int, cores: int, wait: float, compute: float) -> float:
    """Tasks a second that so many workers can do at most."""
    return min(workers / (wait + compute), cores / compute)


# ------------------------------------------------------------------------ the climbing policy
def climb(low: int, high: int, margin: float = 0.1) -> Generator[int, float, None]:
    """Yields how many workers to use next, and is sent the throughput they had.

    A larger pool must be better by `margin`, a smaller one may be worse by as much, so that noise
    moves nothing (hysteresis) and a flat top ends at its left edge.
    """
    if not 1 <= low <= high:
        raise ValueError(f"low={low}, high={high}: give 1 <= low <= high")
    if not 0 < margin < 1:
        raise ValueError(f"margin={margin!r} is not allowed: give more than 0 and less than 1")
    best = low
    while True:  # once for each kind of work
        level = yield best  # the throughput to beat
        while best < high:  # double while that pays
            size = min(high, 2 * best)
            rate = yield size
            if rate <= level * (1 + margin):
                break
            best, level = size, rate
        step = max(1, best // 2)
        while step:  # then look on both sides, nearer and nearer
            for size in (best + step, best - step):
                if low <= size <= high:
                    rate = yield size
                    if rate > level * (1 + margin if size > best else 1 - margin):
                        # The level never falls: many small losses would add up.
                        best, level = size, max(level, rate)
                        break
            else:
                step //= 2
        surprises = 0
        while surprises < 2:  # settled; twice far off in a row: this is another kind of work
            rate = yield best
            surprises = surprises + 1 if abs(rate / level - 1) > 2 * margin else 0


# ------------------------------------------------------------------- real and virtual workers
Throughput = Callable[[int, float], float]  # workers, seconds a task waits -> tasks a second


@contextmanager
def real(most: int, compute: float) -> Iterator[Throughput]:
    """Measure with up to `most` threads, whose tasks sleep, and hash for `compute` seconds."""
    # The best of many short tries: other programs only ever take away.
    taken = min(bench.once(lambda: work.hash_bytes(PROBE)) for _ in range(20))
    amount = round(compute / taken * PROBE)
    # changed must be held whenever size or wait changes.
    changed = Condition(name="size")
    size, wait = 0, 0.0
    done = [0] * most  # by worker: each writes its own place only

    def run(number: int) -> None:
        while size >= 0:
            if number < size:
                time.sleep(wait)
                work.hash_bytes(amount)
                done[number] += 1
            else:
                with changed:
                    changed.wait_for(lambda: number < size or size < 0, DEADLINE)

    def set_size(new_size: int, new_wait: float = 0.0) -> None:
        nonlocal size, wait
        with changed:
            size, wait = new_size, new_wait
            changed.notify_all()

    def measure(workers: int, wait: float) -> float:
        set_size(workers, wait)
        time.sleep(wait + compute)  # until the new ones are under way and the others have stopped
        before, start = sum(done), time.perf_counter()
        time.sleep(SECONDS)
        return (sum(done) - before) / (time.perf_counter() - start)

    with crew(most) as pool:
        futures = [pool.submit(run, number) for number in range(most)]
        try:
            yield measure
        finally:
            set_size(-1)
            gather(futures, timeout=DEADLINE)


@contextmanager
def virtual(cores: int, compute: float) -> Iterator[Throughput]:
    """What the bound says, with some noise."""
    chance = random.Random(0)
    yield lambda workers, wait: bound(workers, cores, wait, compute) * chance.gauss(1, NOISE)


# ------------------------------------------------------------------------------- experiments
@dataclass(frozen=True)
class Sizes:
    """Tasks a second over the number of workers."""

    cores: int
    wait: float  # seconds of a task
    compute: float
    rates: dict[int, float]


@experiment
def try_sizes(
    wait_ms: Annotated[float, Range(0, 30, label="ms a task waits")] = 4,
    compute_ms: Annotated[float, Range(1, 10, label="ms it computes")] = 2,
) -> Sizes:
    """Measure the throughput of pools of 1 to `MOST` workers."""
    cores, wait, compute = machine.cores(), wait_ms / 1e3, compute_ms / 1e3
    rates = dict.fromkeys(sorted({1, *range(cores, MOST + 1, cores)}), 0.0)
    with real(MOST, compute) as throughput:
        for round_ in range(2):
            for done, workers in enumerate(rates):
                checkpoint(round_ * len(rates) + done, 2 * len(rates), f"{workers} workers")
                rates[workers] = max(rates[workers], throughput(workers, wait))
    return Sizes(cores, wait, compute, rates)


def plot_sizes(result: Sizes) -> plots.Picture:
    """Throughput over pool size, and the bound, whose corner is the rule's size."""
    fig, ax = plots.figure(6.5, 3.2)
    work_ = result.cores, result.wait, result.compute
    corner = rule(*work_)
    ends = sorted({1, MOST, min(corner, MOST)})
    theory = [min(size / (result.wait + result.compute), bound(MOST, *work_)) for size in ends]
    ax.plot(ends, theory, "--", color=plots.color("theory"), label="at most")
    measured = plots.color("measured")
    ax.plot(list(result.rates), list(result.rates.values()), "o-", color=measured, label="measured")
    text = f"cores × (1 + wait / compute) = {corner:.3g}"
    if corner <= MOST:
        ax.axvline(corner, color=plots.ORANGE, linewidth=6, alpha=0.25, label=text)
    else:
        text += ", further right"
    ax.set_title("tasks a second" if corner <= MOST else f"tasks a second; {text}", loc="left")
    ax.set_xticks(list(result.rates))
    ax.set_ylim(bottom=0)
    ax.set_xlabel("workers", fontsize=9)
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    return fig


@dataclass(frozen=True)
class Climb:
    """Pool size and tasks a second, sample by sample; the work changes at half time."""

    clock: str
    cores: int
    waits: tuple[float, ...]  # seconds a task waits, at each sample
    compute: float
    sizes: tuple[int, ...]
    rates: tuple[float, ...]

    @property
    def rules(self) -> list[float]:
        """What the rule says at each sample, within what is allowed."""
        return [min(MOST, rule(self.cores, wait, self.compute)) for wait in self.waits]


@experiment
def adapt(
    clock: Literal["virtual", "real"] = "virtual",
    wait_ms: Annotated[float, Range(0, 30, label="ms a task waits")] = 2,
    later_ms: Annotated[float, Range(0, 30, label="ms it waits later")] = 6,
    compute_ms: Annotated[float, Range(1, 10, label="ms it computes")] = 2,
) -> Climb:
    """Let a pool find its size; at half time the tasks change."""
    cores, compute = machine.cores(), compute_ms / 1e3
    waits = [ms / 1e3 for ms in (wait_ms, later_ms) for _ in range(SAMPLES // 2)]
    sizes: list[int] = []
    rates: list[float] = []
    climber = climb(1, MOST)
    with real(MOST, compute) if clock == "real" else virtual(cores, compute) as throughput:
        size = next(climber)
        for wait in waits:
            checkpoint(len(sizes), SAMPLES, f"{size} workers")
            sizes.append(size)
            rates.append(throughput(size, wait))
            size = climber.send(rates[-1])
    return Climb(clock, cores, tuple(waits), compute, tuple(sizes), tuple(rates))


def plot_adapt(result: Climb) -> plots.Picture:
    """Pool size and throughput over time, beside what the rule and the bound say."""
    fig, (size, rate) = plots.figure(9, 3, cols=2)
    steps = range(1, SAMPLES + 1)
    theory, measured = plots.color("theory"), plots.color("measured")
    size.step(steps, result.rules, "--", where="mid", color=theory, label="rule")
    size.step(steps, result.sizes, where="mid", color=measured, label="the pool's size")
    most = [bound(MOST, result.cores, wait, result.compute) for wait in result.waits]
    rate.step(steps, most, "--", where="mid", color=theory, label="at most")
    rate.step(steps, result.rates, where="mid", color=measured, label="measured")
    for ax, title in ((size, f"workers ({result.clock} clock)"), (rate, "tasks a second")):
        ax.set_title(title, loc="left")
        ax.set_ylim(bottom=0)
        ax.axvline(SAMPLES / 2 + 0.5, color=plots.ORANGE, linewidth=1)
        ax.set_xlabel("sample (orange line: the tasks change)", fontsize=9)
        ax.legend(frameon=False, fontsize=9, loc="lower right")
    return fig
