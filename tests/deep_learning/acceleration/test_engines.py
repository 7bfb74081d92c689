"""The second engine answers as PyTorch does, and its int8 as float32 within half a point."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import onnx
import pytest
import torch

from utils.deep_learning import digits, models, recipe
from utils.deep_learning.acceleration import engines
from utils.deep_learning.acceleration.measure import Variant, named_digits, stored_bytes


@pytest.fixture(scope="module")
def trained() -> models.SmallCNN:
    return recipe.trained()  # once for all tests


@pytest.fixture(scope="module")
def graph(trained) -> onnx.ModelProto:
    return engines.graph_of(trained)


def right(answer) -> float:
    held_out = digits.load()[1]
    named = named_digits(Variant(answer, 0, 0), held_out.images)
    return named.eq(held_out.labels).float().mean().item()


def kinds(graph: onnx.ModelProto) -> set[int]:
    return {entry.data_type for entry in graph.graph.initializer if len(entry.dims) > 1}


@pytest.mark.parametrize("count", [1, 3, 250])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_engine_answers_as_pytorch_for_any_batch(trained, graph, count, threads):
    images = digits.load()[1].images[:count]
    answers = engines.answering(graph, threads)(images)
    assert answers.shape == (count, 10) and answers.dtype == torch.float32
    assert torch.allclose(answers, trained(images), atol=1e-4)


def test_parameters_are_counted_as_pytorch_counts_them(trained, graph):
    extra = engines.parameter_bytes(graph) - stored_bytes(trained)
    assert 0 <= extra <= 64  # a shape or two


@pytest.mark.parametrize("convert", [engines.dynamic, engines.static])
@pytest.mark.parametrize("seven_bits", [True, False])
def test_int8_is_right_within_half_a_point_in_a_quarter_of_the_bytes(
    trained, graph, convert, seven_bits
):
    converted = convert(graph, seven_bits)
    reference = right(trained)
    assert reference > 0.9
    if seven_bits:  # eight may saturate on some CPUs, which is another lesson
        assert abs(right(engines.answering(converted)) - reference) <= 0.005 + 1e-9
    assert engines.parameter_bytes(converted) < 0.3 * engines.parameter_bytes(graph)
    assert kinds(converted) == {onnx.TensorProto.INT8}  # convolutions as well
    assert kinds(graph) == {onnx.TensorProto.FLOAT}  # the original is left alone


def test_seven_bits_are_seven(graph):
    for convert in (engines.dynamic, engines.static):
        for seven_bits, largest in ((True, 64), (False, 127)):
            weights = [
                abs(onnx.numpy_helper.to_array(entry).astype(int)).max()
                for entry in convert(graph, seven_bits).graph.initializer
                if len(entry.dims) > 1
            ]
            assert max(weights) <= largest and max(weights) > largest // 2


def test_nothing_is_left_behind_and_nothing_is_said(graph, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        engines.static(graph)
        engines.dynamic(graph)
    assert list(Path(tmp_path).iterdir()) == []
    assert "".join(capfd.readouterr()) == ""


def test_an_export_leaves_no_thread(trained):
    before = set(threading.enumerate())
    engines.graph_of(torch.nn.Sequential(trained))  # a model that no graph was made of
    assert set(threading.enumerate()) <= before
