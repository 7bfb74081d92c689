"""Textbook numbers, identities between the formulas, and what has no steady state."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.performance.queueing.theory import Steady

busy = st.floats(0.01, 0.99)


def test_one_server_busy_nine_tenths_of_the_time() -> None:
    queue = Steady(arrival_rate=90, service=0.010)
    assert queue.utilisation == 0.9 and queue.waiting_share == pytest.approx(0.9)
    assert queue.mean_response == pytest.approx(0.100)
    assert queue.mean_wait == pytest.approx(0.090)
    assert queue.mean_queue == pytest.approx(8.1) and queue.mean_number == pytest.approx(9)
    assert Steady(90, 0.010, variability=0).mean_wait == pytest.approx(0.045)
    assert Steady(90, 0.010, variability=3).mean_wait == pytest.approx(0.450)


def erlang_c(load: float, servers: int) -> float:
    """As it is printed in the books, with factorials."""
    top = load**servers / math.factorial(servers) * servers / (servers - load)
    return top / (sum(load**k / math.factorial(k) for k in range(servers)) + top)


@given(busy, st.integers(1, 30))
def test_erlang_s_formula(share: float, servers: int) -> None:
    queue = Steady(share * servers, 1.0, servers)
    assert queue.waiting_share == pytest.approx(erlang_c(share * servers, servers), rel=1e-9)


def test_many_servers_do_not_overflow() -> None:
    assert 0 < Steady(950, 1.0, 1000).waiting_share < 1


@given(busy, st.integers(1, 20), st.floats(0, 5))
def test_little_s_law_and_the_bounds(share: float, servers: int, variability: float) -> None:
    queue = Steady(share * servers / 0.01, 0.01, servers, variability)
    assert queue.mean_number == pytest.approx(queue.mean_queue + queue.load)
    assert queue.mean_wait >= 0 and queue.mean_response >= queue.service
    more = Steady(queue.arrival_rate, 0.01, servers + 1, variability)
    assert more.mean_wait < queue.mean_wait


@given(st.floats(0.3, 0.99), st.integers(1, 8))
def test_the_mean_is_the_area_beside_the_percentiles(share: float, servers: int) -> None:
    queue = Steady(share * servers, 1.0, servers)
    assert queue.wait_percentile(100 * (1 - queue.waiting_share) * (1 - 1e-9)) < 1e-6
    e_th = 100 * (1 - queue.waiting_share / math.e)  # of an exponential, 1/e lies beyond its mean
    assert queue.wait_percentile(e_th) * queue.waiting_share == pytest.approx(
        queue.mean_wait, rel=1e-6
    )
    assert queue.wait_percentile(50) <= queue.wait_percentile(90) <= queue.wait_percentile(99)


@pytest.mark.parametrize("rate", [100, 150])
def test_an_overloaded_queue_has_no_mean(rate: float) -> None:
    with pytest.raises(ValueError, match=f"arrival_rate={rate}.*grows for ever"):
        Steady(rate, 0.01)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"arrival_rate": 0}, "arrival_rate=0"),
        ({"arrival_rate": math.nan}, "arrival_rate=nan"),
        ({"service": -1}, "service=-1"),
        ({"servers": 0}, "servers=0"),
        ({"servers": 1.5}, "servers=1.5"),
        ({"variability": -1}, "variability=-1"),
    ],
)
def test_nonsense_is_refused(given: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Steady(**({"arrival_rate": 1, "service": 0.1} | given))


def test_half_of_them_do_not_wait_when_there_is_time() -> None:
    assert Steady(1, 0.1).wait_percentile(50) == 0 < Steady(9, 0.1).wait_percentile(50)


def test_percentiles_only_where_they_are_known() -> None:
    with pytest.raises(ValueError, match="variability=0"):
        Steady(1, 0.1, variability=0).wait_percentile(90)
    with pytest.raises(ValueError, match="percent=100"):
        Steady(1, 0.1).wait_percentile(100)
