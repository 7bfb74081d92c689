"""The linear layer that multiplies integers: exact sums, a bounded error, the same work."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from utils.deep_learning import models
from utils.deep_learning.acceleration.integer import (
    LONGEST,
    IntegerLinear,
    saturating_sums,
    with_integers,
)
from utils.deep_learning.acceleration.measure import multiply_adds, stored_bytes
from utils.deep_learning.acceleration.quantise import affine, symmetric


def layer(inputs: int = 100, outputs: int = 7, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shift", [0.0, 2.0, -5.0])
def test_it_equals_float_arithmetic_on_the_numbers_of_the_grids(bias, shift):
    """Integer arithmetic adds no error of its own: only the two roundings are lost."""
    linear, x = layer(bias=bias), torch.randn(5, 100) + shift
    weight = symmetric(linear.weight.detach(), axis=0).round(linear.weight.detach()).double()
    expected = affine(x).round(x).double() @ weight.T
    if bias:
        expected += linear.bias.detach().double()
    assert torch.allclose(IntegerLinear(linear)(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_error_is_within_what_two_half_steps_allow():
    linear, x = layer(), torch.randn(64, 100)
    step_x, step_w = affine(x).scale / 2, symmetric(linear.weight.detach(), axis=0).scale[:, 0] / 2
    bound = (
        step_x * linear.weight.abs().sum(1) + step_w * x.abs().sum(1, keepdim=True)
        + 100 * step_x * step_w
    )  # fmt: skip
    assert ((IntegerLinear(linear)(x) - linear(x)).abs() <= bound + 1e-5).all()


def test_the_largest_sum_fits_into_32_bits():
    linear = nn.Linear(LONGEST, 1, bias=False)
    nn.init.constant_(linear.weight, 1.0)
    assert IntegerLinear(linear)(torch.ones(1, LONGEST)).item() == pytest.approx(LONGEST, rel=1e-3)
    with pytest.raises(ValueError, match=f"in_features={LONGEST + 1} is not allowed"):
        IntegerLinear(nn.Linear(LONGEST + 1, 1))


def test_as_many_multiplications_in_a_quarter_of_the_bytes():
    tower = models.make("tower").eval()
    integers = with_integers(tower)
    assert multiply_adds(integers) == multiply_adds(tower) == 784 * 256 + 5 * 256**2 + 2560
    share = stored_bytes(integers) / stored_bytes(tower)
    assert 0.25 <= share < 0.27
    assert not any(isinstance(module, nn.Linear) for module in integers.modules())
    assert any(isinstance(module, nn.Linear) for module in tower.modules())  # left as it was


def test_pairs_saturate_with_eight_bits_and_never_with_seven():
    ones = torch.full((4,), 255, dtype=torch.uint8)
    assert saturating_sums(ones, torch.full((4,), 127, dtype=torch.int8)).item() == 2 * 32767
    assert saturating_sums(ones, torch.full((4,), -127, dtype=torch.int8)).item() == -2 * 32768
    source = torch.Generator().manual_seed(0)
    activations = torch.randint(0, 256, (50, 64), generator=source, dtype=torch.uint8)
    for weights in (
        torch.randint(-64, 64, (50, 64), generator=source, dtype=torch.int8),
        torch.full((50, 64), -64, dtype=torch.int8),
    ):
        exact = (activations.int() * weights.int()).sum(-1)
        assert torch.equal(saturating_sums(activations, weights), exact)
