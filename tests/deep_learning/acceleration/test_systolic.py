"""The systolic array computes the product, in as many cycles as Jouppi et al. need."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.core import plots
from utils.deep_learning.acceleration import systolic

sizes = st.integers(1, 12)


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, sizes, st.integers(0, 2**31))
def test_it_is_the_product_and_each_multiplier_works_once_a_row(count, depth, width, seed):
    source = np.random.default_rng(seed)
    left = source.integers(-128, 128, (count, depth))
    weights = source.integers(-128, 128, (depth, width))
    result = systolic.multiply(left, weights)
    assert np.array_equal(result.product, left @ weights)
    assert result.cycles == count + depth + width - 2
    assert (result.busy.sum(0) == count).all()
    assert result.utilisation == pytest.approx(count / result.cycles)


def test_the_experiment_draws_itself_at_its_ends():
    for shape in ((1, 2, 2), (128, 64, 2), (8, 16, 16)):
        assert plots.png(systolic.plot(systolic.run(*shape)), dpi=40)
    with pytest.raises(ValueError, match="inputs=1"):
        systolic.run(inputs=1)
