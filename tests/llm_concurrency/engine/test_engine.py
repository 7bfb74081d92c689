"""The thread that computes: submit, stream, cancel, close, fail; and what is left after it."""

import asyncio
import copy
import threading
import time
from dataclasses import replace

import pytest
import torch

from utils.llm.sampling import Sampling
from utils.llm_concurrency.engine.engine import Engine
from utils.llm_concurrency.engine.policies import FirstCome
from utils.llm_concurrency.engine.request import (
    DeadlinePassed,
    EngineClosed,
    EngineFailed,
    Rejected,
    Request,
    TooLong,
)
from utils.llm_concurrency.engine.speculate import PromptLookup

WAIT = 60  # s, for what comes much sooner
REQUESTS = [Request(range(n, n + length), 12) for n, length in enumerate((3, 8, 12, 5))]


@pytest.fixture
def engine(tiny, letters, memory_check):
    """A function that makes one, checked after every step; all are closed, and nothing is left."""
    made = []

    def make(**how) -> Engine:
        how = {"blocks": 60, "size": 4, "budget": 40, "threads": 1, **how}
        one = Engine(tiny, letters, **how)
        made.append(one)
        step = one.core.step

        def checked():
            advances = step()
            memory_check(one.core.scheduler)
            return advances

        one.core.step = checked
        return one

    yield make
    for one in made:
        one.close()
        assert not one._thread.is_alive() and one.core.scheduler.idle and not one._open
        assert one.pool.used == 0
        one.pool.check([])


def plain(alone, letters, request: Request) -> list[int]:
    said = alone(Request(request.prompt, request.limit, request.sampling, request.seed))
    return said[: said.index(letters.end) + 1] if letters.end in said else said


def test_answers_are_the_plain_loop_s(engine, alone, letters) -> None:
    answers = engine(chunk=3).generate(REQUESTS, WAIT)
    for answer, request in zip(answers, REQUESTS, strict=False):
        said = plain(alone, letters, request)
        assert answer.tokens == said and len(answer.times) == len(said)
        text = letters.text(said[:-1] if said[-1] == letters.end else said)
        assert answer.text == answer.result() == "".join(answer) == text
        assert answer.ended in ("stop", "length") and answer.logprobs == []
        assert answer.submitted <= answer.times[0] <= answer.times[-1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="platform: torch finds no GPU here")
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0)])
def test_a_gpu_gives_the_same_tokens(tiny, letters, alone, sampling) -> None:
    requests = [replace(request, sampling=sampling) for request in REQUESTS]
    with Engine(copy.deepcopy(tiny).cuda(), letters, blocks=60, size=4, chunk=5) as there:
        for answer in there.generate(requests, WAIT):
            assert answer.tokens == plain(alone, letters, answer.request)


def test_a_time_limit_is_for_all_together(engine) -> None:
    with pytest.raises(TimeoutError):
        engine().generate([Request(range(9), 180, ignore_end=True)] * 3, timeout=0)


def test_the_end_token_is_no_text(tiny, letters, alone) -> None:
    request = REQUESTS[1]
    end = alone(request)[3]
    with Engine(tiny, type(letters)(end), blocks=9, size=4, threads=1) as small:
        stopped = small.submit(request)
        whole = small.submit(Request(request.prompt, 12, ignore_end=True))
        assert stopped.result(WAIT) == type(letters)(end).text(stopped.tokens[:-1])
        assert stopped.tokens[-1] == end and stopped.ended == "stop"
        assert (
            whole.result(WAIT) == type(letters)(end).text(alone(request))
            and whole.ended == "length"
        )


class Knows:
    """Guesses four tokens of an answer that it knows."""

    def __init__(self, said: list[int]) -> None:
        self.said = said

    def propose(self, sequences) -> None:
        for one in sequences:
            one.draft = self.said[len(one.generated) :][:4]


@pytest.mark.parametrize("guessed", [False, True])
def test_a_stop_ends_the_answer_its_tokens_and_its_logprobs(
    engine, alone, letters, guessed
) -> None:
    said = alone(REQUESTS[0])
    stop = letters.text(said[2:3])
    one = engine(proposer=Knows(said) if guessed else None)
    answer = one.submit(Request(REQUESTS[0].prompt, 12, stop=(stop,), logprobs=True))
    text = letters.text(said)
    assert answer.result(WAIT) == text[: text.index(stop)] and answer.ended == "stop"
    assert len(answer.tokens) == len(answer.logprobs) == len(answer.times) <= 3


def test_streams_by_iterator_and_by_coroutine(engine, letters, alone) -> None:
    one = engine()
    for_threads = one.submit(REQUESTS[2])
    assert "".join(for_threads) == for_threads.result(WAIT)

    async def read(request: Request) -> str:
        return "".join([piece async for piece in one.submit(request)])

    async def everyone() -> list[str]:
        return await asyncio.gather(*map(read, REQUESTS))

    together = asyncio.run(asyncio.wait_for(everyone(), WAIT))
    assert together == [answer.text for answer in one.generate(REQUESTS, WAIT)]


def test_what_can_never_be_served_is_refused_at_the_call(engine) -> None:
    one = engine(blocks=10)
    for request, error in (
        (Request(range(20), 21), "41 tokens do not fit into a memory of 40"),
        (Request([1] * 150, 51), "201 tokens do not fit into 200"),
    ):
        with pytest.raises(TooLong, match=error):
            one.submit(request)
    for token in (-1, 97):
        with pytest.raises(Rejected, match="prompt: give tokens from 0 to 96"):
            one.submit(Request([token], 5))
    with pytest.raises(Rejected, match="limit=0"):
        one.ask("hello", limit=0)


def test_cancelled_before_during_and_after(engine) -> None:
    one = engine(slots=1)
    running, waiting = (one.submit(Request([n], 150, ignore_end=True)) for n in (1, 2))
    next(iter(running))
    waiting.cancel()
    assert waiting.result(WAIT) == "" and waiting.ended == "cancelled"
    running.cancel()
    running.cancel()
    text = running.result(WAIT)
    assert running.ended == "cancelled" and 1 <= len(running.tokens) <= 150
    running.cancel()
    assert one.submit(REQUESTS[0]).result(WAIT) and running.text == text


@pytest.mark.parametrize("slots", [1, 2])
def test_deadlines_of_who_runs_and_of_who_waits(engine, monkeypatch, slots) -> None:
    one = engine(slots=slots, budget=4)
    run = one.core.runner.run
    monkeypatch.setattr(one.core.runner, "run", lambda plan: (time.sleep(0.02), run(plan))[1])
    forever = one.submit(Request([1], 190, ignore_end=True))
    late = one.submit(Request([2], 150, deadline=0.1, ignore_end=True))
    with pytest.raises(DeadlinePassed, match="not complete within 0.1 s"):
        late.result(WAIT)
    assert late.ended == "deadline" and (slots == 1) == (late.tokens == [])
    assert forever.ended is None
    forever.cancel()


def test_closing_ends_everything_and_nothing_comes_after(engine) -> None:
    one = engine(slots=2)
    answers = [one.submit(Request([n], 150, ignore_end=True)) for n in range(6)]
    one.close()
    one.close()
    assert {answer.ended for answer in answers} == {"cancelled"}
    with pytest.raises(EngineClosed, match="the engine is closed"):
        one.submit(REQUESTS[0])


def test_submitting_from_many_threads_while_it_closes(engine) -> None:
    """Everybody gets an answer that ends, or hears that it is closed."""
    one, outcomes, go = engine(), [], threading.Barrier(7)

    def ask(number: int) -> None:
        go.wait(10)
        try:
            while True:
                answer = one.submit(Request([number], 3))
                answer.result(WAIT)
                outcomes.append(answer.ended)
        except EngineClosed:
            outcomes.append("closed")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    go.wait(10)
    time.sleep(0.05)
    one.close()
    for thread in threads:
        thread.join(WAIT)
    assert outcomes.count("closed") == 6
    assert set(outcomes) <= {"closed", "cancelled", "length", "stop"}


def test_numbers_are_given_once(engine) -> None:
    one, numbers = engine(), []

    def ask() -> None:
        numbers.extend(one.submit(Request([1], 1)).number for _ in range(50))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert sorted(numbers) == list(range(200))


@pytest.mark.parametrize("where", ["run", "propose", "rank", "computed", "arrived"])
def test_a_failure_inside_is_the_answer_s_and_the_engine_goes_on(
    engine, monkeypatch, alone, letters, where
) -> None:
    one = engine(policy=FirstCome(), proposer=PromptLookup(), slots=2)
    target = {"run": one.core.runner, "propose": one.core.proposer}.get(
        where, one.core.scheduler.policy
    )
    right, fail = getattr(target, where), threading.Event()

    def wrong(*args):
        if fail.is_set():
            fail.clear()
            raise OSError("disk on fire")
        return right(*args)

    monkeypatch.setattr(target, where, wrong)
    open_ = one.submit(Request([1], 150, ignore_end=True))
    next(iter(open_))
    fail.set()
    hit = one.submit(Request([2], 150, ignore_end=True)) if where == "arrived" else open_
    with pytest.raises(
        EngineFailed, match=f"request {hit.number}: OSError: disk on fire"
    ) as caught:
        hit.result(WAIT)
    assert isinstance(caught.value.__cause__, OSError) and hit.ended == "failed"
    assert one.submit(REQUESTS[0]).result(WAIT)
    open_.cancel()


def test_a_token_without_text_fails_its_own_answer_only(
    engine, letters, alone, monkeypatch
) -> None:
    unspeakable = alone(REQUESTS[1])[5]
    assert unspeakable not in alone(REQUESTS[0])
    spell = letters.spell

    def wrong(token: int) -> bytes:
        if token == unspeakable:
            raise KeyError(token)
        return spell(token)

    monkeypatch.setattr(letters, "spell", wrong)
    one = engine()
    good, bad = one.submit(REQUESTS[0]), one.submit(REQUESTS[1])
    assert good.result(WAIT)
    with pytest.raises(EngineFailed, match="request 1: KeyError"):
        bad.result(WAIT)


def test_one_that_fails_or_is_late_ends_the_others_of_generate(engine) -> None:
    one = engine()
    with pytest.raises(TooLong):
        one.generate([Request([1], 190, ignore_end=True), Request([1] * 150, 190)])
    with pytest.raises(TimeoutError):
        one.generate([Request([1], 190, ignore_end=True)] * 3, timeout=1e-3)
    deadline = time.monotonic() + WAIT
    while one._open and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not one._open


def test_the_second_of_two_equal_prompts_is_cached(engine) -> None:
    one = engine()
    prompt, how = range(30), Sampling(1.0)
    first, second = (one.submit(Request(prompt, 5, how, seed=3)) for _ in range(2))
    assert first.result(WAIT) == second.result(WAIT)
    third = one.submit(Request(prompt, 5, how, seed=3))
    assert third.result(WAIT) == first.text and third.cached == 28 and first.cached == 0


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_policy_that_raises_at_the_end_leaves_nobody_waiting(engine, monkeypatch, how) -> None:
    one = engine()

    def wrong(sequence):
        raise OSError("disk on fire")

    monkeypatch.setattr(one.core.scheduler.policy, "ended", wrong)
    deadline = 0.05 if how == "deadline" else None
    hit = one.submit(Request([1], 150, ignore_end=True, deadline=deadline))
    if how == "cancel":
        next(iter(hit))
        hit.cancel()
    with pytest.raises((EngineFailed, DeadlinePassed)):
        hit.result(20)
    monkeypatch.undo()
    assert len(one.submit(Request([2], 3, ignore_end=True)).result(20)) >= 0
    assert one.pool.used == 0


def test_a_defect_of_the_loop_ends_all_and_closes(engine, monkeypatch) -> None:
    one = engine()
    open_ = one.submit(Request([1], 150, ignore_end=True))
    next(iter(open_))
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(one, "_drop_late", lambda: 1 / 0)
    with pytest.raises(EngineFailed, match="ZeroDivisionError"):
        open_.result(20)
    one.close()
    with pytest.raises(EngineClosed):
        one.submit(Request([1], 1))
