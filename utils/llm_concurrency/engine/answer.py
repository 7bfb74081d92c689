"""What a caller holds: an answer that is still being written."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

from utils.llm.tokens import Pieces, Tokens
from utils.llm_concurrency.engine.request import DeadlinePassed, Reason, Request


class Text:
    """Tokens in, text out, as soon as it can be neither half a letter nor the begin of a stop."""

    def __init__(self, tokens: Tokens, stop: tuple[str, ...]) -> None:
        self._pieces, self._stop = Pieces(tokens), stop
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        return self._release(self._pieces.add(token))

    def flush(self) -> str:
        """What is left when nothing more comes."""
        piece = "" if self.stopped else self._release(self._pieces.flush())
        piece, self._held = piece + self._held, ""
        return piece

    def _release(self, piece: str) -> str:
        self._held += piece
        found = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        held = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        shown = self._held[: len(self._held) - held]
        self._held = self._held[len(shown) :]
        return shown


def _overlap(text: str, stop: str) -> int:
    """How many letters at the end of a text could be the beginning of `stop`."""
    return next(
        (n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0
    )


class Answer:
    """Iterate it for pieces of text as they come, or wait for all with `result`.

    Any thread may read it, any number of times; the engine's thread writes. `times` are ns at
    which each token was there.
    """

    def __init__(self, number: int, request: Request, cancel: Callable[[Answer], None]) -> None:
        self.number, self.request = number, request
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.times: list[int] = []
        self.submitted = 0
        self.cached = 0  # tokens of the prompt that were not computed, but found
        self.ended: Reason | None = None
        self.error: BaseException | None = None
        self._parts: list[str] = []
        self._cancel = cancel
        self._listeners: list[Callable[[], object]] = []
        # Must be held to change or read `_parts` and `ended` together, and `_listeners`.
        self._changed = threading.Condition()

    @property
    def text(self) -> str:
        """As much as there is."""
        return "".join(self._parts)

    def cancel(self) -> None:
        """Ask for an early end; what was written stays."""
        self._cancel(self)

    def result(self, timeout: float | None = None) -> str:
        """The whole text. TimeoutError: not done in `timeout` seconds. Or why it failed."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.ended is not None, timeout):
                raise TimeoutError(f"request {self.number} is not done after {timeout} s")
        if self.error is not None:
            raise self.error
        return self.text

    def __iter__(self) -> Iterator[str]:
        """Pieces of text, from the first; ends with the answer, or raises why it failed."""
        at = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda at=at: len(self._parts) > at or self.ended)
                new, done = self._parts[at:], self.ended is not None
            yield from new
            at += len(new)
            if done:
                break
        if self.error is not None:
            raise self.error

    async def __aiter__(self) -> AsyncIterator[str]:
        """The same for a coroutine, which lets others go on meanwhile."""
        loop, more = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody reads here any more
                loop.call_soon_threadsafe(more.set)

        with self._changed:
            self._listeners.append(wake)
        try:
            at, done = 0, False
            while not done:
                more.clear()
                with self._changed:
                    new, done = self._parts[at:], self.ended is not None
                for piece in new:
                    yield piece
                at += len(new)
                if not done:
                    await more.wait()
        finally:
            with self._changed:
                self._listeners.remove(wake)
        if self.error is not None:
            raise self.error

    # ── For the engine's thread ───────────────────────────────────────────────────────────────

    def write(self, piece: str) -> None:
        with self._changed:
            self._parts.append(piece)
            self._wake()

    def end(self, reason: Reason, error: BaseException | None = None) -> None:
        """Nothing more comes."""
        if reason == "deadline":
            seconds = self.request.deadline
            error = DeadlinePassed(f"request {self.number} was not complete within {seconds} s")
        with self._changed:
            self.ended, self.error = reason, error
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        for wake in self._listeners:
            wake()
