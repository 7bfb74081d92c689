"""What became of the requests, by formulas that are written down: tools disagree about them.

    served = [Served.of_answer(answer) for answer in engine.generate(requests)]
    percentile(ttft(served), 99), throughput(served).output, goodput(served, ttft=0.5, tpot=0.1)

Of a request: TTFT (time to first token), sent → first token; TPOT (time per output token), what
follows ÷ the tokens that follow; E2EL, sent → last token. A function of a run gives these of all
*completed* requests, in seconds; whoever quotes them says how many failed as well (`failed`).
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Row
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import NamedTuple, Self

from utils.core.trace import Trace
from utils.llm_concurrency.engine.answer import Answer
from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.core import Core
from utils.llm_concurrency.engine.sequence import Sequence
from utils.overview.rates import percentile

PERCENTS = (50, 90, 99)


@dataclass(frozen=True)
class Served:
    """One request and when its tokens were there, in whole ns of the run's clock.

    `begun` is when it was computed for the first time, if somebody recorded that.
    """

    number: int
    prompt: int  # tokens
    cached: int  # tokens of the prompt that were found and not computed
    sent: int
    times: tuple[int, ...]  # of each token of the answer
    completed: bool
    begun: int | None = None

    @classmethod
    def of_answer(cls, answer: Answer, begun: Mapping[int, int] | None = None) -> Self:
        """ValueError: it has not ended. `begun` by number, from `beginnings`."""
        if answer.ended is None:
            raise ValueError(f"request {answer.number} has not ended: wait for its result")
        return cls(
            answer.number,
            len(answer.request.prompt),
            answer.cached,
            answer.submitted,
            tuple(answer.times),
            answer.ended in ("stop", "length"),
            (begun or {}).get(answer.number),
        )

    @classmethod
    def of_sequence(
        cls,
        one: Sequence,
        end: int | None = None,
        begun: Mapping[int, int] | None = None,
    ) -> Self:
        """A sequence after its run; it was completed with all its tokens, or with `end`."""
        stopped = not one.request.ignore_end and one.generated[-1:] == [end]
        return cls(
            one.number,
            len(one.request.prompt),
            one.cached,
            one.arrived,
            tuple(one.times),
            one.left == 0 or stopped,
            (begun or {}).get(one.number),
        )

    @property
    def ttft(self) -> float:
        return (self.times[0] - self.sent) / 1e9

    @property
    def queue(self) -> float:
        """The part of TTFT before anything was computed. ValueError: nobody recorded it."""
        if self.begun is None:
            raise ValueError(f"request {self.number}: give its beginning, from `beginnings(trace)`")
        return (self.begun - self.sent) / 1e9

    @property
    def prefill(self) -> float:
        """The rest of TTFT, with all that was computed for others in between."""
        return self.ttft - self.queue

    @property
    def tpot(self) -> float:
        """0 for an answer of one token."""
        return (self.e2el - self.ttft) / max(1, len(self.times) - 1)

    @property
    def e2el(self) -> float:
        return (self.times[-1] - self.sent) / 1e9

    @property
    def pieces(self) -> list[int]:
        """When something came: tokens of one step come together."""
        return sorted(set(self.times))


class Throughput(NamedTuple):
    """A second of wall time, from the first request sent to the last token: of completed ones."""

    requests: float
    output: float  # tokens
    total: float  # tokens, those of the prompts included


Run = Row[Served]


def beginnings(trace: Trace) -> dict[int, int]:
    """By number of the request: when a recorded engine first computed for it, in ns."""
    begun: dict[int, int] = {}
    for span in trace.spans:
        if span.category in ("prefill", "decode"):
            begun.setdefault(int(span.lane.removeprefix("request ")), span.start)
    return begun


def completed(run: Run) -> list[Served]:
    return [one for one in run if one.completed]


def failed(run: Run) -> int:
    """Requests that were cancelled, late, or lost to an error."""
    return len(run) - len(completed(run))


def ttft(run: Run) -> list[float]:
    """Sent → first token."""
    return [one.ttft for one in completed(run)]


def queue(run: Run) -> list[float]:
    """Sent → first computed. ValueError: without `begun`."""
    return [one.queue for one in completed(run)]


def prefill(run: Run) -> list[float]:
    """First computed → first token. ValueError: without `begun`."""
    return [one.prefill for one in completed(run)]


def tpot(run: Run) -> list[float]:
    """(E2EL − TTFT) ÷ (n − 1) of each answer of n ≥ 2 tokens."""
    return [one.tpot for one in completed(run) if len(one.times) > 1]


def itl(run: Run) -> list[float]:
    """All gaps between what comes of an answer, pooled (inter-token latency)."""
    return [(b - a) / 1e9 for one in completed(run) for a, b in pairwise(one.pieces)]


def e2el(run: Run) -> list[float]:
    """Sent → last token."""
    return [one.e2el for one in completed(run)]


def wall(run: Run) -> float:
    """From the first request sent to the last token, whosesoever."""
    ends = [one.times[-1] for one in run if one.times]
    return (max(ends) - min(one.sent for one in run)) / 1e9 if ends else inf


def throughput(run: Run) -> Throughput:
    done, seconds = completed(run), wall(run)
    output = sum(len(one.times) for one in done)
    total = output + sum(one.prompt for one in done)
    return Throughput(len(done) / seconds, output / seconds, total / seconds)


def goodput(run: Run, *, ttft: float = inf, tpot: float = inf, e2el: float = inf) -> float:
    """Requests a second that were completed within *all* limits (seconds): the SLOs."""
    good = [
        one for one in completed(run) if one.ttft <= ttft and one.tpot <= tpot and one.e2el <= e2el
    ]
    return len(good) / wall(run)


def percentiles(values: Row[float]) -> dict[int, float]:
    """P50, P90 and P99; inf if nothing was completed."""
    return {percent: percentile(values, percent) if values else inf for percent in PERCENTS}


def summary(run: Run) -> dict[str, dict[int, float]]:
    """Percentiles of the four latencies, in seconds."""
    kinds = {"TTFT": ttft, "TPOT": tpot, "ITL": itl, "E2EL": e2el}
    return {name: percentiles(values(run)) for name, values in kinds.items()}


def prefix_hit_rate(run: Run) -> float:
    """Cached ÷ prompt tokens."""
    return sum(one.cached for one in completed(run)) / max(1, sum(o.prompt for o in completed(run)))


def kv_utilisation(pool: BlockPool) -> float:
    """Used ÷ total blocks, now."""
    return pool.used / pool.count


def acceptance_rate(core: Core) -> float:
    """Accepted ÷ drafted; 0 if nobody guessed."""
    return core.accepted / max(1, core.drafted)


def acceptance_length(run: Run) -> float:
    """Mean tokens a verification: those after an answer's first ÷ the steps that gave them."""
    steps = sum(len(one.pieces) - 1 for one in completed(run))
    return sum(len(one.times) - 1 for one in completed(run)) / max(1, steps)
