"""A part of a decoder is a decoder: with fewer heads and channels, or with fewer layers.

So whatever works with a `Decoder` works with a part of one: its cache holds the keys and values of
the part's heads and layers only, and `generate` need not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from utils.deep_learning.model_parallel.tensor import shares
from utils.llm.decoder import Config, Decoder


@dataclass(frozen=True)
class Said:
    """What one rank found, and the bytes that it had sent after each token."""

    tokens: tuple[int, ...]
    sent: tuple[int, ...]
    parameters: int  # of the rank's part


def assemble(config: Config, state: dict[str, Tensor]) -> Decoder:
    """A decoder of these tensors, which are not copied."""
    with torch.device("meta"):
        part = Decoder(config)
    part.load_state_dict(state, assign=True)
    if config.tied:
        part.lm_head.weight = part.embed_tokens.weight
    return part


def narrow(model: Decoder, rank: int, ranks: int, channels: Sequence[int] | None = None) -> Decoder:
    """Rank's share of the heads and of the MLP's channels in every layer; the rest is whole.

    A head of keys and values stays with the query heads that use it. `channels[r]` is rank r's
    share of the intermediate size, as even as possible unless given. ValueError: it cannot be cut
    like that.
    """
    config = model.config
    if ranks > config.kv_heads:
        raise ValueError(
            f"ranks={ranks} is not allowed: give at most {config.kv_heads}, a head of keys and "
            "values for each"
        )
    channels = shares(config.intermediate, ranks) if channels is None else list(channels)
    if len(channels) != ranks or min(channels) < 1 or sum(channels) != config.intermediate:
        raise ValueError(
            f"channels={channels} is not allowed: give {ranks} numbers above 0 that add up to "
            f"{config.intermediate}"
        )
    kv_heads = shares(config.kv_heads, ranks)
    heads = [number * (config.heads // config.kv_heads) for number in kv_heads]
    queries, keys = ([number * config.head_dim for number in each] for each in (heads, kv_heads))
    cuts = {  # outputs (0) of what makes heads and channels, inputs (1) of what uses them
        "q_proj": (0, queries), "k_proj": (0, keys), "v_proj": (0, keys), "o_proj": (1, queries),
        "gate_proj": (0, channels), "up_proj": (0, channels), "down_proj": (1, channels),
    }  # fmt: skip
    state = model.state_dict()
    for name, whole in state.items():
        if cut := cuts.get(name.split(".")[-2]):
            dimension, sizes = cut
            state[name] = whole.split(sizes, dimension)[rank].contiguous()
    shape = {"heads": heads[rank], "kv_heads": kv_heads[rank], "intermediate": channels[rank]}
    return assemble(replace(config, **shape), state)


def bounds(config: Config, stages: int) -> list[int]:
    """Where to cut the layers so that stages read about as many weights; the last has the head.

    Stage s gets layers bounds[s] to bounds[s + 1] − 1. ValueError: fewer layers than stages.
    """
    if not 1 <= stages <= config.layers:
        raise ValueError(f"stages={stages} is not allowed: give 1 to {config.layers}")
    attention = 2 * (config.heads + config.kv_heads) * config.head_dim
    head = config.vocabulary / (attention + 3 * config.intermediate)  # in layers
    ends = [round((config.layers + head) * stage / stages) for stage in range(1, stages)]
    kept = [max(s, min(end, config.layers - stages + s)) for s, end in enumerate(ends, start=1)]
    return [0, *kept, config.layers]


def short(model: Decoder, first: int, end: int) -> Decoder:
    """Layers `first` to `end` − 1. Without the model's first layer, `hidden` takes vectors in the
    place of tokens; without its last, it gives them as they leave the layer."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("layers."):
            _, layer, rest = name.split(".", 2)
            if not first <= int(layer) < end:
                continue
            name = f"layers.{int(layer) - first}.{rest}"
        state[name] = tensor
    part = assemble(replace(model.config, layers=end - first), state)
    if first > 0:
        part.embed_tokens = nn.Identity()
    if end < model.config.layers:
        part.norm = part.lm_head = nn.Identity()
    return part


def parameters(part: nn.Module) -> int:
    """How many numbers it holds; a tied head counts once."""
    return sum(parameter.numel() for parameter in part.parameters())
