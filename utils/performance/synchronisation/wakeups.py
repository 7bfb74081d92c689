"""Count wake-ups: those for something, and those in vain.

A wake-up is *futile* if the woken thread finds its predicate false and has to sleep again: a turn
at a core and at the mutex, for nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from utils.core.trace import now
from utils.threads.primitives.condition import Condition
from utils.threads.primitives.mutex import Mutex

DEADLINE = 20.0  # seconds for anything that blocks
NAMES = {True: "woken for something", False: "woken in vain"}


class Wake(NamedTuple):
    """`lane` woke at `at` (ns of `now()`); `useful` if its predicate held then."""

    lane: str
    at: int
    useful: bool


class Counting(Condition):
    """A condition that writes every wake-up by a notification into `wakes`.

    Several conditions of one lock may share one list: it changes under the lock only.
    """

    def __init__(self, lock: Mutex, wakes: list[Wake], name: str) -> None:
        super().__init__(lock, name=name)
        self.wakes = wakes

    @property
    def waiting(self) -> int:
        """How many sleep here and have not been notified; exact while the lock is held."""
        return len(self._waiters)

    def wait_for(self, predicate: Callable[[], object], timeout: float | None = None) -> bool:
        """As in `Condition`; here `timeout` bounds each sleep, not the sum."""
        while not predicate():
            if not self.wait(timeout):
                return bool(predicate())
            lane = threading.current_thread().name
            self.wakes.append(Wake(lane, now(), bool(predicate())))
        return True
