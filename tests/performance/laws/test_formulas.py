"""The laws at numbers worked by hand, their limits, and what they refuse."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.performance.laws.formulas import amdahl, amdahl_limit, gustafson, optimum, usl

shares = st.floats(0, 1)
counts = st.floats(1, 1e6)


@pytest.mark.parametrize(
    ("serial", "expected", "limit"),
    [(0.7, (1.29032, 1.9, 1.19760), 1.4286), (0.3, (2.10526, 3.1, 1.86916), 3.3333)],
)
def test_four_workers_by_hand(serial: float, expected: tuple[float, ...], limit: float) -> None:
    found = amdahl(4, serial), gustafson(4, serial), usl(4, serial, 0.02)
    assert found == pytest.approx(expected, abs=5e-6)
    assert amdahl_limit(serial) == pytest.approx(limit, abs=5e-5)


@given(shares, st.floats(0, 10))
def test_one_worker_is_as_fast_as_one_worker(serial: float, coherence: float) -> None:
    assert amdahl(1, serial) == gustafson(1, serial) == 1
    assert usl(1, serial, coherence) == 1


@given(counts, shares)
def test_amdahl_stays_below_gustafson_and_both_limits(n: float, serial: float) -> None:
    assert amdahl(n, serial) * (1 + 1e-9) >= 1
    assert amdahl(n, serial) <= gustafson(n, serial) * (1 + 1e-9)
    assert gustafson(n, serial) <= n * (1 + 1e-9)
    assert amdahl(n, serial) <= amdahl_limit(serial) * (1 + 1e-9)


@given(st.floats(0, 0.99), st.floats(1e-6, 1), st.floats(1.01, 100))
def test_no_count_beats_the_optimum(share: float, cost: float, factor: float) -> None:
    best = optimum(share, cost)
    top = usl(best, share, cost) * (1 + 1e-12)
    assert usl(best * factor, share, cost) <= top
    assert usl(max(1.0, best / factor), share, cost) <= top


def test_optimum_at_the_edges() -> None:
    assert optimum(0.1, 0.02) == pytest.approx(math.sqrt(45))
    assert optimum(0.3, 0) == math.inf
    assert optimum(1, 0) == optimum(1, 0.5) == optimum(0.5, 3) == 1
    assert amdahl_limit(0) == math.inf and amdahl(8, 0) == 8


def test_arrays_go_through() -> None:
    n = np.array([1.0, 2.0, 4.0])
    assert usl(n, 0.3, 0.02) == pytest.approx([usl(x, 0.3, 0.02) for x in n])


@pytest.mark.parametrize("workers", [0, 0.5, -1, math.inf, math.nan, np.array([1.0, 0.0])])
def test_workers_that_make_no_sense_are_refused(workers: float) -> None:
    for law in (lambda n: amdahl(n, 0.5), lambda n: gustafson(n, 0.5), lambda n: usl(n, 0.5, 0)):
        with pytest.raises(ValueError, match="workers="):
            law(workers)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, math.inf])
def test_shares_outside_0_to_1_are_refused(share: float) -> None:
    for call in (
        lambda: amdahl(2, share),
        lambda: gustafson(2, share),
        lambda: amdahl_limit(share),
    ):
        with pytest.raises(ValueError, match="serial="):
            call()
    for call in (lambda: usl(2, share, 0), lambda: optimum(share, 0.1)):
        with pytest.raises(ValueError, match="contention="):
            call()


@pytest.mark.parametrize("cost", [-1e-9, math.nan, math.inf])
def test_negative_coherence_is_refused(cost: float) -> None:
    for call in (lambda: usl(2, 0.5, cost), lambda: optimum(0.5, cost)):
        with pytest.raises(ValueError, match="coherence="):
            call()
