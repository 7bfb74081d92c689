"""From scores to tokens: one for each sequence, or several if its guesses were right.

A guess is accepted with the probability that the model gives it. If it is not, the token is drawn
from what the guess leaves over. So a token has the model's own distribution, whoever guesses; and
if the best token is always taken, a guess is accepted if it is the best one.

Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding"
(arXiv:2211.17192; here a guess is certain of itself, so its own probability is 1).
"""

from __future__ import annotations

from collections.abc import Sequence as Row
from typing import NamedTuple

import torch
from torch import Tensor

from utils.llm.sampling import probabilities
from utils.llm_concurrency.engine.scheduler import Work
from utils.llm_concurrency.engine.sequence import Sequence


class Drawn(NamedTuple):
    """New tokens of a sequence (none: more of its prompt is to come) and, if asked for, their
    log-probabilities by the model's scores, before any rule of sampling."""

    tokens: list[int]
    logprobs: list[float]


@torch.inference_mode()
def draw(works: Row[Work], scores: Tensor) -> list[Drawn]:
    """What each sequence goes on with, from `Work.scores` rows for each: (rows, vocabulary)."""
    best = scores.argmax(-1).tolist()
    drawn, row = [], 0
    for work in works:
        mine = slice(row, row + work.scores)
        row = mine.stop
        tokens = _tokens(work.sequence, scores[mine], best[mine]) if work.scores else []
        drawn.append(Drawn(tokens, _logprobs(work.sequence, scores[mine], tokens)))
    return drawn


def _tokens(sequence: Sequence, scores: Tensor, best: list[int]) -> list[int]:
    """The guesses that are accepted, and one token more."""
    how = sequence.request.sampling
    if how.temperature == 0 and how.repetition_penalty == 1:
        right = 0
        while right < len(sequence.draft) and sequence.draft[right] == best[right]:
            right += 1
        return best[: right + 1]
    tokens: list[int] = []
    for line, guess in zip(scores, [*sequence.draft, None], strict=True):
        chances = probabilities(line, how, [*sequence.tokens, *tokens])
        if guess is not None:
            if torch.rand((), generator=sequence.dice) < chances[guess]:
                tokens.append(guess)
                continue
            chances = chances.index_fill(0, torch.tensor(guess), 0)
        drawn = torch.multinomial(chances, 1, generator=sequence.dice)
        return [*tokens, int(drawn)]
    raise AssertionError("the last line has no guess")


def _logprobs(sequence: Sequence, scores: Tensor, tokens: list[int]) -> list[float]:
    if not (sequence.request.logprobs and tokens):
        return []
    lines = scores[: len(tokens)].log_softmax(-1)
    return lines.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
