"""The engine: one thread that computes, for as many callers as come.

    with Engine(weights.smollm2(), tokens.smollm2()) as engine:
        answer = engine.ask("Why is the sky blue?")
        for piece in answer:
            ...

Callers put requests into an inbox and read answers; nothing else is shared with the thread that
computes, so its loop needs no lock: take what came, drop what is not wanted any more, do a step.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable
from typing import Any, Self

import torch

from utils.core import machine
from utils.core.trace import Recorder, now
from utils.llm.decoder import Decoder
from utils.llm.tokens import Tokens
from utils.llm_concurrency.engine.answer import Answer, Text
from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.core import Advance, Core, ModelRunner, Proposer
from utils.llm_concurrency.engine.model import Layout, PagedModel, plain
from utils.llm_concurrency.engine.policies import FirstCome
from utils.llm_concurrency.engine.request import (
    EngineClosed,
    EngineFailed,
    Reason,
    Rejected,
    Request,
    TooLong,
)
from utils.llm_concurrency.engine.scheduler import Scheduler
from utils.llm_concurrency.engine.sequence import Sequence


class Engine:
    """Serves requests with one model until it is closed; a context manager.

    `blocks` of `size` tokens are its memory; `slots`, `budget` and `chunk` are the scheduler's.
    `layout` says how a weight is multiplied (`plain`: float32). `threads` of torch's compute.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokens: Tokens,
        *,
        blocks: int = 512,
        size: int = 16,
        slots: int = 32,
        budget: int = 512,
        chunk: int | None = None,
        policy: FirstCome | None = None,
        share: bool = True,
        proposer: Proposer | None = None,
        layout: Layout = plain,
        threads: int | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.tokens, self.config = tokens, decoder.config
        self.pool = BlockPool(blocks, size, share)
        scheduler = Scheduler(self.pool, policy, slots=slots, budget=budget, chunk=chunk)
        self.core = Core(
            ModelRunner(PagedModel(decoder, blocks, size, layout)),
            scheduler,
            end=tokens.end,
            proposer=proposer,
            recorder=recorder,
        )
        self._threads = machine.cores() if threads is None else threads
        self._numbers = itertools.count()
        self._open: dict[int, tuple[Sequence, Answer, Text]] = {}  # only the loop's
        # Must be held to change or read `_inbox`, `_unwanted` and `_closing`.
        self._news = threading.Condition()
        self._inbox: list[Answer] = []
        self._unwanted: list[Answer] = []
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def ask(self, question: str, **how: Any) -> Answer:
        """Submit a question in the model's own format; `how`: the fields of `Request`."""
        return self.submit(Request(tuple(self.tokens.chat(question)), **how))

    def submit(self, request: Request) -> Answer:
        """The answer, to be written. Rejected (TooLong): never. EngineClosed."""
        if request.length > self.config.context:
            raise TooLong(f"{request.length} tokens do not fit into {self.config.context}")
        self.core.scheduler.check(request)
        if not all(0 <= token < self.config.vocabulary for token in request.prompt):
            raise Rejected(f"prompt: give tokens from 0 to {self.config.vocabulary - 1}")
        with self._news:
            if self._closing:
                raise EngineClosed("the engine is closed")
            answer = Answer(next(self._numbers), request, self._drop)
            answer.submitted = now()
            self._inbox.append(answer)
            self._news.notify()
        return answer

    def generate(self, requests: Iterable[Request], timeout: float | None = None) -> list[Answer]:
        """Submit all, wait for all; if one fails or `timeout` s are over, cancel the rest."""
        answers: list[Answer] = []
        end = None if timeout is None else time.monotonic() + timeout
        try:
            for request in requests:
                answers.append(self.submit(request))
            for answer in answers:
                answer.result(None if end is None else max(0, end - time.monotonic()))
        except BaseException:
            for answer in answers:
                answer.cancel()
            raise
        return answers

    def close(self) -> None:
        """Cancel what is open and end the thread."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join()

    def _drop(self, answer: Answer) -> None:
        with self._news:
            self._unwanted.append(answer)
            self._news.notify()

    # ── In the engine's thread ────────────────────────────────────────────────────────────────

    def _loop(self) -> None:
        torch.set_num_threads(self._threads)
        error: BaseException | None = None
        try:
            while self._take():
                self._drop_late()
                if not self.core.scheduler.idle:
                    self._step()
        except BaseException as raised:  # a defect of ours: still nobody waits for ever
            error = raised
            raise
        finally:
            with self._news:
                self._closing = True
                forgotten, self._inbox = self._inbox, []
            for answer in forgotten:
                answer.end("cancelled")
            for number in list(self._open):
                self._end(number, "failed" if error else "cancelled", error)

    def _step(self) -> None:
        try:
            advances = self.core.step()
        except Exception as error:
            self._fail(error)
            return
        for advance in advances:
            try:
                self._deliver(advance)
            except Exception as error:  # a token that stands for no text
                self._end(advance.sequence.number, "failed", error)

    def _take(self) -> bool:
        """Take what came; wait if there is nothing to do. False: it is over."""
        with self._news:
            while not (self._inbox or self._unwanted or self._closing or self._open):
                self._news.wait()
            new, self._inbox = self._inbox, []
            unwanted, self._unwanted = self._unwanted, []
            closing = self._closing
        for answer in new:
            sequence = Sequence(answer.number, answer.request)
            self._open[answer.number] = sequence, answer, Text(self.tokens, answer.request.stop)
            try:
                self.core.add(sequence)
            except Exception as error:  # a policy raised
                self._end(answer.number, "failed", error)
        for answer in unwanted:
            if answer.number in self._open:
                self._end(answer.number, "cancelled")
        return not closing

    def _drop_late(self) -> None:
        for number, (_, answer, _) in list(self._open.items()):
            limit = answer.request.deadline
            if limit is not None and now() > answer.submitted + limit * 1e9:
                self._end(number, "deadline")

    def _deliver(self, advance: Advance) -> None:
        sequence, answer, text = self._open[advance.sequence.number]
        answer.cached = sequence.cached
        for token in advance.drawn.tokens:
            answer.tokens.append(token)
            if token != self.tokens.end or answer.request.ignore_end:
                piece = text.add(token)
                if piece:
                    answer.write(piece)
            if text.stopped:
                break
        answer.times = sequence.times[: len(answer.tokens)]
        answer.logprobs += advance.drawn.logprobs
        del answer.logprobs[len(answer.tokens) :]  # nor those behind a stop
        if advance.ended or text.stopped:
            self._end(sequence.number, "stop" if text.stopped else advance.ended)

    def _end(self, number: int, reason: Reason, error: BaseException | None = None) -> None:
        sequence, answer, text = self._open.pop(number)
        try:
            self.core.scheduler.remove(sequence)
            if last := text.flush():
                answer.write(last)
        except Exception as raised:  # a policy's; whoever waits must hear of it
            reason, error = "failed", error or raised
        if error is not None:
            failed = EngineFailed(f"request {number}: {type(error).__name__}: {error}")
            failed.__cause__ = error
            error = failed
        answer.end(reason, error)

    def _fail(self, error: Exception) -> None:
        """A step raised: those whose memory is gone have failed, the others go on."""
        scheduler = self.core.scheduler
        there = {*scheduler.running, *scheduler.waiting}
        for number, (sequence, _, _) in list(self._open.items()):
            if sequence not in there:
                self._end(number, "failed", error)
