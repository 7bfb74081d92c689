"""One worker against several on the same work: the contest that four of the five areas run.

The two teams take turns (one, many, one, many, …), so that a machine whose speed drifts slows
both. Threads are what is compared here: NumPy and torch release the global interpreter lock
inside their kernels, so threads can use several cores there, and only there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from matplotlib.axes import Axes

from utils.core import machine, plots
from utils.core.bench import Sample, once
from utils.core.experiment import gather
from utils.core.trace import Recorder, Trace
from utils.core.workers import crew

T = TypeVar("T")
R = TypeVar("R")

_DEADLINE = 60.0  # seconds for one round: a hundred times what it takes


class Team:
    """The workers of one run: spreads tasks over them and records who did which."""

    def __init__(self, workers: int, pool: ThreadPoolExecutor, maps: int) -> None:
        self.workers = workers
        self.recorder = Recorder()
        self._pool = pool
        self._maps = maps  # calls of `map` that this run and all others will make together
        self._done = 0

    def start(self, done: int) -> None:
        """Begin a run with an empty trace, `done` calls of `map` into the contest."""
        self.recorder, self._done = Recorder(), done

    def map(self, job: Callable[[T], R], tasks: Sequence[T], name: str = "") -> list[R]:
        """`job(task)` of each task in order; a free worker takes the next one."""

        def timed(task: T) -> R:
            with self.recorder.span("compute", name):
                return job(task)

        futures = [self._pool.submit(timed, task) for task in tasks]
        results = gather(
            futures,
            timeout=_DEADLINE,
            note=f"{self.workers} worker{'s' * (self.workers > 1)}",
            before=self._done * len(tasks),
            total=self._maps * len(tasks),
        )
        self._done += 1
        return results


@dataclass(frozen=True)
class Contest:
    """Seconds that one worker and `workers` took for the same `items`, in alternating rounds."""

    workers: int
    items: int
    unit: str
    one: Sample
    many: Sample
    trace: Trace  # the last round of all the workers

    @property
    def rate_one(self) -> float:
        """Items per second of one worker (median round)."""
        return self.items / self.one.median

    @property
    def rate(self) -> float:
        """Items per second of all workers (median round)."""
        return self.items / self.many.median

    @property
    def theory(self) -> float:
        """Items per second if every worker had a core of its own, as far as there are cores."""
        return min(self.workers, machine.cores()) * self.rate_one

    @property
    def speedup(self) -> float:
        """How many times one worker's rate all of them reach."""
        return self.rate / self.rate_one


def contest(
    work: Callable[[Team], R],
    workers: int,
    *,
    items: int,
    unit: str,
    rounds: int = 3,
    maps: int = 1,
) -> tuple[Contest, R, R]:
    """Run `work` on one worker and on `workers`, in turns after a warm-up round.

    `work` calls `Team.map` `maps` times and handles `items` things called `unit`. Returns the
    contest and what the last run of one worker and of all workers returned.
    """
    sizes = dict.fromkeys((1, workers))  # one worker contests nobody
    total = len(sizes) * (1 + rounds) * maps
    taken: dict[int, list[float]] = {size: [] for size in sizes}
    outcome: dict[int, R] = {}
    with ExitStack() as stack:
        teams = [Team(size, stack.enter_context(crew(size)), total) for size in sizes]
        turns = [(round_, team) for round_ in range(1 + rounds) for team in teams]
        for turn, (round_, team) in enumerate(turns):
            team.start(turn * maps)

            def run(team: Team = team) -> None:
                outcome[team.workers] = work(team)

            seconds = once(run)
            if round_ > 0:
                taken[team.workers].append(seconds)
        trace = teams[-1].recorder.trace()
    one, many = Sample(tuple(taken[1])), Sample(tuple(taken[workers]))
    return Contest(workers, items, unit, one, many, trace), outcome[1], outcome[workers]


def draw_rates(ax: Axes, contest: Contest) -> Axes:
    """Bars: items per second of one worker and of all, each round a dot, theory a line."""
    teams: dict[str, tuple[Sample, Any]] = {"1 worker": (contest.one, plots.PAPER_GREY)}
    if contest.workers > 1:
        teams[f"{contest.workers} workers"] = (contest.many, plots.color("measured"))
    for column, (sample, colour) in enumerate(teams.values()):
        rate = contest.items / sample.median
        ax.bar(column, rate, width=0.62, color=colour)
        dots = [contest.items / seconds for seconds in sample.values]
        ax.plot([column] * len(dots), dots, ".", color=plots.INK, markersize=4)
        ax.text(
            column, rate / 2, f"{rate:,.0f}", ha="center", va="center", fontsize=9,
            color="white" if column else plots.INK,
        )  # fmt: skip
    cores = min(contest.workers, machine.cores())
    ax.axhline(contest.theory, color=plots.color("theory"), linestyle="--", linewidth=1.3)
    ax.text(
        0.99, contest.theory, f"theory: {cores} × one worker ", ha="right", va="bottom", fontsize=8,
        color=plots.GREY, transform=ax.get_yaxis_transform(),
    )  # fmt: skip
    ax.set_xticks(range(len(teams)), list(teams))
    ax.set_xlim(-0.6, len(teams) - 0.4)
    ax.set_ylim(
        0, 1.18 * max(contest.theory, contest.items / min(contest.one.values + contest.many.values))
    )
    speedup = f": {contest.speedup:.2f} × as fast" if contest.workers > 1 else ""
    ax.set_title(f"{contest.unit}/s{speedup}", loc="left")
    return ax
