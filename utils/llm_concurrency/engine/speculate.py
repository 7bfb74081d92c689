"""Guess how a text goes on, so that one pass of the model may give several tokens.

A pass for six tokens costs hardly more than one for a single token, since the weights have to be
read once in either case. So wrong guesses cost little, and right ones are tokens for nothing.

Sources: Leviathan et al. (arXiv:2211.17192); Saxena, "Prompt Lookup Decoding", 2023; Zhang et al.,
"Draft & Verify" (arXiv:2309.08168, the model without some of its layers guesses for itself).
"""

from __future__ import annotations

from collections.abc import Sequence as Row
from dataclasses import replace

import torch
from torch import nn

from utils.llm.decoder import Decoder
from utils.llm_concurrency.engine.blocks import BlockPool, OutOfBlocks
from utils.llm_concurrency.engine.model import PagedModel
from utils.llm_concurrency.engine.scheduler import Work
from utils.llm_concurrency.engine.sequence import Sequence


class PromptLookup:
    """If the last tokens stood in the text before, what followed them there is the guess.

    Nothing is computed. It pays where answers repeat their prompt: quotes, code, summaries.
    """

    def __init__(self, count: int = 5, longest: int = 3) -> None:
        if count < 0 or longest < 1:
            raise ValueError(f"count={count}, longest={longest}: give count ≥ 0 and longest ≥ 1")
        self.count, self.longest = count, longest

    def propose(self, sequences: Row[Sequence]) -> None:
        for sequence in sequences:
            sequence.draft = self.guess(sequence.tokens)

    def guess(self, tokens: list[int]) -> list[int]:
        """What followed the latest earlier place of the last `longest` tokens, or of fewer."""
        ends = [place for place in range(len(tokens) - 1, 0, -1) if tokens[place - 1] == tokens[-1]]
        for length in range(min(self.longest, len(tokens) - 1), 0, -1):
            for end in ends:  # the latest first
                if end >= length and tokens[end - length : end] == tokens[-length:]:
                    return tokens[end : end + self.count]
        return []


class DraftModel:
    """Another model guesses: a smaller one, the same with fewer layers, or with coarser weights.

    It reads the same tokens, so it must have the same vocabulary. Its cache, as large as the
    target's, is its own; guesses that were refused are forgotten before the next ones.
    """

    def __init__(self, model: PagedModel, blocks: int, size: int, count: int = 4) -> None:
        if count < 0:
            raise ValueError(f"count={count} is not allowed: give at least 0")
        self.model, self.count = model, count
        self.pool = BlockPool(blocks, size, share=False)
        self._mirrors: dict[int, Sequence] = {}

    def propose(self, sequences: Row[Sequence]) -> None:
        self._forget_all_but({sequence.number for sequence in sequences})
        mirrors = [self._mirror(sequence) for sequence in sequences]
        for _ in range(self.count):
            works = [work for mirror in mirrors if (work := self._next(mirror))]
            if not works:
                break
            tokens = self.model.scores(works).argmax(-1).tolist()
            for work, token in zip(works, tokens, strict=True):
                work.sequence.advance(self.pool, work.count)
                work.sequence.tokens.append(token)
        for sequence, mirror in zip(sequences, mirrors, strict=True):
            sequence.draft = mirror.tokens[len(sequence.tokens) :]

    def _mirror(self, sequence: Sequence) -> Sequence:
        """Our own copy of a sequence, with as much computed as is still true."""
        mirror = self._mirrors.get(sequence.number)
        if mirror is None:
            mirror = self._mirrors[sequence.number] = Sequence(sequence.number, sequence.request)
        pairs = enumerate(zip(mirror.tokens, sequence.tokens, strict=False))
        same = next((n for n, (ours, theirs) in pairs if ours != theirs), len(mirror.tokens))
        mirror.tokens = list(sequence.tokens)
        mirror.computed = min(mirror.computed, same, len(mirror.tokens) - 1)
        mirror.advance(self.pool, 0)
        return mirror

    def _next(self, mirror: Sequence) -> Work | None:
        """What is missing before the next guess; None if there is no use or memory for it."""
        if len(mirror.tokens) >= mirror.request.length - 1:  # the target gives the last token
            return None
        try:
            mirror.grow(self.pool, len(mirror.tokens))
        except OutOfBlocks:
            return None
        return Work(mirror, mirror.computed, len(mirror.tokens) - mirror.computed)

    def _forget_all_but(self, numbers: set[int]) -> None:
        for number in self._mirrors.keys() - numbers:
            self._mirrors.pop(number).leave(self.pool)


def with_layers(decoder: Decoder, keep: Row[int]) -> Decoder:
    """A decoder of some of another's layers; it shares their parameters."""
    config = replace(decoder.config, layers=len(keep))
    with torch.device("meta"):
        smaller = Decoder(config)
    smaller.embed_tokens, smaller.norm = decoder.embed_tokens, decoder.norm
    smaller.lm_head = decoder.lm_head
    smaller.layers = nn.ModuleList(decoder.layers[number] for number in keep)
    return smaller
