"""From scores to the next token: what to forbid, how bold to be, and one throw of the dice.

The rules are applied in this order: a penalty for what was said already, temperature, then three
ways to cut off the unlikely tail. Temperature 0 takes the best token and throws no dice.

Sources: Keskar et al., "CTRL" (arXiv:1909.05858, the penalty); Fan et al., "Hierarchical Neural
Story Generation" (arXiv:1805.04833, top-k); Holtzman et al., "The Curious Case of Neural Text
Degeneration" (arXiv:1904.09751, top-p); Nguyen et al., "Turning Up the Heat" (arXiv:2407.01082,
min-p).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How to choose a token. The defaults always take the most likely one (greedy)."""

    temperature: float = 0.0  # divides the scores: above 1 flatter, below 1 steeper
    top_k: int = 0  # keep the likeliest so many (and what ties with the last); 0: all
    top_p: float = 1.0  # keep the fewest tokens that have this probability together
    min_p: float = 0.0  # keep what is at least so likely as a part of the likeliest
    repetition_penalty: float = 1.0  # above 1: what was there already is less likely

    def __post_init__(self) -> None:
        allowed = {
            "temperature": (0 <= self.temperature < math.inf, "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0"),
        }
        for name, (holds, what) in allowed.items():
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: give {what}")


GREEDY = Sampling()


def penalised(scores: Tensor, said: Iterable[int], penalty: float) -> Tensor:
    """(vocabulary,) scores with those of the tokens in `said` pushed down (up, below 1)."""
    places = torch.tensor(sorted(set(said)), dtype=torch.long)
    there = scores[places]
    return scores.index_copy(0, places, torch.where(there > 0, there / penalty, there * penalty))


def probabilities(scores: Tensor, how: Sampling, said: Iterable[int] = ()) -> Tensor:
    """The probability of each token to be chosen: (vocabulary,) → (vocabulary,), sum 1."""
    if how.repetition_penalty != 1:
        scores = penalised(scores, said, how.repetition_penalty)
    if how.temperature == 0:
        return torch.zeros_like(scores).index_fill(0, scores.argmax(), 1)
    scores = scores / how.temperature
    if 0 < how.top_k < len(scores):
        scores = scores.where(scores >= scores.topk(how.top_k).values[-1], -torch.inf)
    chances = scores.softmax(0)
    if how.top_p < 1:
        ordered, places = chances.sort(descending=True, stable=True)
        before = ordered.cumsum(0) - ordered  # the likeliest has 0 before it, so it always stays
        chances = chances.index_fill(0, places[before >= how.top_p], 0)
    if how.min_p > 0:
        chances = chances.where(chances >= how.min_p * chances.max(), 0)
    return chances / chances.sum()


def choose(
    scores: Tensor, how: Sampling, dice: torch.Generator | None = None, said: Iterable[int] = ()
) -> int:
    """The next token, from the (vocabulary,) scores for it."""
    if how.temperature == 0 and how.repetition_penalty == 1:
        return int(scores.argmax())
    chances = probabilities(scores, how, said)
    if how.temperature == 0:
        return int(chances.argmax())
    return int(torch.multinomial(chances, 1, generator=dice))
