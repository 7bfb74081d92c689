"""What an exploration found: a proof within its bound, a failing schedule, or why neither.

A *schedule* is text, made to be shared: `main:4 A:2 B:5` says that main takes four steps, then A
two, then B five. A step is an operation that others may see, the same in every run of a program on
one version of Python; after the last one the threads go on without preemption.
"""

from __future__ import annotations

import itertools
import linecache
import re
import textwrap
import traceback
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from utils.threads.schedules.execution import Execution, Strategy
from utils.threads.schedules.inspection import Wait, cycle, held, label, labels, shared, waits
from utils.threads.schedules.tasks import Kind, Option, Step

Verdict = Literal["proved", "failed", "inconclusive"]


class Line(NamedTuple):
    """Steps of one thread at one line, in a row: `does` says what they were."""

    thread: str
    file: str
    line: int
    source: str
    does: tuple[str, ...]
    blocked: bool  # the last of them waits


@dataclass(frozen=True)
class Found:
    """A failing run: what went wrong, the schedule that leads there, and its lines."""

    kind: Kind
    message: str
    preemptions: int
    schedule: str
    threads: tuple[str, ...]
    lines: tuple[Line, ...]
    waits: tuple[Wait, ...]  # where it ended; a deadlock's cycle is among them
    variables: dict[str, str]  # of the program itself, at the end
    locks: dict[str, str]  # who holds which then, "" if nobody
    error: BaseException | None


@dataclass(frozen=True)
class Report:
    """The verdict on `program`. `counts`: schedules tried by number of preemptions (0, 1, …)."""

    program: Callable[[], object]
    verdict: Verdict
    reason: str  # why it is inconclusive
    counts: tuple[int, ...]
    random: int  # schedules tried beyond the bound
    tried: int  # all runs, those included that showed where to switch
    seconds: float
    failure: Found | None = None

    def __str__(self) -> str:
        name = self.program.__name__
        if self.failure is not None:
            found = self.failure
            needs = _plural(found.preemptions, "preemption")
            return (
                f"{name} fails ({found.kind}: {found.message}) with {needs}, found in run "
                f"{self.tried} after {self.seconds:.2f} s\nschedule: "
                + textwrap.shorten(found.schedule, 200, placeholder=" …")
            )
        tried = " + ".join(map(str, self.counts))
        bound = _plural(len(self.counts) - 1, "preemption")
        if self.verdict == "inconclusive":
            return (
                f"{name}: inconclusive, {self.reason} ({tried} schedules with 0, 1, … preemptions "
                f"tried, none failed)"
            )
        return (
            f"{name}: no schedule with up to {bound} fails (all {sum(self.counts)} = {tried} "
            f"tried), nor did {self.random} random ones beyond ({self.seconds:.2f} s)"
        )

    __repr__ = __str__


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


class Recording:
    """Settings for a run that is to be explained: it keeps its steps and how they are called."""

    def __init__(self, run: Execution) -> None:
        self.run, self.labels, self.waits = run, {}, ()
        self.variables, self.locks = {}, {}
        run.recording = True
        run.on_failure = self.keep

    def keep(self) -> None:
        """Called while every thread still stands where it failed."""
        self.labels = labels(self.run)
        self.waits = waits(self.run, self.labels)
        self.variables = shared(self.run)
        self.locks = held(self.run, self.labels)

    def found(self) -> Found | None:
        """The failure, explained; None if the run did not fail."""
        run = self.run
        if run.failure is None:
            return None
        message = run.failure.message
        if run.failure.kind == "deadlock":
            message = "; ".join(f"{w.waiter} waits for {w}" for w in cycle(self.waits))
        return Found(
            run.failure.kind,
            message,
            sum(decision.cost(decision.chosen) for decision in run.decisions),
            schedule_text(run),
            tuple(task.name for task in run.tasks),
            tuple(lines(run, self.labels)),
            self.waits,
            self.variables,
            self.locks,
            run.failure.error,
        )


def lines(run: Execution, known: dict[int, str]) -> list[Line]:
    """The steps that matter, those of one thread at one line put together."""
    found = []
    steps = [step for step in run.steps if step.matters and _is_data(step)]
    for (task, file, line), group in itertools.groupby(steps, lambda s: (s.task, s.file, s.line)):
        same = list(group)
        source = _source(file, line)
        does = tuple(text for step in same if (text := _does(step, known)))
        found.append(Line(run.tasks[task].name, file, line, source, does, same[-1].blocked))
    if run.failure and (trace := run.failure.error and run.failure.error.__traceback__):
        last = _raised(run, trace)
        if found and found[-1][:4] == last[:4]:
            last = last._replace(does=found.pop().does + last.does)
        found.append(last)
    return found


def _raised(run: Execution, trace: types.TracebackType) -> Line:
    """The program's line at which the failing thread ended."""
    home = [at for at, _ in traceback.walk_tb(trace) if at.f_globals is run.probe.home]
    numbers = [line for at, line in traceback.walk_tb(trace) if at.f_globals is run.probe.home]
    file, line = home[-1].f_code.co_filename, numbers[-1]
    source = _source(file, line)
    thread = run.tasks[run.failed_in].name
    return Line(thread, file, line, source, (f"raises {run.failure.message}",), False)


def _source(file: str, line: int) -> str:
    """A line of the program, without its indentation and comment."""
    return linecache.getline(file, line).split("  #")[0].strip()


def _is_data(step: Step) -> bool:
    """Not the mere fetching of a container or a primitive, of which something is done next."""
    access = step.access
    if access is None or access.kind in ("items", "call"):
        return access is None or bool(step.value)
    return bool(step.value) and (access.writes or step.value[0] not in "[{(d")


_NOTIFY = {"release": "notify", "acquire": "woken"}


def _does(step: Step, known: dict[int, str]) -> str:
    what, name = step.what, label(step.on, known)
    if name.startswith("a notification"):  # the lock of one waiter, released to wake it
        return f"{what} {name}" if step.blocked else _NOTIFY.get(what, what)
    text = f"{what} {name}".strip()
    return f"{text}: {step.value}" if step.value else text


def schedule_text(run: Execution) -> str:
    """Who took how many steps in a row."""
    runs = itertools.groupby(run.steps, lambda step: step.task)
    return " ".join(f"{_token(run, task)}:{len(list(steps))}" for task, steps in runs)


def _token(run: Execution, task: int) -> str:
    """A thread's name without blanks, and with a number if an earlier one has the same."""
    name = run.tasks[task].name
    same = sum(other.name == name for other in run.tasks[:task])
    return re.sub(r"[\s:]", "_", name) + (f"#{same + 1}" if same else "")


def turns(schedule: str) -> list[str]:
    """The thread of each step of a schedule; ValueError if the text is none."""
    found: list[str] = []
    for part in schedule.split():
        match = re.fullmatch(r"(\S+):(\d+)", part)
        if match is None:
            raise ValueError(f"schedule has {part!r}: give parts such as main:4 or A:2")
        found += [match[1]] * int(match[2])
    return found


def strategy_of(wanted: list[str]) -> Strategy:
    """Give each step to the thread that is `wanted` for it, as far as there is a choice."""
    checked = 0

    def choose(run: Execution, options: list[Option], current: int, free: bool) -> Option:
        nonlocal checked
        at = len(run.steps)
        fits(run, wanted[:at], checked)
        checked = at
        if at >= len(wanted):
            return default(options, current, free)
        for option in options:
            if _token(run, option.task) == wanted[at]:
                return option
        raise _misfit(at, wanted[at])

    return choose


def fits(run: Execution, wanted: Sequence[str], start: int = 0) -> None:
    """ValueError if, from step `start` on, `run` went elsewhere where it had no choice."""
    for at, name in enumerate(wanted[start:], start):
        if at >= len(run.steps) or _token(run, run.steps[at].task) != name:
            raise _misfit(at, name)


def _misfit(at: int, name: str) -> ValueError:
    return ValueError(
        f"step {at + 1} of the schedule is {name}'s, but it cannot go on there: the schedule "
        "belongs to another program"
    )


def default(options: list[Option], current: int, free: bool) -> Option:
    """Nobody is preempted, and no time-out strikes while something else can happen."""
    if not free:
        return Option(current)
    return min(options, key=lambda option: (option.expires, option.task <= current, option.task))
