"""Find notes by meaning: every note is a unit vector, and a search is one matrix product.

The cosine of the angle between two texts says how alike they are; for unit vectors it is their
product. To compare a question with *all* notes is exact search. Its work divides as one likes:
each worker takes some of the notes and finds its best, and the best of those are the best of all.

Source: Reimers & Gurevych, "Sentence-BERT" (arXiv:1908.10084); `encode` is Chapter 1's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from utils.overview.areas.nlp import encode


@dataclass(frozen=True)
class Hit:
    """A note that was found: its place in the library, and the cosine with the question."""

    place: int
    score: float


@dataclass(frozen=True)
class Library:
    """Notes, and the vector of each: (notes, 384)."""

    notes: tuple[str, ...]
    vectors: Tensor

    @classmethod
    def of(cls, notes: Sequence[str]) -> Self:
        """Encode all notes, once. ValueError: there are none."""
        if not notes:
            raise ValueError("notes is empty: give at least one")
        return cls(tuple(notes), encode(list(notes)))

    def scores(self, question: str) -> Tensor:
        """The cosine of the question with every note: (notes,)."""
        return self.vectors @ encode([question])[0]

    def search(self, question: str, count: int) -> list[Hit]:
        """The `count` notes nearest to the question (or all, if there are fewer), best first.

        ValueError: a negative count, or nothing asked.
        """
        if count < 0 or not question.strip():
            raise ValueError(f"count={count}, question={question!r}: give at least 0, and a text")
        best = torch.topk(self.scores(question), min(count, len(self.notes)))
        return [
            Hit(place, score)
            for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
