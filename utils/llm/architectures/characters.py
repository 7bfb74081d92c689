"""Real text, character by character: Python's own reference manual, which every Python brings.

A character is a token, so the vocabulary is the alphabet. One more token stands for a hidden
character. Of every ten pieces of the text one is held out: no model learns from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from utils.llm.language import texts

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
HIDDEN = len(ALPHABET)  # the token that BERT calls [MASK]
SIZE = HIDDEN + 1
PIECE = 2000  # characters


def encode(text: str) -> Tensor:
    """Its tokens, (n,); a character outside `ALPHABET` becomes "?"."""
    numbers = {character: number for number, character in enumerate(ALPHABET)}
    return torch.tensor([numbers.get(character, numbers["?"]) for character in text])


def decode(tokens: Tensor | list[int]) -> str:
    return "".join((*ALPHABET, "▁")[int(token)] for token in tokens)


@dataclass(frozen=True)
class Text:
    """Tokens to learn from, and tokens to be judged by; both (n,)."""

    train: Tensor
    held_out: Tensor

    def windows(self, count: int, length: int, dice: torch.Generator) -> Tensor:
        """`count` pieces of the text to learn from, at random places: (count, length)."""
        return _windows(self.train, count, length, dice)

    def exam(self, count: int, length: int) -> Tensor:
        """The same pieces of held-out text for everybody: (count, length)."""
        return _windows(self.held_out, count, length, torch.Generator().manual_seed(1))

    @property
    def unigram_bits(self) -> float:
        """Bits a held-out character costs whoever knows only how frequent each one is."""
        counts = torch.bincount(self.train, minlength=SIZE).double() + 1
        return -(counts / counts.sum())[self.held_out].log2().mean().item()


def _windows(tokens: Tensor, count: int, length: int, dice: torch.Generator) -> Tensor:
    if not 0 < length <= len(tokens):
        raise ValueError(f"length={length} is not allowed: give 1 to {len(tokens)}")
    starts = torch.randint(len(tokens) - length + 1, (count, 1), generator=dice)
    return tokens[starts + torch.arange(length)]


def split(text: str) -> Text:
    """Runs of one sign (rules, indentation) become one; every tenth piece is held out."""
    tokens = encode(re.sub(r"([\W_])\1+", r"\1", text))
    pieces = tokens.split(PIECE)
    held_out = pieces[9::10]
    train = [piece for number, piece in enumerate(pieces) if number % 10 != 9]
    if not held_out:
        raise ValueError(f"{len(tokens)} characters are too few to split: give {10 * PIECE}")
    return Text(torch.cat(train), torch.cat(held_out))


@cache
def manual() -> Text:
    """All topics of Python's manual, in the order of their names. TextMissing."""
    topics = texts.manual()
    return split("\n".join(topics[name] for name in sorted(topics)))
