"""Too little memory: who has to give it back, what that costs, and that nobody's answer changes.

Source: Kwon et al. (arXiv:2309.06180), section 4.5: preemption by recomputation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.trace import Recorder, Trace
from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.scheduler import Scheduler
from utils.llm_concurrency.engine.sequence import Sequence
from utils.llm_concurrency.scheduling.virtual import Cost, simulate

SIZE = 16  # tokens of a block


@dataclass(frozen=True)
class Pressure:
    """One run: everybody served, and by number of blocks the seconds that each memory took."""

    blocks: int
    served: list[Sequence]
    trace: Trace
    seconds: dict[int, float]

    @property
    def computed(self) -> int:
        """Tokens that were computed, those computed again included."""
        return sum(span.args["tokens"] for span in self.trace.spans if span.args)

    @property
    def needed(self) -> int:
        """Tokens to compute if nobody is ever preempted; the last one of each is only said."""
        return sum(len(one.tokens) - 1 for one in self.served)


@experiment
def pressure(
    blocks: Annotated[int, Range(20, 120, 2)] = 40,
    people: Annotated[int, Range(2, 16, label="requests")] = 8,
    prompt: Annotated[int, Range(16, 160, 16, label="tokens of a prompt")] = 64,
    answer: Annotated[int, Range(16, 160, 16, label="tokens of an answer")] = 96,
) -> Pressure:
    """Everybody asks at once; the memory grows with every token."""
    requests = [Request((n + 1,) * prompt, answer, ignore_end=True) for n in range(people)]

    def run(blocks: int, recorder: Recorder | None = None) -> list[Sequence]:
        scheduler = Scheduler(BlockPool(blocks, SIZE, share=False), slots=people, budget=512)
        cost = Cost(0.02, 0.0015)
        return simulate([(0.0, request) for request in requests], scheduler, cost, recorder)

    least = -(-(prompt + answer) // SIZE)
    seconds = {}
    for number in range(max(20, least), 121, 10):
        checkpoint(number, 120, "sizes")
        seconds[number] = max(one.times[-1] for one in run(number)) / 1e9
    recorder = Recorder()
    return Pressure(blocks, run(blocks, recorder), recorder.trace(), seconds)


def plot(result: Pressure) -> plots.Picture:
    """Who runs when; a second orange bar is a prompt (and answer so far) computed again."""
    fig, (ax, curve) = plots.figure(10, 3.6, cols=2, gridspec_kw={"width_ratios": [3, 2]})
    times = sum(one.preempted for one in result.served)
    more = f"{100 * (result.computed / result.needed - 1):.0f} % computed again"
    title = f"{result.blocks} blocks: {times} times preempted, {more}"
    plots.timeline(ax, result.trace, lanes=result.trace.lanes, title=title)
    curve.plot(list(result.seconds), list(result.seconds.values()), "o-", color=plots.BLUE)
    curve.axvline(result.blocks, color=plots.INK, linestyle="--", linewidth=0.8)
    curve.set_ylim(0)
    curve.set_xlabel("blocks of memory", fontsize=9)
    curve.set_title("seconds until all are served", loc="left")
    plots.legend(fig, ["queue", "prefill", "decode"], {"queue": "waits for memory"})
    return fig
