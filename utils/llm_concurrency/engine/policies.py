"""Who comes first: an order of requests, and whether somebody new may join now.

A policy knows no clock, no threads and no model: the engine and its simulation ask the same object.

Sources: Yu et al., "Orca" (OSDI 2022, joining at every step); Sheng et al., "Fairness in Serving
Large Language Models" (arXiv:2401.00588, the token counters of `FairShare`).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from utils.llm_concurrency.engine.sequence import Sequence


class FirstCome:
    """In the order of arrival. Anybody may join at any step: *continuous* batching."""

    def rank(self, sequence: Sequence) -> Any:
        """The smaller, the sooner; who runs with the largest loses memory first."""
        return sequence.number

    def joins(self, running: list[Sequence]) -> bool:
        """Whether somebody who waits may start beside `running`."""
        return True

    def arrived(self, sequence: Sequence) -> None:
        """Hears of every new request."""

    def computed(self, sequence: Sequence, tokens: int) -> None:
        """Hears of every token that was computed for somebody."""


class Static(FirstCome):
    """A batch starts together, and nobody joins before its last answer is complete."""

    def joins(self, running: list[Sequence]) -> bool:
        return not any(sequence.generated for sequence in running)


class Shortest(FirstCome):
    """Shortest possible answer first; long ones may wait as long as shorter ones come."""

    def rank(self, sequence: Sequence) -> Any:
        return sequence.request.length, sequence.number


class Priority(FirstCome):
    """By the caller's `priority`, then by arrival."""

    def rank(self, sequence: Sequence) -> Any:
        return sequence.request.priority, sequence.number


class FairShare(FirstCome):
    """Whoever has had the fewest tokens so far. Who comes anew does not bring old credit."""

    def __init__(self) -> None:
        self.served: defaultdict[str, int] = defaultdict(int)
        self._present: dict[str, int] = {}

    def rank(self, sequence: Sequence) -> Any:
        return self.served[sequence.request.user], sequence.number

    def arrived(self, sequence: Sequence) -> None:
        user = sequence.request.user
        if self.served:
            self.served[user] = max(self.served[user], min(self.served.values()))

    def computed(self, sequence: Sequence, tokens: int) -> None:
        self.served[sequence.request.user] += tokens
