"""Reading is parallel, writing is not: the same tokens in one pass, and one after another.

The tokens of a prompt are all known: one pass reads them. Token t+1 of an answer is made from
token t: so many tokens, so many passes. Here the same text is read both ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from utils.core import plots, trace
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.trace import Trace
from utils.core.workers import intra_op
from utils.llm import weights
from utils.llm.decoder import Cache
from utils.llm_concurrency.parallel.cuts import texts


@dataclass(frozen=True)
class Phases:
    """`error`: the largest difference between the scores of the two ways."""

    tokens: int
    trace: Trace
    error: float

    @property
    def ratio(self) -> float:
        """How many times longer it takes one by one."""
        return self.trace.total("decode") / self.trace.total("prefill")


@experiment
def run(tokens: Annotated[int, Range(8, 256, 4)] = 40) -> Phases:
    """Read `tokens` of a text in one pass, then a token a pass; torch has one thread."""
    model, read, scores = weights.smollm2(), texts(1, tokens), []
    with intra_op(1), torch.inference_mode(), trace.recording() as recorder:
        model(read)  # who comes first pays for what is set up once
        with trace.span("prefill", "all tokens", lane="one pass"):
            at_once = model(read, Cache(model.config, 1, tokens))[0]
        cache = Cache(model.config, 1, tokens)
        for place in range(tokens):
            checkpoint(place, tokens, "one token a pass")
            with trace.span("decode", f"token {place}", lane="one by one"):
                scores.append(model(read[:, place : place + 1], cache)[0, 0])
    error = (torch.stack(scores) - at_once).abs().max().item()
    return Phases(tokens, recorder.trace(), error)


def plot(result: Phases) -> plots.Picture:
    """Both ways on one scale, one after the other as they ran."""
    fig, ax = plots.figure(9.5, 2.2)
    title = f"{result.tokens} tokens one by one: {result.ratio:.1f} × the time of one pass"
    plots.timeline(ax, result.trace, lanes=["one pass", "one by one"], title=title)
    names = {"prefill": "all tokens in one pass", "decode": "a pass for each token"}
    plots.legend(fig, list(names), names)
    return fig
