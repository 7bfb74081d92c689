"""Fewer bits a weight: what is left of the numbers, of the text, and of the time.

`grouped` is 4 bits from scratch: every `group` neighbours of a channel share a scale and a zero,
two codes a byte. Source: Dettmers and Zettlemoyer, "The case for 4-bit precision",
arXiv:2212.09720 (small groups).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated

import torch
from torch import Tensor, nn

from utils.core import bench, plots
from utils.core.bench import Sample
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.workers import intra_op
from utils.llm import weights
from utils.llm.decoder import Cache, Decoder
from utils.llm_concurrency.hardware.linears import with_int8
from utils.llm_concurrency.hardware.threads import step

PAST = 32  # tokens in the cache


@cache
def int8() -> Decoder:
    """SmolLM2 with `Int8Linear` in every place; nobody changes it."""
    return with_int8(copy.deepcopy(weights.smollm2()))


@cache
def int4() -> Decoder:
    """SmolLM2 after 4 bits; nobody changes it."""
    return with_int4(weights.smollm2())


def grouped(weight: Tensor, group: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """(out, in) → codes 0 … 15, two a byte, and scale and lowest value of each group."""
    if weight.shape[1] % group:
        raise ValueError(f"group={group} does not divide the {weight.shape[1]} inputs")
    parts = weight.unflatten(1, (-1, group))
    low, high = parts.amin(-1, keepdim=True), parts.amax(-1, keepdim=True)
    scale = ((high - low) / 15).clamp(min=1e-30)
    codes = parts.sub(low).div_(scale).round_().to(torch.uint8).view(-1, 2)
    return codes[:, 0] | codes[:, 1] << 4, scale, low


def ungrouped(packed: Tensor, scale: Tensor, low: Tensor, shape: torch.Size) -> Tensor:
    """The weight that `grouped` has left: each number off by at most half its group's scale."""
    codes = torch.stack([packed & 15, packed >> 4], 1).view(*scale.shape[:2], -1)
    return codes.mul(scale).add_(low).view(shape)


@torch.inference_mode()
def with_int4(model: Decoder) -> Decoder:
    """A copy of `model` whose linear layers have passed through 4 bits; it computes in float32."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            left = ungrouped(*grouped(module.weight), module.weight.shape)
            module.weight = nn.Parameter(left, requires_grad=False)
    return model


@dataclass(frozen=True)
class Speed:
    """Seconds of a decoding step by batch and kind of weights."""

    seconds: dict[int, dict[str, Sample]]


@experiment
def run(
    batch: Annotated[int, Range(1, 64, label="largest batch")] = 16,
    threads: Annotated[int, Range(1, 64)] = 1,
) -> Speed:
    """Decode one token for 1 … `batch` sequences, in float32 and int8, in turns."""
    checkpoint(0, note="the models")
    models = {"float32": weights.smollm2(), "int8": int8()}
    seconds = {}
    with intra_op(threads):
        for size in sorted({1, max(1, batch // 4), batch}):
            cache_ = Cache(models["int8"].config, size, PAST + 1)
            tokens = torch.arange(size)[:, None]
            works = {k: partial(step, model, tokens, cache_, PAST) for k, model in models.items()}
            seconds[size] = bench.compare(works, repeats=3)
    return Speed(seconds)


def plot(result: Speed) -> plots.Picture:
    """Tokens a second of both kinds of weights over the batch."""
    fig, ax = plots.figure(7, 3)
    styles = {"float32": (plots.GREY, "s"), "int8": (plots.BLUE, "o")}
    for name, (color, marker) in styles.items():
        rates = [size / taken[name].median for size, taken in result.seconds.items()]
        ax.plot(list(result.seconds), rates, color=color, marker=marker, label=name)
    ax.set_xticks(list(result.seconds))
    ax.set_xlabel("sequences that decode together", fontsize=9)
    ax.set_ylabel("tokens/s", fontsize=9)
    ax.set_ylim(0)
    ax.legend(frameon=False, fontsize=9)
    return fig
