"""Try a program under every schedule with few preemptions, then under random ones.

A *preemption* takes the turn from a thread that could go on. Most bugs need one or two (Musuvathi &
Qadeer, "Iterative Context Bounding for Systematic Testing of Multithreaded Programs", PLDI 2007),
so schedules are tried in order of their preemptions: all with none, all with one, and so on. A
thread that blocks or ends hands over for free. What is found first therefore needs the fewest.

The search keeps no states: a schedule is a list of choices, run again from the program's start. A
program must therefore make all its state afresh and do the same under the same schedule.
"""

from __future__ import annotations

import random as randomness
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import TypedDict

from utils.core.experiment import checkpoint
from utils.threads.schedules.crew import Crew
from utils.threads.schedules.execution import Execution, Strategy
from utils.threads.schedules.probe import Probe
from utils.threads.schedules.races import Point
from utils.threads.schedules.report import (
    Found,
    Recording,
    Report,
    default,
    fits,
    strategy_of,
    turns,
)
from utils.threads.schedules.standins import followed, installed
from utils.threads.schedules.tasks import Diverged, Option, Stuck

_PATIENCE = 2.0  # s that a thread may be away before it counts as stuck
_OPERATIONS = 1_500  # steps of a run before everybody goes on in turn
_SHORTER = 60  # schedules tried after the first failure, in search of a shorter one

Program = Callable[[], object]
Prefix = list[tuple[list[Option], Option]]  # of a schedule: the options, and the one to choose


class Ground(TypedDict):
    """What all runs of an exploration stand on."""

    crew: Crew
    probe: Probe


def check(
    program: Program,
    *,
    preemptions: int = 2,
    seconds: float = 10.0,
    operations: int = _OPERATIONS,
    random: int = 100,
    seed: int = 0,
    reduce: bool = True,
) -> Report:
    """Look for a schedule under which `program` fails.

    `program` takes no argument, makes its state, starts threads, joins them and asserts. The
    verdict is "failed" with the schedule of fewest preemptions; "proved" if no schedule with up to
    `preemptions` fails (then `random` more, seeded, are tried beyond them); or "inconclusive", with
    the reason, if `seconds` were over first, if a thread waits for something outside the
    scheduler's control, or if the program does not do the same twice.

    What a proof takes for granted: a call into C, or into a module other than the program's,
    `threading`, `queue` and this chapter's, is one step; attributes are not set by `setattr` or
    through `__dict__`; threads share no generator; instructions take effect in order.

    After `operations` steps of a run everybody goes on in turn, for as many again; if they do not
    end then, it is a livelock (with only one thread left: inconclusive). `reduce=False` switches at
    every access, not only where threads race (for tests of the explorer).
    Stops by `Cancelled` at a checkpoint, as every experiment.
    """
    for name, value, low in (
        ("preemptions", preemptions, 0),
        ("operations", operations, 1),
        ("random", random, 0),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ValueError(f"{name}={value!r} is not allowed: give a whole number from {low}")
    if not seconds > 0:
        raise ValueError(f"seconds={seconds!r} is not allowed: give a positive number")
    if not callable(program) or not hasattr(program, "__globals__"):
        raise TypeError(f"program must be a Python function, got {program!r}")
    if needed := [p.name for p in signature(program).parameters.values() if p.default is p.empty]:
        raise TypeError(f"program must need no argument, but needs {', '.join(needed)}")
    search = _Search(program, preemptions, seconds, operations, None if not reduce else set())
    return search.report(random, seed)


@dataclass
class _Search:
    program: Program
    bound: int
    seconds: float
    limit: int
    points: set[Point] | None
    counts: list[int] = field(default_factory=list)
    release_points: bool = False
    total: int = 0
    tried_randomly: int = 0
    at_find: int = 0  # runs until the first failure
    began: float = field(default_factory=time.monotonic)
    _learnt: bool = False  # something that calls for a new start

    def report(self, random: int, seed: int) -> Report:
        with explored(self.program) as self.ground:
            return self._search(random, seed)

    def _search(self, random: int, seed: int) -> Report:
        found, reason = None, ""
        try:
            failed = self._systematic() or self._random(random, seed)
            found = self._explain(failed) if failed else None
        except TimeoutError:
            reason = f"{self.seconds:g} s were over"
        except (Diverged, Stuck) as error:
            reason = str(error)
        return Report(
            self.program,
            "failed" if found else "inconclusive" if reason else "proved",
            reason,
            tuple(self.counts),
            self.tried_randomly,
            self.at_find or self.total,
            time.monotonic() - self.began,
            found,
        )

    def _explain(self, failed: Execution) -> Found | None:
        """Run it once more, and write down what happens."""
        self.seconds = float("inf")
        run = self.prepared(_follow(_prefix(failed)))
        recording = Recording(run)
        perform(run)
        found = recording.found()
        if found is None or found.kind != failed.failure.kind:  # type: ignore[union-attr]
            raise _diverged()
        return found

    # ── Schedules with few preemptions ────────────────────────────────────────────────────

    def _systematic(self) -> Execution | None:
        while True:
            failed = self._all_within_bound()
            if failed is not None:
                return failed
            if not self._learnt:
                self._does_the_same_again()
                return None

    def _all_within_bound(self) -> Execution | None:
        """The first failing run; None if there is none, or if `_learnt` calls for a new start."""
        self._learnt = False
        self.counts = [0] * (self.bound + 1)
        waiting: list[list[Prefix]] = [[] for _ in self.counts]
        waiting[0].append([])
        for preemptions, prefixes in enumerate(waiting):
            while prefixes:
                prefix = prefixes.pop()
                run = self.run(_follow(prefix))
                self.counts[preemptions] += 1
                if run.failure is not None:
                    if self.ground["probe"].grown:  # not all of it was watched yet: see it again
                        self._learn(run)
                        self.at_find = 0
                        return None
                    return self._shorter(run, prefixes)
                if self._learn(run):
                    return None
                for cost, other in _alternatives(run, len(prefix)):
                    if cost <= self.bound:
                        waiting[cost].append(other)
        return None

    def _does_the_same_again(self) -> None:
        """What was tried proves nothing if the program does something else the next time."""
        first, second = self.run(_follow([])), self.run(_follow([]))
        if (first.operations, _prefix(first)) != (second.operations, _prefix(second)):
            raise _diverged()

    def _shorter(self, failed: Execution, prefixes: list[Prefix]) -> Execution:
        """Of the failures with as many preemptions, one with few switches and steps."""
        for prefix in prefixes[-_SHORTER:]:
            try:
                run = self.run(_follow(prefix))
            except TimeoutError:
                break
            if run.failure is not None and _length(run) < _length(failed):
                failed = run
        return failed

    def _learn(self, run: Execution) -> bool:
        """Take over which instructions race; True if that changes what has to be tried."""
        if self.points is None:
            return False
        new = bool(run.raced - self.points)
        self.points |= run.raced
        if run.polled and not self.release_points:
            self.release_points = new = True
        if self.ground["probe"].grown:
            self.ground["probe"].grown, new = False, True
        self._learnt |= new
        return new

    # ── Random schedules ──────────────────────────────────────────────────────────────────

    def _random(self, count: int, seed: int) -> Execution | None:
        """`count` schedules that switch anywhere, each thread with a random chance."""
        source = randomness.Random(seed)
        for _ in range(count):
            run = self.run(wander(source))
            self.tried_randomly += 1
            if run.failure is not None:
                return run
            self._learn(run)
        return None

    # ── One run ───────────────────────────────────────────────────────────────────────────

    def run(self, strategy: Strategy) -> Execution:
        """One execution; raises TimeoutError, Diverged, Stuck or Cancelled."""
        elapsed = time.monotonic() - self.began
        if elapsed > self.seconds:
            raise TimeoutError
        self.total += 1
        if self.total % 16 == 0:
            checkpoint(elapsed, self.seconds, f"{self.total} schedules")
        run = self.prepared(strategy)
        perform(run)
        if run.failure is not None:
            self.at_find = self.at_find or self.total
        return run

    def prepared(self, strategy: Strategy) -> Execution:
        run = Execution(self.program, strategy, **self.ground, points=self.points, limit=self.limit)
        run.release_points = self.release_points or self.points is None
        return run


def rehearse(program: Program, runs: int) -> tuple[set[Point], bool]:
    """Where switching matters, as `runs` random schedules show: instructions, and releases."""
    search = _Search(program, 0, 10.0, _OPERATIONS, set())
    source = randomness.Random(0)
    with explored(program) as search.ground:
        for _ in range(runs):
            search._learn(search.run(wander(source)))
    return search.points or set(), search.release_points


def replay(program: Program, schedule: str, *, operations: int = _OPERATIONS) -> Found | None:
    """Run `program` once under `schedule` (the text of a failure); what fails, or None.

    ValueError if the text is no schedule of this program.
    """
    wanted = turns(schedule)
    run, found = once(program, lambda: strategy_of(wanted), None, True, operations)
    fits(run, wanted)
    return found


def once(
    program: Program,
    strategy: Callable[[], Strategy],
    points: set[Point] | None,
    release_points: bool,
    operations: int = _OPERATIONS,
    skips: bool = True,
) -> tuple[Execution, Found | None]:
    """One recorded run, and its failure; raises what the strategy raises."""
    with explored(program) as ground:
        while True:
            run = Execution(program, strategy(), **ground, points=points, limit=operations)
            run.release_points, run.skips, run.fair = release_points, skips, False
            recording = Recording(run)
            try:
                perform(run)
            except Exception:
                if not ground["probe"].grown:
                    raise
            if not ground["probe"].grown:
                return run, recording.found()
            ground["probe"].grown = False  # code turned up that was not watched: once more


@contextmanager
def explored(program: Program) -> Iterator[Ground]:
    """Put the primitives under control and the program's code under observation."""
    with installed(program.__globals__):  # type: ignore[attr-defined]
        crew, probe = Crew(), Probe(program, followed())
        try:
            with probe.installed():
                yield {"crew": crew, "probe": probe}
        finally:
            crew.close()


def perform(run: Execution) -> None:
    """Carry `run` out to its end."""
    try:
        _perform(run)
    finally:
        run.crew.rest()
        pools = sys.modules.get("concurrent.futures.thread")
        for thread in run.by_thread:  # else the interpreter would wait for it at its end
            if pools is not None:
                pools._threads_queues.pop(thread, None)


def _perform(run: Execution) -> None:
    run.start()
    seen, since = -1, time.monotonic()
    while not run.done.acquire(timeout=0.05):
        if run.operations != seen:
            seen, since = run.operations, time.monotonic()
        elif time.monotonic() - since > _PATIENCE:
            run.ending = True
            raise Stuck(
                "a thread has not come back: it waits for something outside the scheduler's control"
                " (a lock made before the program began, input, the network) or computes for long"
            )
        try:
            checkpoint()
        except BaseException:
            run.ending = True
            run.done.acquire(timeout=_PATIENCE)
            raise
    if run.error is not None:
        if isinstance(run.error, Diverged):
            raise _diverged() from None
        raise run.error


def _diverged() -> Diverged:
    return Diverged(
        "the program did something else under the same schedule: it depends on chance, on time, or "
        "on state from outside"
    )


def _follow(prefix: Prefix) -> Strategy:
    """Make the choices in `prefix`, then go on with whoever runs, else with the next in turn.

    Diverged if there is another choice than there was when the prefix was found.
    """

    def choose(run: Execution, options: list[Option], current: int, free: bool) -> Option:
        if len(run.decisions) < len(prefix):
            known, option = prefix[len(run.decisions)]
            if known != options:
                raise Diverged
            return option
        return default(options, current, free)

    return choose


def wander(source: randomness.Random) -> Strategy:
    """Switch anywhere, with a chance that is drawn once a run: now seldom, now often."""
    chance = source.choice((0.1, 0.3, 0.5))

    def choose(run: Execution, options: list[Option], current: int, free: bool) -> Option:
        stays = not free and source.random() > chance
        return Option(current) if stays else source.choice(options)

    return choose


def _prefix(run: Execution) -> Prefix:
    return [(decision.options, decision.chosen) for decision in run.decisions]


def _alternatives(run: Execution, start: int) -> list[tuple[int, Prefix]]:
    """What else could have been chosen from decision `start` on, and the preemptions it needs."""
    found = []
    prefix = _prefix(run)
    cost = sum(decision.cost(decision.chosen) for decision in run.decisions[:start])
    for index, decision in enumerate(run.decisions[start:], start):
        for option in decision.options:
            if option != decision.chosen:
                found.append(
                    (cost + decision.cost(option), [*prefix[:index], (decision.options, option)])
                )
        cost += decision.cost(decision.chosen)
    return found


def _length(run: Execution) -> tuple[int, int]:
    switches = sum(decision.chosen.task != decision.current for decision in run.decisions)
    return switches, run.operations
