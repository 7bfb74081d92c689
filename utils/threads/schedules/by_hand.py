"""You are the scheduler: choose who goes on, see what everybody sees, take a step back.

`Hand` drives a program by a list of choices, and runs it again from its start for each new one;
that is what makes going back possible. One step takes a thread to its next operation that
another thread could notice. Where only one thread can go on, there is nothing to choose.
"""

from __future__ import annotations

import linecache
from collections.abc import Sequence
from dataclasses import dataclass

from utils.threads.schedules.execution import Execution, Strategy
from utils.threads.schedules.inspection import (
    Wait,
    frames,
    held,
    label,
    labels,
    shared,
    variables,
    waits,
)
from utils.threads.schedules.report import Found, fits, schedule_text, strategy_of, turns
from utils.threads.schedules.search import Program, once, rehearse
from utils.threads.schedules.tasks import Option, Task

_REHEARSALS = 30  # random schedules that show where threads race, before the first choice


@dataclass(frozen=True)
class Standing:
    """Where one thread stands: at `line`, about to do `next`."""

    thread: str
    line: int
    source: str
    next: str
    waits: Wait | None
    finished: bool
    variables: dict[str, str]


@dataclass(frozen=True)
class Position:
    """What everybody sees between two steps. `failure` and `survived` say how it ended, if so."""

    schedule: str
    threads: tuple[Standing, ...]
    shared: dict[str, str]  # variables of the program itself
    locks: dict[str, str]  # label: who holds it, "" if nobody
    choices: tuple[Option, ...]  # who may go on; empty at the end
    failure: Found | None = None

    @property
    def survived(self) -> bool:
        return not self.choices and self.failure is None


class _Paused(Exception):
    """The choices so far are made, and this is where they lead."""

    def __init__(self, position: Position) -> None:
        self.position = position


class Hand:
    """A program and the choices made so far. `position` is where they lead."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._chosen: list[Option] = []
        self._learnt = rehearse(program, _REHEARSALS)
        self._run()

    @property
    def steps(self) -> int:
        """How many choices were made."""
        return len(self._chosen)

    def step(self, option: Option | str) -> Position:
        """Let a thread (named, or one of `position.choices`) take its step."""
        if isinstance(option, str):
            names = {self._name(choice): choice for choice in self.position.choices}
            if option not in names:
                raise ValueError(f"{option!r} cannot go on; choose of {', '.join(names) or 'none'}")
            option = names[option]
        if option not in self.position.choices:
            raise ValueError(f"{option} is not among the choices")
        self._chosen.append(option)
        return self._run()

    def back(self) -> Position:
        """Undo the last step."""
        if self._chosen:
            self._chosen.pop()
        return self._run()

    def restart(self) -> Position:
        self._chosen.clear()
        return self._run()

    def load(self, schedule: str) -> Position:
        """Go where a schedule's text leads; ValueError if it is none of this program."""
        wanted = turns(schedule)
        follow = strategy_of(wanted)
        chosen: list[Option] = []

        def choose(run: Execution, options: list[Option], current: int, free: bool) -> Option:
            option = follow(run, options, current, free)
            if len(run.steps) >= len(wanted):
                raise _Paused(_position(run, tuple(options)))
            chosen.append(option)
            return option

        self._go(choose, wanted)
        self._chosen = chosen
        return self.position

    def _name(self, option: Option) -> str:
        name = self.position.threads[option.task].thread
        return f"{name}'s time-out" if option.expires else name

    # ── Runs ──────────────────────────────────────────────────────────────────────────────

    def _run(self) -> Position:
        def choose(run: Execution, options: list[Option], current: int, free: bool) -> Option:
            if len(run.decisions) < len(self._chosen):
                return self._chosen[len(run.decisions)]
            raise _Paused(_position(run, tuple(options)))

        return self._go(choose)

    def _go(self, choose: Strategy, wanted: Sequence[str] = ()) -> Position:
        try:
            run, failure = once(self.program, lambda: choose, *self._learnt, skips=False)
            fits(run, wanted)
        except _Paused as paused:
            self.position = paused.position
        else:
            ended = tuple(Standing(t.name, 0, "", "", None, t.finished, {}) for t in run.tasks)
            seen = (failure.variables, failure.locks) if failure else ({}, {})
            self.position = Position(schedule_text(run), ended, *seen, (), failure)
        return self.position


def _position(run: Execution, options: tuple[Option, ...]) -> Position:
    """What there is to see while every thread stands still."""
    known = labels(run)
    waiting = {wait.waiter: wait for wait in waits(run, known)}
    return Position(
        schedule_text(run),
        tuple(_standing(run, task, waiting.get(task.name), known) for task in run.tasks),
        shared(run),
        held(run, known),
        options,
    )


def _standing(run: Execution, task: Task, wait: Wait | None, known: dict[int, str]) -> Standing:
    stack = frames(run, task)
    if not stack:
        return Standing(task.name, 0, "", "" if task.finished else "begin", None, task.finished, {})
    at = stack[-1]
    source = linecache.getline(at.f_code.co_filename, at.f_lineno).strip()
    text = str(wait and f"wait for {wait}" or f"{task.about.what} {label(task.about.on, known)}")
    own = variables(at)
    for name in at.f_code.co_freevars:  # those belong to the program, and are shown once
        own.pop(name, None)
    return Standing(task.name, at.f_lineno, source, text.strip(), wait, False, own)
