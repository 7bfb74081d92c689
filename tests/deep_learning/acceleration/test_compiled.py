"""A compiled model answers as the model, where there is a compiler. It takes its time."""

from __future__ import annotations

import multiprocessing
import shutil
import sys

import pytest
import torch
from torch import nn

from utils.deep_learning import digits
from utils.deep_learning.acceleration import formats


def test_compiled_equals_eager_for_any_batch():
    images = digits.load()[1].images[:16]
    plain = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.ReLU()).requires_grad_(False)
    try:
        answer = formats.compiled(plain)
    except RuntimeError as reason:
        if sys.platform == "linux" and shutil.which("g++"):
            raise
        pytest.skip(f"platform: {reason}")
    with torch.inference_mode():
        for count in (1, 16):
            assert torch.allclose(answer(images[:count]), plain(images[:count]), atol=1e-5)
    assert multiprocessing.active_children() == []
