"""Text to tokens and back; and back piece by piece, while the tokens are still coming.

A token is a row of *bytes*, so a letter outside ASCII may be spread over several: a piece of text
can be shown only once its last byte has come.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer as Library

from utils.core import assets

START, END = "<|im_start|>", "<|im_end|>"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

# A vocabulary is written as text, with a letter for each byte: itself, if it can be seen (and is
# no space), else one from 256 on (Radford et al., "Language Models are Unsupervised Multitask
# Learners", 2019).
_SEEN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = {chr(byte): byte for byte in _SEEN}
_BYTES |= {chr(256 + n): byte for n, byte in enumerate(sorted({*range(256)} - {*_SEEN}))}


class Tokens:
    """The vocabulary of a model, and the rules that cut a text into it."""

    def __init__(self, folder: Path) -> None:
        self._library = Library.from_file(str(folder / "tokenizer.json"))
        self.end = self._library.token_to_id(END)  # generation stops here
        self.size = self._library.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """`START` and `END` in a text become one token each.

        A byte that is in no token is left out: here, some control characters.
        """
        return self._library.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Bytes that are no whole letter yet become "�"."""
        return self._library.decode(list(tokens), skip_special_tokens=False)

    def spell(self, token: int) -> bytes:
        """The bytes that a token stands for; those of all tokens join to the text."""
        return bytes(_BYTES[letter] for letter in self._library.id_to_token(token))

    def chat(self, question: str, system: str = SYSTEM) -> list[int]:
        """The tokens of a question as the model has learnt to be asked."""
        turns = (("system", system), ("user", question))
        said = "".join(f"{START}{who}\n{what}{END}\n" for who, what in turns)
        return self.encode(f"{said}{START}assistant\n")


@cache
def smollm2() -> Tokens:
    return Tokens(assets.path("smollm2"))


class Pieces:
    """Text as it comes: each token in, what can be shown out; the pieces join to the whole.

    Bytes that open a letter wait for the rest of it; bytes that cannot become one show as "�".
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._letters = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The text that this token completes; "" if it ends within a letter."""
        return self._letters.decode(self._tokens.spell(token))

    def flush(self) -> str:
        """What is left at the end: "", or "�" for a letter that never ended."""
        return self._letters.decode(b"", final=True)
