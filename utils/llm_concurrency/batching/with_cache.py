"""One answer twice: with a cache of keys and values, and computing them again for every token.

A token's keys and values depend on the tokens before it and on nothing that comes later. So they
are the same in every pass, and may be kept: n tokens cost n and not 1 + 2 + … + n.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.llm import weights
from utils.llm.decoder import Cache, Config
from utils.llm.generate import generate
from utils.llm_concurrency.parallel.prompts import prompts

WAYS = {"with cache": True, "without": False}


def bytes_a_token(config: Config) -> int:
    """A key and a value for every layer and head, 4 bytes a number."""
    return 2 * config.layers * config.kv_heads * config.head_dim * 4


@dataclass(frozen=True)
class Twice:
    """By way: the tokens of the answer; for each, the seconds, and how many went through."""

    prompt: int
    answers: dict[str, list[int]]
    seconds: dict[str, list[float]]
    passed: dict[str, list[int]]
    cache_bytes: int  # as allocated, a token


@experiment
def run(
    prompt: Annotated[int, Range(1, 256, label="tokens of prompt")] = 16,
    answer: Annotated[int, Range(2, 256, label="tokens of answer")] = 24,
) -> Twice:
    """Both ways in turns, a token each."""
    model, text = weights.smollm2(), prompts(1)[0] * prompt
    passed: list[int] = []  # tokens of each pass of the model
    result = Twice(
        prompt,
        *({way: [] for way in WAYS} for _ in range(3)),
        Cache(model.config, 1, 1).keys.nbytes * 2,
    )
    hook = model.embed_tokens.register_forward_hook(
        lambda _, inputs, __: passed.append(inputs[0].numel())
    )
    try:
        loops = {way: generate(model, text[:prompt], answer, cached=c) for way, c in WAYS.items()}
        for done in range(answer):
            checkpoint(done, answer, "tokens, each twice")
            for way, loop in loops.items():
                start = time.perf_counter()
                result.answers[way].append(next(loop))
                result.seconds[way].append(time.perf_counter() - start)
                result.passed[way].append(passed[-1])
    finally:
        hook.remove()
    return result


def plot(result: Twice) -> plots.Picture:
    """Left what each token took; right the tokens computed so far."""
    fig, (left, right) = plots.figure(9.5, 3.4, cols=2)
    for (way, seconds), color in zip(
        result.seconds.items(), (plots.GREEN, plots.VERMILION), strict=True
    ):
        places = range(1, len(seconds) + 1)
        left.plot(places, [1e3 * value for value in seconds], "o-", color=color, markersize=3)
        total = list(accumulate(result.passed[way]))
        right.plot(places, total, color=color, label=f"{way}: {total[-1]:,} in the end")
    left.set_ylim(0)
    left.set_title("milliseconds for the n-th token of the answer", loc="left")
    right.set_title("tokens that went through the model so far", loc="left")
    right.legend(frameon=False, fontsize=9)
    for ax in (left, right):
        ax.set_xlabel("n", fontsize=9)
        ax.xaxis.get_major_locator().set_params(integer=True)
    return fig
