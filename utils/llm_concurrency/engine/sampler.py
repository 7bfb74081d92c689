"""From scores to tokens: one for each sequence, or several if its guesses were right.

Each token is drawn as if nobody had guessed; a guess is accepted if it is what was drawn, and what
was computed behind it then counts. So a guess is accepted with the probability that the model gives
it, tokens have the model's own distribution, and a seed gives the same tokens whoever guesses.

Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding"
(arXiv:2211.17192; their rule, for a guess that is certain of itself: its probability is 1).
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
    """What each sequence goes on with, from `Work.rows` rows for each: (rows, vocabulary)."""
    best = scores.argmax(-1).tolist()
    drawn, row = [], 0
    for work in works:
        mine = slice(row, row + work.rows)
        row = mine.stop
        tokens = _tokens(work.sequence, scores[mine], best[mine]) if work.rows else []
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
    # On the processor, whose dice they are: a seed gives the same on every device.
    lines = scores.to("cpu", torch.promote_types(scores.dtype, torch.float32))
    for line, guess in zip(lines, [*sequence.draft, None], strict=True):
        chances = probabilities(line, how, [*sequence.tokens, *tokens])
        tokens.append(int(torch.multinomial(chances, 1, generator=sequence.dice)))
        if tokens[-1] != guess:
            break
    return tokens


def _logprobs(sequence: Sequence, scores: Tensor, tokens: list[int]) -> list[float]:
    if not (sequence.request.logprobs and tokens):
        return []
    lines = scores[: len(tokens)].log_softmax(-1, torch.promote_types(scores.dtype, torch.float32))
    return lines.gather(1, torch.tensor(tokens, device=lines.device)[:, None])[:, 0].tolist()
