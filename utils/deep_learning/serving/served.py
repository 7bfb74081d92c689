"""What became of the requests, by formulas that are written down: tools disagree about them.

Times are whole ns of the run's clock. A request counts from the moment it was *planned*, also
if it was sent late: whoever sends the next request only after the last answer stops measuring just
when it gets slow (G. Tene, "How NOT to Measure Latency", 2013: coordinated omission).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from utils.core.trace import Span, Trace
from utils.core.workers import lanes
from utils.deep_learning.serving.engine import Batch, Fate
from utils.overview.rates import percentile
from utils.performance.queueing.requests import SECOND

KEEPS_UP = 0.98  # achieved ÷ offered; below it the line grows for as long as the load lasts


class Record(NamedTuple):
    """One request: when it was planned, sent and over, how it ended, and with which batch."""

    planned: int
    sent: int
    ended: int
    fate: Fate
    batch: Batch | None = None


@dataclass(frozen=True)
class Served:
    """All requests of a run, in the order in which they were planned."""

    workers: int
    records: tuple[Record, ...]
    clock: Literal["real", "virtual"] = "real"

    @property
    def fates(self) -> Counter[Fate]:
        """How many requests ended how."""
        return Counter(record.fate for record in self.records)

    @cached_property
    def latencies(self) -> tuple[float, ...]:
        """Seconds from planned to answered, of the requests that were answered."""
        return tuple((r.ended - r.planned) / SECOND for r in self._answered)

    @property
    def offered(self) -> float:
        """Requests a second, as planned."""
        return len(self.records) * SECOND / (self.records[-1].planned - self.records[0].planned)

    @property
    def seconds(self) -> float:
        """Wall time from the first planned moment to the end of the last request."""
        ends = max(record.ended for record in self.records)
        return (ends - self.records[0].planned) / SECOND

    @property
    def throughput(self) -> float:
        """Answered requests a second of wall time."""
        return len(self._answered) / self.seconds

    def goodput(self, limit: float) -> float:
        """Requests a second of wall time that were answered within `limit` seconds."""
        return sum(latency <= limit for latency in self.latencies) / self.seconds

    def latency(self, percent: int) -> float:
        """Seconds within which `percent` % of the answers came; inf if nothing was answered."""
        return percentile(self.latencies, percent) if self.latencies else float("inf")

    def in_time(self, limit: float) -> bool:
        """Whether everybody was answered, and 95 % within `limit` seconds."""
        return len(self._answered) == len(self.records) and self.latency(95) <= limit

    @property
    def kept_up(self) -> bool:
        """Whether answers came at the rate of the requests: achieved ÷ offered ≥ 0.98.

        Each rate is counted over its own span, from the first to the last, so that the time for
        the last answers is not taken for saturation. What was not answered was not achieved.
        """
        ends = [record.ended for record in self._answered]
        if len(ends) < 2:
            return False
        return len(ends) * SECOND >= KEEPS_UP * self.offered * (max(ends) - min(ends))

    @cached_property
    def batches(self) -> tuple[tuple[Batch, tuple[int, ...]], ...]:
        """Every batch with the numbers of its requests, in the order of release."""
        members: dict[Batch, list[int]] = {}
        for number, record in enumerate(self.records):
            if record.batch is not None:
                members.setdefault(record.batch, []).append(number)
        ordered = sorted(members, key=lambda batch: (batch.released, batch.worker))
        return tuple((batch, tuple(members[batch])) for batch in ordered)

    @property
    def mean_batch(self) -> float:
        """Requests a batch."""
        return sum(batch.size for batch, _ in self.batches) / max(1, len(self.batches))

    @cached_property
    def trace(self) -> Trace:
        """A lane a worker, and one a request: "queue", "load" (stacking), "compute"."""
        spans, names = [], lanes(self.workers)
        for number, record in enumerate(self.records):
            lane, batch = f"request {number}", record.batch
            until = batch.released if batch else record.ended
            spans.append(Span(lane, "queue", record.fate, record.planned, until))
            if batch:
                spans.append(Span(lane, "load", "stack", until, batch.begun))
                spans.append(Span(lane, "compute", record.fate, batch.begun, batch.ended))
        for batch, numbers in self.batches:
            about = {"size": batch.size, "requests": numbers}
            lane = names[batch.worker]
            spans.append(Span(lane, "load", "stack", batch.released, batch.begun))
            spans.append(Span(lane, "compute", "batch", batch.begun, batch.ended, about))
        return Trace(spans)

    @cached_property
    def _answered(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.fate == "answered")
