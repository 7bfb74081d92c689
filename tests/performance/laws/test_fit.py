"""Known parameters come back, intervals hold the truth as often as they say, no nonsense passes."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from utils.performance.laws.fit import Estimate, fit
from utils.performance.laws.formulas import optimum, usl

SIZES = np.array([1, 2, 3, 4, 6, 8, 12], float)
shares, costs = st.floats(0, 0.95), st.floats(0, 0.5)


def holds(estimate: Estimate, truth: float) -> bool:
    return estimate.low <= truth <= estimate.high


@settings(max_examples=40, deadline=None)
@example(0.0, 0.0, 1.0)
@example(1.0, 0.0, 1.0)
@example(1.0, 0.1, 1.0)
@example(0.5, 3.0, 1.0)
@given(shares, costs, st.floats(1e-3, 1e6))
def test_exact_measurements_give_the_parameters_back(
    share: float, cost: float, scale: float
) -> None:
    found = fit("usl", SIZES, throughput=scale * usl(SIZES, share, cost))
    assert found.contention.value == pytest.approx(share, abs=1e-5)
    assert found.coherence.value == pytest.approx(cost, abs=1e-6)
    assert found.scale == pytest.approx(scale, rel=1e-5)
    assert np.abs(found.residuals).max() < 1e-6
    for estimate in (found.contention, found.coherence, found.optimum):
        assert estimate.low <= estimate.value <= estimate.high
    if share < 1:  # else the curve of σ = 1, κ = 0 is flat, and every count is an optimum
        assert holds(found.optimum, optimum(found.contention.value, found.coherence.value))


@settings(max_examples=30, deadline=None)
@given(shares, st.floats(0.01, 100))
def test_amdahl_s_exact_measurements_too(share: float, scale: float) -> None:
    found = fit("amdahl", SIZES, seconds=1 / (scale * usl(SIZES, share, 0)))
    assert found.contention.value == pytest.approx(share, abs=1e-5)
    assert found.coherence == (0, 0, 0)


def noisy(seed: int, share: float, cost: float, noise: float = 0.04) -> tuple[np.ndarray, ...]:
    sizes = np.repeat(SIZES, 3)
    errors = np.random.default_rng(seed).normal(0, noise, len(sizes))
    return sizes, usl(sizes, share, cost) * np.exp(errors)


@pytest.mark.parametrize(("share", "cost"), [(0.1, 0.02), (0.3, 0.0)])
def test_about_19_of_20_intervals_hold_the_truth(share: float, cost: float) -> None:
    """Of 60, fewer than 50 would come about once in a thousand times if each held it at 95 %."""
    fits = [
        fit("usl", sizes, throughput=rates)
        for sizes, rates in (noisy(seed, share, cost) for seed in range(60))
    ]
    assert sum(holds(found.contention, share) for found in fits) >= 50
    assert sum(holds(found.coherence, cost) for found in fits) >= 50
    assert sum(holds(found.optimum, optimum(share, cost)) for found in fits) >= 50
    assert not all(found.contention.low == 0 and found.contention.high == 1 for found in fits)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e6))
def test_the_unit_moves_the_scale_only(seed: int, factor: float) -> None:
    sizes, rates = noisy(seed, 0.2, 0.02)
    one, other = fit("usl", sizes, throughput=rates), fit("usl", sizes, throughput=factor * rates)
    assert other.scale == pytest.approx(factor * one.scale, rel=1e-6)
    assert other.contention == pytest.approx(one.contention, rel=1e-3, abs=1e-5)
    assert other.coherence == pytest.approx(one.coherence, rel=1e-3, abs=1e-5)
    assert other.aicc == pytest.approx(one.aicc, abs=1e-4)


def test_order_and_seconds_make_no_difference() -> None:
    sizes, rates = noisy(1, 0.2, 0.02)
    one = fit("usl", sizes, throughput=rates)
    other = fit("usl", sizes[::-1].tolist(), seconds=(1 / rates[::-1]).tolist())
    assert other.contention == pytest.approx(one.contention, rel=1e-3)
    assert other.optimum == pytest.approx(one.optimum, rel=1e-3)


def test_the_simpler_law_wins_where_it_is_true_and_loses_where_it_is_not() -> None:
    sizes, rates = noisy(3, 0.3, 0.0)
    assert fit("amdahl", sizes, throughput=rates).aicc < fit("usl", sizes, throughput=rates).aicc
    sizes, rates = noisy(3, 0.1, 0.02)
    assert fit("amdahl", sizes, throughput=rates).aicc > fit("usl", sizes, throughput=rates).aicc


def test_at_a_bound_it_says_so() -> None:
    sizes, rates = noisy(0, 0.0, 0.0)
    faster = rates * sizes**0.1  # more than n times as fast: no law here allows that
    found = fit("usl", sizes, throughput=faster)
    assert found.contention.value == found.coherence.value == 0 == found.contention.low
    assert found.optimum.value == math.inf == found.optimum.high
    assert [text[:5] for text in found.at_bounds] == ["σ = 0", "κ = 0"]
    assert fit("amdahl", sizes, throughput=faster).at_bounds[0].startswith("σ = 0")
    flat = fit("usl", SIZES, throughput=np.ones(7))
    assert flat.contention.value == 1 == flat.optimum.value and flat.at_bounds[0][:5] == "σ = 1"
    sizes, rates = noisy(0, 0.3, 0.05)
    assert not fit("usl", sizes, throughput=rates).at_bounds


def test_without_a_measurement_to_spare_nothing_is_ruled_out() -> None:
    found = fit("usl", [1, 2, 4], throughput=[1, 1.8, 2.8])
    assert found.contention[1:] == (0, 1) and found.coherence[1:] == (0, math.inf)
    assert found.optimum[1:] == (1, math.inf) and found.aicc == math.inf
    low, high = found.band(SIZES)
    assert not low.any() and np.isinf(high).all()


def test_the_band_holds_the_curve_and_widens_with_the_noise() -> None:
    widths = []
    for noise in (0.01, 0.1):
        sizes, rates = noisy(5, 0.2, 0.02, noise)
        found = fit("usl", sizes, throughput=rates)
        low, high = found.band(SIZES)
        assert (low <= found.throughput_at(SIZES)).all()
        assert (found.throughput_at(SIZES) <= high).all()
        widths.append((high - low).mean())
    assert widths[0] < widths[1]


@pytest.mark.parametrize(
    ("workers", "values", "reason"),
    [
        ([1, 2], [1, 2], "2 different workers.*needs 3"),
        ([4] * 9, [1] * 9, "1 different workers"),
        ([], [], "0 different workers"),
        ([0, 1, 2], [1, 2, 3], "workers holds 0"),
        ([1, 2, math.nan], [1, 2, 3], "workers holds nan"),
        ([1, 2, 3], [1, 0, 3], "holds 0,.*above 0"),
        ([1, 2, 3], [1, -2, 3], "holds -2"),
        ([1, 2, 3], [1, math.nan, 3], "holds nan"),
        ([1, 2, 3], [1, math.inf, 3], "holds inf"),
        ([1, 2, 3], [1, 2], "give one for each"),
    ],
)
def test_what_cannot_be_fitted_is_refused_with_a_reason(
    workers: list[float], values: list[float], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        fit("usl", workers, throughput=values)
    with pytest.raises(ValueError, match=reason):
        fit("usl", workers, seconds=values)


def test_one_point_is_not_enough_for_amdahl_either() -> None:
    with pytest.raises(ValueError, match="1 different workers.*needs 2"):
        fit("amdahl", [2, 2, 2], seconds=[1, 1, 1])


def test_law_and_quantity_must_be_named() -> None:
    with pytest.raises(ValueError, match="law='moore'"):
        fit("moore", [1, 2], throughput=[1, 2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="either throughput or seconds"):
        fit("usl", [1, 2, 3])
    with pytest.raises(ValueError, match="either throughput or seconds"):
        fit("usl", [1, 2, 3], throughput=[1, 2, 3], seconds=[1, 2, 3])
