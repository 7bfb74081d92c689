"""Names and values for people: what a stopped program's locks are called, who waits for whom.

The scheduler knows locks as objects; a reader knows them by the variables that hold them. While all
threads of a run stand still, their frames tell which those are.
"""

from __future__ import annotations

import collections
import reprlib
import sys
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from utils.threads.schedules.execution import Execution, Task
from utils.threads.schedules.resolve import is_data
from utils.threads.schedules.standins import Joined, Lock

_DEPTH = 4  # attributes and items from a variable to a lock

@dataclass(frozen=True)
class Wait:
    """`waiter` waits for `what`, which is up to `owner` ("" if it may be anybody)."""

    waiter: str
    what: str
    owner: str


def frames(run: Execution, task: Task) -> list[types.FrameType]:
    """The program's own frames on `task`'s stack, outermost first."""
    found = []
    at = sys._current_frames().get(task.ident) if not task.finished else None
    while at is not None:
        if at.f_globals is run.crew.home:
            found.append(at)
        at = at.f_back
    return found[::-1]


def labels(run: Execution) -> dict[int, str]:
    """What each lock of the program is called, by its id."""
    found: dict[int, str] = {}
    places = [frame for task in run.tasks for frame in frames(run, task)]
    error = run.failure.error if run.failure else None
    trace = error.__traceback__ if error else None
    while trace is not None:  # the frames that the error has left
        if trace.tb_frame.f_globals is run.crew.home:
            places.append(trace.tb_frame)
        trace = trace.tb_next
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
