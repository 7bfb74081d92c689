"""Integer grids: how far a round trip may be off, and that packing loses nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.deep_learning.acceleration import quantise
from utils.deep_learning.acceleration.quantise import affine, symmetric

KINDS = [
    pytest.param(lambda v, b: symmetric(v, b), id="symmetric"),
    pytest.param(lambda v, b: symmetric(v, b, axis=0), id="a channel"),
    pytest.param(lambda v, b: affine(v, b), id="affine"),
]
tensors = st.tuples(
    st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 40), st.floats(1e-3, 1e3),
    st.floats(-3, 3),
)  # fmt: skip


def values(description: tuple) -> torch.Tensor:
    seed, rows, columns, spread, shift = description
    source = torch.Generator().manual_seed(seed)
    return spread * (torch.randn(rows, columns, generator=source) + shift)


@pytest.mark.parametrize("make", KINDS)
@settings(max_examples=30, deadline=None)
@given(description=tensors, bits=st.integers(2, 8))
def test_nothing_is_off_by_more_than_half_a_step(make, description, bits):
    numbers = values(description)
    grid = make(numbers, bits)
    off = (grid.round(numbers).double() - numbers.double()).abs()
    assert (off <= grid.scale.double() * 0.5 * (1 + 1e-4)).all()


@settings(max_examples=30, deadline=None)
@given(description=tensors, bits=st.integers(2, 8))
def test_no_channel_has_a_coarser_grid_of_its_own_than_the_whole_tensor(description, bits):
    numbers = values(description)
    whole, own = symmetric(numbers, bits), symmetric(numbers, bits, axis=0)
    assert own.scale.shape == (len(numbers), 1)
    assert (own.scale <= whole.scale).all()


def test_a_grid_a_channel_is_nearer_to_weights_than_one_for_all():
    weights = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    weights *= torch.logspace(-2, 0, 32)[:, None]
    whole, own = symmetric(weights), symmetric(weights, axis=0)
    errors = [(grid.round(weights) - weights).square().mean() for grid in (own, whole)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("make", KINDS)
@settings(max_examples=30, deadline=None)
@given(description=tensors, bits=st.integers(2, 8))
def test_packed_codes_come_back(make, description, bits):
    numbers = values(description)
    grid = make(numbers, bits)
    codes = grid.encode(numbers)
    packed = grid.pack(codes)
    assert packed.dtype == torch.uint8 and len(packed) == -(-codes.numel() * bits // 8)
    back = grid.unpack(packed, codes.shape)
    assert back.dtype == codes.dtype and torch.equal(back, codes)


def test_all_codes_of_four_and_eight_bits_are_packed():
    for bits, size in ((4, 8), (8, 255)):
        high = 2 ** (bits - 1) - 1
        grid = symmetric(torch.arange(-high, high + 1.0), bits)
        codes = torch.arange(-high, high + 1, dtype=torch.int8)
        assert torch.equal(grid.encode(torch.arange(-high, high + 1.0)), codes)
        assert grid.pack(codes).nbytes == size
        assert torch.equal(grid.unpack(grid.pack(codes), codes.shape), codes)


def test_zero_is_exact_whatever_the_range():
    for numbers in (torch.tensor([3.0, 7.1]), torch.tensor([-2.3, -0.7]), torch.tensor([-1.0, 9])):
        grid = affine(numbers)
        assert grid.round(torch.zeros(1)).item() == 0
        codes = grid.encode(numbers)
        assert codes.dtype == torch.uint8


def test_what_lies_outside_becomes_the_end_of_the_grid():
    grid = symmetric(torch.tensor([-1.0, 1.0]))
    assert grid.encode(torch.tensor([5.0, -5.0])).tolist() == [127, -127]


def test_zeros_alone_stay_zeros():
    for grid in (symmetric(torch.zeros(3, 2), axis=0), affine(torch.zeros(3))):
        assert (grid.scale > 0).all() and grid.round(torch.zeros(3)).eq(0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad):
    for make in (symmetric, affine):
        with pytest.raises(ValueError, match="finite"):
            make(torch.tensor([1.0, bad]))


def test_bits_and_empty_tensors_are_refused():
    for bits in (1, 9):
        with pytest.raises(ValueError, match=f"bits={bits} is not allowed: give 2 to 8"):
            quantise.symmetric(torch.ones(2), bits)
    with pytest.raises(ValueError, match="at least one"):
        affine(torch.zeros(0))
