"""A thousand requests of every kind: each ends with a result or a named error; nothing is left."""

import random
import threading

import pytest

from utils.llm.sampling import Sampling
from utils.llm_concurrency.engine.engine import Engine
from utils.llm_concurrency.engine.policies import FairShare, Priority
from utils.llm_concurrency.engine.request import DeadlinePassed, EngineFailed, Rejected, Request
from utils.llm_concurrency.engine.speculate import PromptLookup

COUNT, CALLERS = 1000, 4
NAMED = (Rejected, DeadlinePassed, EngineFailed)


def fields(rng: random.Random, stem: list[int]) -> dict:
    """Mostly sound; some of everything that is not."""
    prompt = stem[: rng.choice([0, 8, 16])] + [rng.randrange(97) for _ in range(rng.randrange(12))]
    how = {
        "prompt": prompt,
        "limit": rng.randrange(1, 10),
        "sampling": Sampling(rng.choice([0.0, 1.0]), repetition_penalty=rng.choice([1.0, 1.2])),
        "seed": rng.randrange(9),
        "user": rng.choice("abc"),
        "priority": rng.randrange(3),
        "logprobs": rng.random() < 0.3,
        "stop": rng.choice([(), ("a",), ("xy", "b")]),
    }
    odd = {
        "limit": (0, 2.5, 10**6), "prompt": ([97], [-1], [1] * 300, "text"), "seed": ("x", 2**70),
        "sampling": (None,), "stop": ("text", ("",)), "deadline": (1e-9, 1e-3, 0.01, -1, "soon"),
        "priority": ("high",), "user": (None,),
    }  # fmt: skip
    if rng.random() < 0.3:
        name = rng.choice(list(odd))
        how[name] = rng.choice(odd[name])
    return how


@pytest.mark.parametrize("policy", [FairShare, Priority])
def test_everybody_ends_with_a_result_or_a_named_error(tiny, letters, memory_check, policy) -> None:
    before = set(threading.enumerate())
    stem = [random.Random(1).randrange(97) for _ in range(16)]
    outcomes: list[str] = []
    engine = Engine(
        tiny, letters, blocks=24, size=4, slots=8, budget=24, chunk=7, threads=1,
        policy=policy(), proposer=PromptLookup(longest=1),
    )  # fmt: skip
    step, run, preempted, failures = engine.core.step, engine.core.runner.run, [0], [0]

    def checked():
        advances = step()
        memory_check(engine.core.scheduler)
        preempted[0] += sum(one.preempted for one in engine.core.scheduler.waiting)
        return advances

    def unreliable(plan):
        if engine.core.steps % 97 == 96 and failures[0] < engine.core.steps:
            failures[0] = engine.core.steps + 1
            raise OSError("injected")
        assert plan.tokens <= 24 and all(work.count for work in plan.work)
        return run(plan)

    engine.core.step, engine.core.runner.run = checked, unreliable

    def call(number: int) -> None:
        rng = random.Random(number)
        open_ = []
        for _ in range(COUNT // CALLERS):
            try:
                answer = engine.submit(Request(**fields(rng, stem)))
            except Exception as error:
                outcomes.append(type(error).__name__ if isinstance(error, NAMED) else repr(error))
                continue
            if rng.random() < 0.15:
                answer.cancel()
            open_.append(answer)
            if len(open_) > 12:
                outcomes.append(ending(open_.pop(0)))
        outcomes.extend(map(ending, open_))

    def ending(answer) -> str:
        try:
            answer.result(60)
        except NAMED as error:
            return type(error).__name__
        except BaseException as error:
            return repr(error)
        assert answer.ended in ("stop", "length", "cancelled")
        assert answer.ended != "length" or len(answer.tokens) == answer.request.limit
        asked = answer.request.logprobs
        assert len(answer.logprobs) == (len(answer.tokens) if asked else 0)
        return answer.ended

    callers = [threading.Thread(target=call, args=(number,)) for number in range(CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(120)
    engine.close()
    assert len(outcomes) == COUNT
    expected = {
        "stop",
        "length",
        "cancelled",
        "Rejected",
        "TooLong",
        "DeadlinePassed",
        "EngineFailed",
    }
    assert set(outcomes) == expected
    assert preempted[0] > 0
    assert engine.pool.used == 0 and engine.core.scheduler.idle
    engine.pool.check([])
    assert set(threading.enumerate()) <= before
