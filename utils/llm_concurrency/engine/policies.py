"""Who comes first: an order of requests, and whether somebody new may join now.

A policy knows no clock, no threads and no model: the engine and its simulation ask the same object.

Sources: Yu et al., "Orca" (OSDI 2022, joining at every step); Sheng et al., "Fairness in Serving
Large Language Models" (arXiv:2401.00588, the token counters of `FairShare`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from utils.llm_concurrency.engine.sequence import Sequence


class FirstCome:
    """In the order of arrival. Anybody may join at any step: *continuous* batching."""

    def rank(self, sequence: Sequence) -> Any:
        """The smaller, the sooner; who runs with the largest loses memory first."""
        return sequence.number

    def joins(self, sequence: Sequence, running: list[Sequence]) -> bool:
        """Whether a sequence that waits may start beside `running`."""
        return True

    def arrived(self, sequence: Sequence) -> None:
        """Hears of every new request."""

    def computed(self, sequence: Sequence, tokens: int) -> None:
        """Hears of every token that was computed for somebody."""

    def ended(self, sequence: Sequence) -> None:
        """Hears of everybody who leaves, for whatever reason."""


class Static(FirstCome):
    """Up to `size` of those who wait start together; nobody joins before the last has ended."""

    def __init__(self, size: int = 32) -> None:
        self.size = size
        self._newest = -1
        self._latest = -1  # who came later than this one was not there when the batch began
        self._batch: set[int] = set()

    def arrived(self, sequence: Sequence) -> None:
        self._newest = max(self._newest, sequence.number)

    def joins(self, sequence: Sequence, running: list[Sequence]) -> bool:
        if not running:
            self._latest, self._batch = self._newest, set()
        if sequence.number > self._latest or len(self._batch | {sequence.number}) > self.size:
            return False
        self._batch.add(sequence.number)
        return True


class Shortest(FirstCome):
    """Fewest tokens of prompt and answer first; long ones wait as long as shorter ones come."""

    def rank(self, sequence: Sequence) -> Any:
        return sequence.request.length, sequence.number


class Priority(FirstCome):
    """By the caller's `priority`, then by arrival."""

    def rank(self, sequence: Sequence) -> Any:
        return sequence.request.priority, sequence.number


class FairShare(FirstCome):
    """Whoever has had the fewest tokens so far. Who was away does not bring old credit."""

    def __init__(self) -> None:
        self.served: defaultdict[str, int] = defaultdict(int)
        self._present: Counter[str] = Counter()  # requests of each user that have not ended
        self._last = 0  # tokens of the user who left last

    def rank(self, sequence: Sequence) -> Any:
        return self.served[sequence.request.user], sequence.number

    def arrived(self, sequence: Sequence) -> None:
        user = sequence.request.user
        if user not in self._present:
            least = min((self.served[other] for other in self._present), default=self._last)
            self.served[user] = max(self.served[user], least)
        self._present[user] += 1

    def computed(self, sequence: Sequence, tokens: int) -> None:
        self.served[sequence.request.user] += tokens

    def ended(self, sequence: Sequence) -> None:
        user = sequence.request.user
        self._present[user] -= 1
        if not self._present[user]:
            del self._present[user]
            self._last = self.served[user]
