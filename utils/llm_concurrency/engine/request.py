"""What a caller asks for, and the names of all that can become of it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, SupportsIndex, TypeVar

from utils.llm.sampling import GREEDY, Sampling

T = TypeVar("T")
Reason = Literal["stop", "length", "cancelled", "deadline", "failed"]  # why an answer ended


class Rejected(ValueError):
    """The engine cannot serve the request, and says so at once."""


class TooLong(Rejected):
    """Prompt and answer do not fit into the model's context or the engine's memory."""


class EngineClosed(RuntimeError):
    """The engine takes no more requests."""


class EngineFailed(RuntimeError):
    """Something raised inside the engine while it computed for this request."""


class DeadlinePassed(TimeoutError):
    """The answer was not complete in time."""


@dataclass(frozen=True)
class Request:
    """Tokens to go on from, and how.

    `deadline` is in seconds from the submission. An answer ends before the first of the texts in
    `stop`, with the model's end token unless `ignore_end`, and after `limit` tokens at the latest.
    """

    prompt: tuple[int, ...]
    limit: int = 64
    sampling: Sampling = GREEDY
    seed: int = 0
    stop: tuple[str, ...] = ()
    deadline: float | None = None
    priority: int = 0  # the lower, the sooner, where the policy looks at it
    user: str = ""
    logprobs: bool = False
    ignore_end: bool = False
    length: int = field(init=False)  # tokens of prompt and answer at most

    def __post_init__(self) -> None:
        # What is wrong must be found here: later it would hurt those who share a step with it.
        for name, (read, what) in _ALLOWED.items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, read(value))
            except (TypeError, ValueError):
                raise Rejected(f"{name}={value!r} is not allowed: give {what}") from None
        object.__setattr__(self, "length", len(self.prompt) + self.limit)


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError


def _prompt(tokens: Iterable[SupportsIndex]) -> tuple[int, ...]:
    numbers = tuple(map(operator.index, tokens))
    _require(len(numbers) > 0)
    return numbers


def _whole(low: float = -math.inf, end: float = math.inf) -> Callable[[SupportsIndex], int]:
    def read(value: SupportsIndex) -> int:
        number = operator.index(value)
        _require(low <= number < end)
        return number

    return read


def _stop(texts: Iterable[str]) -> tuple[str, ...]:
    _require(not isinstance(texts, str))
    texts = tuple(texts)
    _require(all(isinstance(text, str) and text for text in texts))
    return texts


def _deadline(seconds: float | None) -> float | None:
    _require(seconds is None or seconds > 0)
    return seconds


def _a(kind: type[T]) -> Callable[[T], T]:
    def read(value: T) -> T:
        _require(isinstance(value, kind))
        return value

    return read


_ALLOWED: Mapping[str, tuple[Callable[[Any], object], str]] = {
    "prompt": (_prompt, "token numbers, at least one"),
    "limit": (_whole(1), "a whole number from 1"),
    "sampling": (_a(Sampling), "a Sampling"),
    "seed": (_whole(-(2**63), 2**63), "a whole number of 64 bits"),
    "stop": (_stop, "texts that are not empty"),
    "deadline": (_deadline, "seconds above 0, or None"),
    "priority": (_whole(), "a whole number"),
    "user": (_a(str), "a text"),
}
