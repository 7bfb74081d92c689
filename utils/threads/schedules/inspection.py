"""Names and values for people: what a stopped program's locks are called, who waits for whom.

The scheduler knows locks as objects; a reader knows them by the variables that hold them. While all
threads of a run stand still, their frames tell which those are.
"""

from __future__ import annotations

import collections
import reprlib
import sys
import threading
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from utils.threads.schedules.execution import Execution
from utils.threads.schedules.resolve import is_data
from utils.threads.schedules.standins import Lock
from utils.threads.schedules.tasks import Joined, Task

_DEPTH = 4  # attributes and items from a variable to a lock


@dataclass(frozen=True)
class Wait:
    """`waiter` waits for `what`, which is up to `owner` ("" if it may be anybody)."""

    waiter: str
    what: str
    owner: str

    def __str__(self) -> str:
        held = self.owner and not self.what.startswith("the end")
        return f"{self.what}, held by {self.owner}" if held else self.what


def frames(run: Execution, task: Task) -> list[types.FrameType]:
    """The program's own frames on `task`'s stack, outermost first."""
    found = []
    at = sys._current_frames().get(task.ident) if not task.finished else None
    while at is not None:
        if at.f_globals is run.probe.home:
            found.append(at)
        at = at.f_back
    return found[::-1]


def _left(run: Execution) -> list[types.FrameType]:
    """The program's frames that an error has left, outermost first."""
    error = run.failure.error if run.failure else None
    walk = traceback.walk_tb(error.__traceback__ if error else None)
    return [frame for frame, _ in walk if frame.f_globals is run.probe.home]


def shared(run: Execution) -> dict[str, str]:
    """The data among the variables of the program itself: what its threads share."""
    places = frames(run, run.tasks[0]) or (_left(run) if run.failed_in == 0 else [])
    return variables(places[0]) if places else {}


def labels(run: Execution) -> dict[int, str]:
    """What each lock of the program is called, by its id."""
    found: dict[int, str] = {}
    places = [frame for task in run.tasks for frame in frames(run, task)] + _left(run)
    for depth in range(_DEPTH):  # the shortest names first
        for frame in places:
            for name, value in dict(frame.f_locals).items():
                _label(value, name, depth, found)
    return found


def _label(value: Any, name: str, depth: int, found: dict[int, str]) -> None:
    if isinstance(value, Lock):
        found.setdefault(id(value), name)
    elif depth and not isinstance(value, threading.Thread):
        for child, inner in _children(value, name):
            _label(inner, child, depth - 1, found)


def _children(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list | tuple):
        yield from ((f"{name}[{index}]", inner) for index, inner in enumerate(value))
    elif isinstance(value, dict):
        yield from ((f"{name}[{key!r}]", inner) for key, inner in value.items())
    elif isinstance(value, collections.deque):  # a primitive's waiters, each with a lock of its own
        yield from ((name, inner) for inner in value)
    elif hasattr(value, "__dict__") and not isinstance(value, type | types.ModuleType):
        primitive = type(value).__module__.startswith(("threading", "queue", "utils.threads."))
        for attribute, inner in vars(value).items():
            if not primitive:
                yield f"{name}.{attribute}", inner
            elif isinstance(inner, collections.deque):
                yield f"a notification of {name}", inner
            else:
                yield name, inner


def held(run: Execution, known: dict[int, str]) -> dict[str, str]:
    """Who holds which lock, "" if nobody."""
    locks = [lock for lock in run.locks if id(lock) in known]
    return {known[id(lock)]: lock.owner.name if lock.owner else "" for lock in locks}


def waits(run: Execution, known: dict[int, str]) -> tuple[Wait, ...]:
    """Who waits for what."""
    found = []
    for task in run.tasks:
        on = task.waits_for
        if on is None or task.finished:
            continue
        owner = "" if on.owner is None else on.owner.name
        if known.get(id(on), "").startswith("a notification"):
            owner = ""  # such a lock is locked by the waiter itself, and unlocked by who notifies
        found.append(Wait(task.name, label(on, known), owner))
    return tuple(found)


def cycle(found: tuple[Wait, ...]) -> tuple[Wait, ...]:
    """The waits that form a cycle; if none do, all but mere joins (then a wake-up was lost)."""
    next_ = {wait.waiter: wait for wait in found if wait.owner}
    for start in next_:
        path, at = [], start
        while at in next_ and next_[at] not in path:
            path.append(next_[at])
            at = next_[at].owner
        if path and at == start:
            return tuple(path)
    return tuple(wait for wait in found if not wait.what.startswith("the end of ")) or found


def label(on: Any, known: dict[int, str]) -> str:
    """What to call something that is locked or waited for."""
    if isinstance(on, Joined):
        return f"the end of {on.owner.name}"
    if on is None:
        return ""
    return known.get(id(on), "a notification" if on.maker == "wait" else "a lock")


def variables(frame: types.FrameType) -> dict[str, str]:
    """The data among a frame's variables, in a few characters each."""
    return {
        name: reprlib.repr(value)
        for name, value in dict(frame.f_locals).items()
        if is_data(value) and not name.startswith("__")
    }
