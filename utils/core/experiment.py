"""What an experiment is: a plain function with declared ranges, progress and a way to stop.

An experiment runs the same in a script, a test, a notebook and a widget. Its signature says
which values make sense (`Annotated[int, Range(1, 16)]`, `Literal["threads", "processes"]`,
`bool`); `@experiment` refuses anything else at the call. While it runs it calls `checkpoint`,
which reports progress to whoever started it and raises `Cancelled` when they want it to stop.
Nobody watching is fine too: then `checkpoint` does next to nothing.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

P = ParamSpec("P")
R = TypeVar("R")


class Cancelled(Exception):
    """The person (or the test) who started the experiment asked it to stop."""


@dataclass(frozen=True)
class Range:
    """Allowed values of a numeric parameter, both ends included."""

    low: float
    high: float
    step: float = 1
    label: str = ""

    def __post_init__(self) -> None:
        if not self.low <= self.high or self.step <= 0:
            raise ValueError(f"Range needs low <= high and step > 0, got {self}")


@dataclass(frozen=True)
class Parameter:
    """One control of an experiment: a number in a range, a choice, or a switch."""

    name: str
    kind: Literal["int", "float", "choice", "bool"]
    default: Any
    label: str
    range: Range | None = None
    choices: tuple[Any, ...] = ()

    def check(self, value: Any) -> Any:
        """Return `value` as the parameter's type; ValueError says what is allowed."""
        if self.kind == "bool":
            if isinstance(value, bool):
                return value
            allowed = "True or False"
        elif self.kind == "choice":
            if value in self.choices:
                return value
            allowed = "one of " + ", ".join(map(repr, self.choices))
        else:
            assert self.range is not None
            number = isinstance(value, int | float) and not isinstance(value, bool)
            inside = number and self.range.low <= value <= self.range.high  # false for nan
            if inside and (self.kind == "float" or value == int(value)):
                return int(value) if self.kind == "int" else float(value)
            noun = "a whole number" if self.kind == "int" else "a number"
            allowed = f"{noun} from {self.range.low:g} to {self.range.high:g}"
        raise ValueError(f"{self.name}={value!r} is not allowed: give {allowed}")


def parameters(function: Callable[..., Any]) -> list[Parameter]:
    """Read the controls of `function` from its signature; TypeError if one is undeclared."""
    hints = get_type_hints(function, include_extras=True)
    return [
        _parameter(function, name, hints.get(name), entry.default)
        for name, entry in inspect.signature(function).parameters.items()
    ]


def _parameter(function: Callable[..., Any], name: str, hint: Any, default: Any) -> Parameter:
    if default is inspect.Parameter.empty:
        raise TypeError(f"{function.__name__}: parameter {name!r} needs a default")
    label = name.replace("_", " ")
    if hint is bool:
        return Parameter(name, "bool", default, label)
    if get_origin(hint) is Literal:
        return Parameter(name, "choice", default, label, choices=get_args(hint))
    if get_origin(hint) is Annotated:
        base, *notes = get_args(hint)
        range_ = next((note for note in notes if isinstance(note, Range)), None)
        if base in (int, float) and range_ is not None:
            kind: Literal["int", "float"] = "int" if base is int else "float"
            return Parameter(name, kind, default, range_.label or label, range=range_)
    raise TypeError(
        f"{function.__name__}: parameter {name!r} must be bool, Literal[...] or "
        f"Annotated[int | float, Range(...)], got {hint!r}"
    )


def experiment(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse arguments outside the declared ranges, and let one experiment run at a time."""
    declared = {parameter.name: parameter for parameter in parameters(function)}
    for parameter in declared.values():
        parameter.check(parameter.default)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        values = {name: declared[name].check(value) for name, value in bound.arguments.items()}
        with one_at_a_time():
            return function(**values)  # type: ignore[call-arg]

    return checked


@dataclass(frozen=True)
class Progress:
    """How far an experiment is: `done` of `total` steps (total 0: not known) and a short note."""

    done: float = 0
    total: float = 0
    note: str = ""


class Control:
    """The other end of `checkpoint`: whoever starts an experiment watches and stops it here."""

    def __init__(self) -> None:
        self.stopped = threading.Event()  # worker threads of the experiment may wait on it
        self.progress = Progress()  # replaced whole, so a reader never sees half an update

    def cancel(self) -> None:
        self.stopped.set()

    @property
    def cancelled(self) -> bool:
        return self.stopped.is_set()


_current: contextvars.ContextVar[Control | None] = contextvars.ContextVar("control", default=None)


def current() -> Control:
    """The control of this run. A new thread has none: hand it over, or poll in the main one."""
    return _current.get() or Control()


@contextlib.contextmanager
def controlled(control: Control) -> Iterator[Control]:
    """Make `control` the one that `checkpoint` talks to, in this thread."""
    token = _current.set(control)
    try:
        yield control
    finally:
        _current.reset(token)


def checkpoint(done: float | None = None, total: float = 0, note: str = "") -> None:
    """Say how far we are (or nothing) and stop here, by `Cancelled`, if asked to."""
    control = _current.get()
    if control is None:
        return
    if control.cancelled:
        raise Cancelled
    if done is not None:
        control.progress = Progress(done, total, note)


_turn = threading.RLock()  # reentrant: an experiment may call another one


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold this process's only right to measure: two measurements at once spoil each other.

    The wait shows as progress and ends with `Cancelled` if the run is cancelled meanwhile. A
    thread cannot sleep on a lock and on an event at once, so it looks up every 50 ms.
    """
    while not _turn.acquire(timeout=0.05):
        checkpoint(0, note="waiting for another experiment")
    try:
        checkpoint()
        yield
    finally:
        _turn.release()


def gather(
    futures: Iterable[Future[R]], *, timeout: float, note: str = "", before: int = 0, total: int = 0
) -> list[R]:
    """Wait for all `futures`, with checkpoints, and return their results in the order given.

    `before` and `total` place these futures in a longer run; without a total nothing is
    reported, which leaves that to the futures themselves. Raises the first exception of a
    future, `Cancelled`, or `TimeoutError` after `timeout` seconds; in each case the futures
    that have not started are cancelled.
    """
    everything = list(futures)
    waiting: set[Future[R]] = set(everything)
    deadline = time.monotonic() + timeout
    try:
        while waiting:
            done, waiting = wait(waiting, timeout=0.05, return_when=FIRST_EXCEPTION)
            finished = before + len(everything) - len(waiting)
            checkpoint(finished if total else None, total, note)
            for future in done:
                future.result(timeout=0)
            if waiting and time.monotonic() > deadline:
                raise TimeoutError(
                    f"{len(waiting)} of {len(everything)} tasks unfinished after {timeout} s"
                )
        return [future.result() for future in everything]
    finally:
        for future in waiting:
            future.cancel()
