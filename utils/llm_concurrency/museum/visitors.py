"""Who visits the museum: a tiny model, and requests that arrive at certain steps."""

from __future__ import annotations

import random
from functools import cache
from typing import NamedTuple

import torch

from utils.llm.decoder import Config, Decoder

CONFIG = Config(
    layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=64, vocabulary=97,
    context=200,
)  # fmt: skip


@cache
def tiny() -> Decoder:
    """Random parameters in float64: its answers mean nothing, but every token matters for them."""
    model = Decoder(CONFIG).double().requires_grad_(False)
    dice = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.normal_(0, 0.3, generator=dice)
    return model


def text(number: int, length: int) -> list[int]:
    """Tokens that begin one of some long texts."""
    rng = random.Random(number)
    return [rng.randrange(1, 60) for _ in range(length)]


class Visitor(NamedTuple):
    """A request that comes before step `arrives`."""

    name: str
    prompt: list[int]
    limit: int
    arrives: int = 0
