"""Other forms of a network give the same answers; a GPU too, where there is one."""

from __future__ import annotations

import pytest
import torch

from utils.core import plots
from utils.core.workers import intra_op
from utils.deep_learning import digits, models
from utils.deep_learning.acceleration import floats, formats, gpu
from utils.deep_learning.acceleration.measure import stored_bytes

GPU = pytest.mark.skipif(gpu.device() is None, reason="platform: torch finds no GPU here")


@pytest.fixture(scope="module")
def model() -> models.SmallCNN:
    return models.make("small").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return digits.load()[1].images[:16]


def test_channels_last_changes_the_place_and_not_the_answer(model, images):
    with torch.inference_mode():
        assert torch.allclose(formats.channels_last(model)(images), model(images), atol=1e-5)
    assert model.conv2.weight.is_contiguous()  # a copy was turned


def test_where_nothing_can_compile_the_reason_is_given(monkeypatch, model):
    def broken(*_, **__):
        def refuse(_):
            raise RuntimeError("InvalidCxxCompiler: no compiler\nand a long trace")

        return refuse

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(RuntimeError, match="does not work here: InvalidCxxCompiler: no compiler$"):
        formats.compiled(model)
    result = formats.run(model="small", batch=2, compile=True)  # and the rest goes on
    assert "no compiler" in result.note and "torch.compile" not in result.times
    assert list(result.times) == list(result.difference)
    assert result.difference["PyTorch"] == 0 and result.difference["ONNX Runtime"] < 1e-4
    assert 0 < result.difference["the same, int8"] < 0.1
    assert plots.png(formats.plot(result), dpi=40)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_floats_take_half_the_bytes(model, images, dtype):
    variant = floats.narrow(model, dtype)
    assert 2 * variant.bytes == stored_bytes(model) and model.fc1.weight.dtype == torch.float32
    with torch.inference_mode(), intra_op(1):
        answer = variant.answer(images)
        assert answer.dtype == torch.float32
        assert torch.allclose(answer, model(images), atol=0.05)


def test_the_error_of_a_type_is_that_of_its_digits():
    result = floats.run(size=32)
    assert list(result.times) == list(result.error) == list(floats.TYPES)
    for name, dtype in floats.TYPES.items():
        digit = torch.finfo(dtype).eps
        assert digit / 50 < result.error[name] < 5 * digit
    assert plots.png(floats.plot(result), dpi=40)
    assert set(floats.native()) <= set(floats.NATIVE)


def test_a_batch_has_three_phases_on_any_device(model, images):
    taken = gpu.phases(model, torch.device("cpu"), images)
    assert list(taken) == list(gpu.PHASES) and all(seconds > 0 for seconds in taken.values())


def test_without_a_gpu_the_cpu_is_measured_and_it_is_said(monkeypatch):
    monkeypatch.setattr(gpu, "device", lambda: None)
    monkeypatch.setattr(gpu.machine, "gpu", lambda: None)
    result = gpu.run(model="small", batch=4)
    assert result.gpu is None and list(result.seconds) == ["CPU, float32"]
    assert "none here" in gpu.plot(result).axes[0].get_title(loc="left")


@GPU
@pytest.mark.parametrize("dtype, near", [(torch.float32, 1e-2), (torch.float16, 5e-2)])
def test_the_gpu_gives_the_same_answers(model, images, dtype, near):
    variant = gpu.on(model, gpu.device(), dtype)
    with torch.inference_mode():
        answer = variant.answer(images)
        assert answer.device.type == "cpu" and answer.dtype == torch.float32
        assert torch.allclose(answer, model(images), atol=near)
    assert next(model.parameters()).device.type == "cpu"


@GPU
def test_the_experiment_measures_the_gpu_too():
    result = gpu.run(model="small", batch=4)
    assert list(result.seconds) == ["CPU, float32", "GPU, float32", "GPU, float16"]
    assert plots.png(gpu.plot(result), dpi=40)
