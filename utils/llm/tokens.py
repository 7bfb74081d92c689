"""Text to tokens and back; and back piece by piece, while the tokens are still coming.

A token is a row of *bytes*, so a letter outside ASCII may be spread over several: a piece of text
can be shown only once its last byte has come.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer as Library

from utils.core import assets

START, END = "<|im_start|>", "<|im_end|>"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class Tokens:
    """The vocabulary of a model, and the rules that cut a text into it."""

    def __init__(self, folder: Path) -> None:
        self._library = Library.from_file(str(folder / "tokenizer.json"))
        self.end = self._library.token_to_id(END)  # generation stops here
        self.size = self._library.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """`START` and `END` in a text become one token each."""
        return self._library.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Bytes that are no whole letter yet become "�"."""
        return self._library.decode(list(tokens), skip_special_tokens=False)

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

    Only the tokens since the last shown letter are decoded again, so a long answer costs no more
    for each token than a short one.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._window: list[int] = []  # some tokens shown already, for what they lend to the next
        self._shown = 0  # tokens of the window whose text is out

    def add(self, token: int) -> str:
        """The text that this token completes; "" if it ends within a letter."""
        self._window.append(token)
        text = self._tokens.decode(self._window)
        if text.endswith("�") and len(self._window) - self._shown < 4:
            return ""  # a letter has at most 4 bytes, so 4 tokens with none complete are no letter
        return self._show(text)

    def flush(self) -> str:
        """What is left at the end, whole or not."""
        return self._show(self._tokens.decode(self._window))

    def _show(self, text: str) -> str:
        piece = text[len(self._tokens.decode(self._window[: self._shown])) :]
        self._window = self._window[self._shown :]
        self._shown = len(self._window)
        return piece
