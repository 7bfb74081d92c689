"""The loop's heart: when answers end, what failures leave behind, what the recorder sees."""

import random

import pytest

from utils.core.trace import Recorder
from utils.llm_concurrency.engine.policies import FirstCome
from utils.llm_concurrency.engine.request import Request

REQUESTS = [Request(range(n, n + length), 10) for n, length in enumerate((3, 8, 12, 5))]


def test_an_answer_ends_with_its_limit_or_the_end_token(serve, alone) -> None:
    first = alone(REQUESTS[0])
    end = first[4]
    served = serve([REQUESTS[0], Request(REQUESTS[0].prompt, 10, ignore_end=True)], end=end)
    assert served.tokens == [first[: first.index(end) + 1], first]
    assert served.reasons == {0: "stop", 1: "length"}


def test_logprobs_are_the_decoder_s(tiny, serve, alone) -> None:
    import torch

    requests = [Request(one.prompt, 10, logprobs=one is not REQUESTS[1]) for one in REQUESTS]
    served = serve(requests, chunk=3)
    for number, request in enumerate(requests):
        said = alone(REQUESTS[number])
        text = torch.tensor([[*request.prompt, *said]])
        lines = tiny(text)[0, len(request.prompt) - 1 : -1].log_softmax(-1)
        right = lines.gather(1, torch.tensor(said)[:, None])[:, 0].tolist()
        expected = right if request.logprobs else []
        assert served.logprobs[number] == pytest.approx(expected, abs=1e-9)


def test_cancelled_at_any_step_the_memory_returns(serve, alone) -> None:
    for step in range(0, 14, 2):
        served = serve(REQUESTS, cancel={1: step, 2: step}, chunk=4, blocks=16)
        for number in (0, 3):
            assert served.sequences[number].generated == alone(REQUESTS[number])
        said = served.sequences[2].generated
        assert said == alone(REQUESTS[2])[: len(said)]


@pytest.fixture
def crash(monkeypatch, memory_check):
    """Fails in `where` at a step; the core must be in order and go on."""

    def go(served, at: int, where: str):
        core = served.core
        target = {"run": core.runner, "plan": core.scheduler, "computed": core.scheduler.policy,
                  "propose": core.proposer}[where]  # fmt: skip
        right, calls = getattr(target, where), iter(range(10_000))

        def wrong(*args):
            if next(calls) == at:
                raise OSError("disk on fire")
            return right(*args)

        monkeypatch.setattr(target, where, wrong)

    return go


@pytest.mark.parametrize("at", range(0, 12, 3))
@pytest.mark.parametrize("where", ["run", "plan", "computed"])
def test_a_failure_takes_those_who_were_in_the_step(serve, alone, crash, at, where) -> None:
    served = serve([], slots=2, policy=FirstCome())
    crash(served, at, where)
    core = served.core
    from utils.llm_concurrency.engine.sequence import Sequence

    there = [Sequence(n, request) for n, request in enumerate(REQUESTS)]
    for one in there:
        core.add(one)
    while True:
        running, waiting = list(core.scheduler.running), list(core.scheduler.waiting)
        try:
            core.step()
        except OSError:
            break
    left = [*core.scheduler.running, *core.scheduler.waiting]
    core.scheduler.pool.check(one.table for one in left)
    if where == "plan":
        assert not left
    else:
        assert not core.scheduler.running and set(left) <= {*running, *waiting}
        assert len(running) < 2 or left == waiting  # who was not in the step has not failed
    while not core.scheduler.idle:
        core.step()
    assert core.scheduler.pool.used == 0
    for one in left:
        assert one.generated == alone(one.request)


def test_a_runner_that_writes_half_and_fails_leaves_no_lie_in_the_prefix_cache(
    serve, alone, monkeypatch
) -> None:
    """The blocks were written, but nobody was told: they must not be found."""
    served = serve([])
    runner, right = served.core.runner, served.core.runner.run

    def wrong(plan):
        right(plan)
        runner.model.cache.keys.fill_(7)
        raise OSError

    monkeypatch.setattr(runner, "run", wrong)
    with pytest.raises(OSError):
        serve(REQUESTS, before=served)
    assert served.core.scheduler.pool.used == 0 and not served.core.scheduler.pool._known
    monkeypatch.setattr(runner, "run", right)
    assert serve(REQUESTS, before=served).tokens == [alone(one) for one in REQUESTS]


def test_a_proposer_that_fails_stops_nobody_for_ever(serve) -> None:
    class Broken:
        def propose(self, sequences) -> None:
            if sequences:
                raise OSError

    with pytest.raises(OSError):
        serve(REQUESTS, proposer=Broken())


def test_the_recorder_has_a_lane_for_each_request_without_overlaps(serve) -> None:
    recorder = Recorder()
    serve(REQUESTS, slots=2, chunk=4, recorder=recorder)
    trace = recorder.trace()
    assert set(trace.lanes) == {f"request {n}" for n in range(4)}
    for number, request in enumerate(REQUESTS):
        spans = trace.select(lane=f"request {number}").spans
        assert all(a.end <= b.start for a, b in zip(spans, spans[1:], strict=False))
        tokens = {kind: sum(s.args["tokens"] for s in spans if s.category == kind)
                  for kind in ("prefill", "decode")}  # fmt: skip
        assert tokens["prefill"] + tokens["decode"] == request.length - 1
        assert tokens["decode"] <= request.limit
    assert trace.select(lane="request 2").spans[0].category == "queue"


@pytest.mark.parametrize("seed", range(8))
def test_random_lives(serve, alone, seed) -> None:
    """Anything together: sizes, memory, chunks, shared beginnings, cancels."""
    rng = random.Random(seed)
    stem = [rng.randrange(97) for _ in range(30)]
    requests = [
        Request(stem[: rng.randrange(30)] + [rng.randrange(97)], rng.randrange(1, 14))
        for _ in range(12)
    ]
    size = rng.choice([1, 2, 4, 16])
    served = serve(
        requests,
        size=size,
        blocks=-(-rng.choice([48, 64, 200]) // size),
        chunk=rng.choice([1, 3, 40]),
        slots=rng.choice([1, 3, 12]),
        share=rng.random() < 0.8,
        arrive={n: rng.randrange(20) for n in range(12)},
        cancel={n: rng.randrange(40) for n in range(0, 12, 4)},
    )
    for number, request in enumerate(requests):
        said = served.sequences[number].generated
        whole = alone(request)
        assert said == (whole[: len(said)] if served.reasons[number] == "cancelled" else whole)
