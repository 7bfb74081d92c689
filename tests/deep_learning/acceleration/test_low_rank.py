import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from utils.deep_learning import models, recipe
from utils.deep_learning.acceleration import low_rank, measure


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 24), columns=st.integers(1, 24), seed=st.integers(0, 99), data=st.data())
def test_the_error_is_what_the_dropped_singular_values_say(rows, columns, seed, data) -> None:
    rank = data.draw(st.integers(1, min(rows, columns)))
    torch.manual_seed(seed)
    layer = nn.Linear(columns, rows, dtype=torch.float64)
    first, second = low_rank.factorise(layer, rank)
    assert first.weight.shape == (rank, columns) and second.weight.shape == (rows, rank)
    nearest = second.weight @ first.weight
    error = (layer.weight - nearest).norm().item()
    assert error == pytest.approx(low_rank.truncation_error(layer.weight, rank), abs=1e-12)
    # Eckart and Young: no other matrix of this rank is nearer.
    for other in (torch.randn(rows, rank).double() @ torch.randn(rank, columns).double(),
                  nearest + 1e-3 * torch.randn(rows, 1).double() @ first.weight[:1]):  # fmt: skip
        assert (layer.weight - other).norm() >= error - 1e-12


def test_full_rank_is_the_layer_itself() -> None:
    layer = nn.Linear(30, 20, dtype=torch.float64)
    x = torch.randn(7, 30, dtype=torch.float64)
    assert (low_rank.factorise(layer, 20)(x) - layer(x)).abs().max() <= 1e-12
    assert low_rank.truncation_error(layer.weight, 20) == 0


def test_a_layer_of_low_rank_loses_nothing_and_needs_no_bias() -> None:
    layer = nn.Linear(30, 20, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(20, 3).double() @ torch.randn(3, 30).double())
    pair = low_rank.factorise(layer, 3)
    x = torch.randn(7, 30, dtype=torch.float64)
    assert (pair(x) - layer(x)).abs().max() <= 1e-10
    assert pair[1].bias is None and pair[0].weight.dtype == torch.float64


@pytest.mark.parametrize("rows, columns", [(50, 320), (8, 8), (100, 3)])
def test_below_the_break_even_two_layers_are_smaller(rows, columns) -> None:
    even = low_rank.break_even(rows, columns)
    assert even * (rows + columns) == pytest.approx(rows * columns)
    for rank in range(1, min(rows, columns) + 1):
        pair = low_rank.factorise(nn.Linear(columns, rows, bias=False), rank)
        smaller = measure.stored_bytes(pair) < 4 * rows * columns
        assert smaller == (rank < even)


def test_the_cnn_gets_smaller_in_bytes_and_work_and_stays_itself() -> None:
    model = models.make("small").requires_grad_(False)
    before = model.fc1.weight.clone()
    thin = low_rank.narrowed(model, 12)
    saved = 320 * 50 - 12 * (320 + 50)
    assert measure.multiply_adds(model) - measure.multiply_adds(thin) == saved
    assert measure.stored_bytes(model) - measure.stored_bytes(thin) == 4 * saved
    assert model.fc1.weight.equal(before) and isinstance(model.fc1, nn.Linear)
    assert not any(parameter.requires_grad for parameter in thin.parameters())


@pytest.mark.parametrize("rank", [0, 21, -1])
def test_an_impossible_rank_is_named(rank) -> None:
    with pytest.raises(ValueError, match=f"rank={rank} is not allowed: give 1 to 20"):
        low_rank.factorise(nn.Linear(30, 20), rank)


@pytest.mark.parametrize("rank, width, batch", [(1, 256, 1), (50, 512, 64)])
def test_the_experiment_is_drawn_at_both_ends(monkeypatch, rank, width, batch) -> None:
    monkeypatch.setattr(recipe, "trained", lambda: models.make("small"))
    result = low_rank.run(rank=rank, width=width, batch=batch)
    errors = [result.error[each] for each in sorted(result.error)]
    assert errors == sorted(errors, reverse=True) and rank in result.error
    assert low_rank.plot(result)._repr_png_()
