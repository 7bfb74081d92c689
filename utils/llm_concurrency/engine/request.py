"""What a caller asks for, and the names of all that can become of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from utils.llm.sampling import GREEDY, Sampling

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
        object.__setattr__(self, "prompt", tuple(self.prompt))
        object.__setattr__(self, "length", len(self.prompt) + self.limit)
        allowed = {
            "prompt": (len(self.prompt) > 0, "at least one token"),
            "limit": (self.limit >= 1, "at least 1"),
            "stop": (not isinstance(self.stop, str) and all(self.stop), "texts that are not empty"),
            "deadline": (self.deadline is None or self.deadline > 0, "seconds above 0"),
        }
        for name, (holds, what) in allowed.items():
            if not holds:
                raise Rejected(f"{name}={getattr(self, name)!r} is not allowed: give {what}")
