"""A small random model with the real vocabulary in the place of the real one, and one thread."""

from collections.abc import Iterator

import pytest
import torch

from utils.core.workers import intra_op
from utils.llm import weights
from utils.llm.decoder import Config, Decoder


@pytest.fixture(autouse=True, scope="module")
def one_thread_inside() -> Iterator[None]:
    """Torch with more threads would wait for cores that others have."""
    with intra_op(1):
        yield


@pytest.fixture(scope="session")
def small_decoder() -> Decoder:
    shape = Config(
        layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=64, tied=False
    )  # with a tied head it would only repeat the last token
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Decoder(shape).eval().requires_grad_(False)


@pytest.fixture
def small(monkeypatch, small_decoder) -> Decoder:
    """What `weights.smollm2()` gives while the test runs."""
    monkeypatch.setattr(weights, "smollm2", lambda: small_decoder)
    return small_decoder
