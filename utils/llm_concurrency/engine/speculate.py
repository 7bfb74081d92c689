"""Guess how a text goes on, so that one pass of the model may give several tokens.

A pass for six tokens costs hardly more than one for a single token, since the weights have to be
read once in either case. So wrong guesses cost little, and right ones are tokens for nothing.

Sources: Leviathan et al. (arXiv:2211.17192); Saxena, "Prompt Lookup Decoding", 2023; Zhang et al.,
"Draft & Verify" (arXiv:2309.08168, the model without some of its layers guesses for itself).
"""

from __future__ import annotations

from collections.abc import Sequence as Row

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
        for length in range(min(self.longest, len(tokens) - 1), 0, -1):
            last = tokens[-length:]
            for start in range(len(tokens) - length - 1, -1, -1):
                if tokens[start : start + length] == last:
                    return tokens[start + length : start + length + self.count]
        return []
