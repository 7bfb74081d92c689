"""The formulas, on runs small enough to work out by hand; both constructors; failed requests."""

from math import inf
from types import SimpleNamespace

import pytest

from utils.core.trace import Span, Trace
from utils.llm_concurrency.engine import metrics
from utils.llm_concurrency.engine.answer import Answer
from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.metrics import Served, goodput, percentile, throughput
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.sequence import Sequence

S = 10**9


def served(number=0, sent=0, times=(2 * S,), completed=True, prompt=10, cached=0, begun=None):
    times = tuple(int(time) for time in times)
    return Served(number, prompt, cached, sent, times, completed, begun)


FIRST = served(0, sent=1 * S, times=(3 * S, 4 * S, 4 * S, 7 * S), begun=2 * S, cached=5)
SINGLE = served(1, sent=2 * S, times=(5 * S,), begun=2 * S, prompt=30)
LOST = served(2, sent=0, times=(1 * S, 11 * S), completed=False, begun=0)
RUN = [FIRST, SINGLE, LOST]


def test_the_latencies_of_completed_requests() -> None:
    assert metrics.ttft(RUN) == [2, 3]
    assert metrics.queue(RUN) == [1, 0]
    assert metrics.prefill(RUN) == [1, 3]
    assert metrics.e2el(RUN) == [6, 3]
    assert metrics.tpot(RUN) == [pytest.approx(4 / 3)]  # one token has no time per token
    assert metrics.failed(RUN) == 1


def test_tokens_of_one_step_are_one_piece() -> None:
    assert metrics.itl(RUN) == [1, 3]
    assert metrics.acceptance_length(RUN) == 3 / 2  # three tokens in two steps after the first


def test_rates_count_completed_requests_over_the_wall_time_of_all() -> None:
    assert metrics.wall(RUN) == 11
    assert throughput(RUN) == pytest.approx((2 / 11, 5 / 11, 45 / 11))


def test_goodput_wants_all_limits_kept() -> None:
    assert goodput(RUN) == pytest.approx(2 / 11)
    assert goodput(RUN, ttft=2) == pytest.approx(1 / 11)
    assert goodput(RUN, ttft=2, tpot=1.3) == 0
    assert goodput(RUN, ttft=3, tpot=4 / 3, e2el=6) == pytest.approx(2 / 11)
    assert goodput(RUN, e2el=5.9) == pytest.approx(1 / 11)


def test_percentiles_and_nothing_completed() -> None:
    assert percentile(list(range(101)), 90) == 90
    assert metrics.percentiles([1.0, 2.0, 3.0])[50] == 2
    assert metrics.summary(RUN)["E2EL"][50] == 4.5
    assert metrics.summary([LOST])["ITL"] == {50: inf, 90: inf, 99: inf}
    nobody = [served(times=(), completed=False)]
    assert metrics.wall(nobody) == inf
    assert throughput(nobody) == (0, 0, 0) and goodput(nobody) == 0


def test_shares() -> None:
    assert metrics.prefix_hit_rate(RUN) == 5 / 40
    assert metrics.prefix_hit_rate([LOST]) == 0
    pool = BlockPool(8, 4)
    pool.allocate()
    assert metrics.kv_utilisation(pool) == 1 / 8
    assert metrics.acceptance_rate(SimpleNamespace(accepted=3, drafted=4)) == 3 / 4
    assert metrics.acceptance_rate(SimpleNamespace(accepted=0, drafted=0)) == 0


@pytest.mark.parametrize(
    ("reason", "counts"),
    [("stop", True), ("length", True), ("cancelled", False), ("deadline", False)],
)
def test_an_answer_is_completed_unless_somebody_ended_it(reason, counts) -> None:
    answer = Answer(7, Request((1, 2, 3), 2), lambda _: None)
    with pytest.raises(ValueError, match="request 7 has not ended"):
        Served.of_answer(answer)
    answer.submitted, answer.times, answer.cached = 5, [8, 9], 2
    answer.end(reason)
    expected = Served(7, 3, 2, 5, (8, 9), counts, 6)
    assert Served.of_answer(answer, {7: 6}) == expected


def test_a_sequence_gives_the_same_record() -> None:
    one = Sequence(7, Request((1, 2, 3), 2))
    one.arrived, one.cached = 5, 2
    assert not Served.of_sequence(one).completed
    one.tokens, one.times = [1, 2, 3, 4], [8]
    assert not Served.of_sequence(one).completed
    assert Served.of_sequence(one, end=4).completed
    one.tokens, one.times = [1, 2, 3, 4, 5], [8, 9]
    assert Served.of_sequence(one, begun={7: 6}) == Served(7, 3, 2, 5, (8, 9), True, 6)
    deaf = Sequence(8, Request((1,), 3, ignore_end=True))
    deaf.tokens = [1, 4]
    assert not Served.of_sequence(deaf, end=4).completed
    assert not Served.of_sequence(Sequence(9, Request((1,))), end=1).completed  # no answer yet


def test_the_beginning_is_the_first_span_that_computes() -> None:
    spans = [
        Span("request 4", "queue", "waits", 0, 3),
        Span("request 4", "prefill", "8 tokens", 3, 5),
        Span("request 4", "prefill", "8 tokens", 5, 7),
        Span("request 11", "decode", "1 tokens", 6, 7),
    ]
    assert metrics.beginnings(Trace(spans)) == {4: 3, 11: 6}
    with pytest.raises(ValueError, match="beginnings"):
        metrics.queue([served()])
