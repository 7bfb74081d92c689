"""The frontier is what nothing dominates; the pictures draw what was measured."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

from utils.core import plots
from utils.core.workers import intra_op
from utils.deep_learning import digits, models, recipe
from utils.deep_learning.acceleration import bits, pareto
from utils.deep_learning.acceleration.measure import Variant

points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(points)
def test_the_frontier_is_what_nothing_dominates(points):
    costs, gains = zip(*points, strict=True)
    kept = pareto.frontier(costs, gains)

    def dominates(one: int, other: int) -> bool:
        as_good = costs[one] <= costs[other] and gains[one] >= gains[other]
        return as_good and (costs[one] < costs[other] or gains[one] > gains[other])

    everyone = range(len(points))
    for place in everyone:
        assert (place in kept) != any(dominates(other, place) for other in everyone)
    assert [costs[place] for place in kept] == sorted(costs[place] for place in kept)
    assert [gains[place] for place in kept] == sorted(gains[place] for place in kept)


def test_all_variants_are_measured_and_drawn_without_one_number_on_another(monkeypatch):
    answer = Variant(lambda images: torch.eye(10)[3].expand(len(images), 10), 1000, 1)
    made = {f"copy {number}": answer for number in range(12)}
    monkeypatch.setattr(pareto, "variants", lambda: made)
    result = pareto.run(batch=2)
    assert [entry.name for entry in result.measured] == list(made)
    picture = pareto.plot(result)
    assert plots.png(picture, dpi=60)
    picture.draw_without_rendering()
    for ax in picture.axes:
        boxes = [Text.get_window_extent(number) for number in ax.texts]  # without its line
        assert len(boxes) == 12
        for number, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:number])


@pytest.fixture(scope="module")
def trained() -> models.SmallCNN:
    return recipe.trained()  # once for all tests


def test_a_stretched_channel_changes_nothing_in_float32(trained):
    images = digits.load()[1].images[:50]
    other = bits.stretched(trained, 64)
    assert not torch.equal(other.conv2.weight, trained.conv2.weight)
    assert torch.allclose(other(images), trained(images), atol=1e-4)


def test_eight_bits_are_within_half_a_point_and_two_are_not(trained, monkeypatch):
    monkeypatch.setattr(recipe, "trained", lambda name: trained)
    with intra_op(1):
        result = bits.run(bits=3, stretch=64)
    assert result.original == models.accuracy(trained, digits.load()[1])
    for accuracy in result.accuracy.values():
        assert len(accuracy) == len(bits.WIDTHS)
    by_channel = dict(zip(bits.WIDTHS, result.accuracy["one scale a channel"], strict=True))
    by_tensor = dict(zip(bits.WIDTHS, result.accuracy["one scale a tensor"], strict=True))
    assert abs(by_channel[8] - result.original) <= 0.005 + 1e-9
    assert by_tensor[4] < by_channel[4] - 0.1  # the stretched channel leaves the others no code
    assert plots.png(bits.plot(result), dpi=40)
