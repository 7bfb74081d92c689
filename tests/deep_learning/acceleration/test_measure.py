"""What is measured of a variant is what it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from utils.deep_learning import digits, models
from utils.deep_learning.acceleration.measure import Variant, measure, multiply_adds, of


def always(digit: int) -> Variant:
    return Variant(lambda x: torch.eye(10)[digit].expand(len(x), 10), bytes=4_000_000, macs=3)


def test_accuracy_and_agreement_are_shares_of_the_held_out_digits():
    found = measure({"three": always(3), "again": always(3), "four": always(4)}, repeats=2)
    assert [entry.name for entry in found] == ["three", "again", "four"]
    assert [entry.accuracy for entry in found] == pytest.approx([0.1, 0.1, 0.1])
    assert [entry.agreement for entry in found] == [1.0, 1.0, 0.0]
    assert found[0].megabytes == 4 and found[0].macs == 3
    assert len(found[0].time.values) == 2
    assert found[0].milliseconds == 1e3 * found[0].time.median


def test_accuracy_is_that_of_the_model():
    model = models.make("small").eval()
    entry = measure({"model": of(model)}, batch=8, repeats=1)[0]
    assert entry.accuracy == pytest.approx(models.accuracy(model, digits.load()[1]))
    assert entry.megabytes == pytest.approx(21840 * 4 / 1e6)


def test_the_timed_batch_is_as_large_as_asked_for_and_torch_has_so_many_threads():
    seen = set()

    def answer(images: torch.Tensor) -> torch.Tensor:
        seen.add((len(images), torch.get_num_threads(), torch.is_inference_mode_enabled()))
        return torch.zeros(len(images), 10)

    before = torch.get_num_threads()
    measure({"spy": Variant(answer, 0, 0)}, batch=7, threads=before + 1, repeats=1)
    assert seen == {(7, before + 1, True), (250, before + 1, True)}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("shape", [(3, 5), (1, 1)])
def test_multiply_adds_are_those_of_the_layers(shape):
    inputs, outputs = shape
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, inputs), nn.Linear(inputs, outputs))
    assert multiply_adds(model) == 784 * inputs + inputs * outputs
    convolution = nn.Sequential(nn.Conv2d(1, inputs, 5), nn.Flatten())
    assert multiply_adds(convolution) == 24 * 24 * 25 * inputs


def test_bad_arguments_are_refused():
    for wrong in ({"batch": 0}, {"batch": 1001}, {"threads": 0}):
        (name, value), *_ = wrong.items()
        with pytest.raises(ValueError, match=f"{name}={value} is not allowed"):
            measure({"three": always(3)}, **wrong)
    with pytest.raises(ValueError, match="empty"):
        measure({})
