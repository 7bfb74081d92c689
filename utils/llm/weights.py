"""Read a checkpoint: the shape from `config.json`, the parameters from `*.safetensors`."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from utils.core import assets
from utils.llm.decoder import Config, Decoder


class UnsupportedModel(ValueError):
    """The checkpoint is of an architecture that `Decoder` does not compute."""


@cache
def smollm2() -> Decoder:
    """SmolLM2-135M-Instruct in float32, read once; nobody changes it."""
    return load(assets.path("smollm2"))


def load(folder: Path) -> Decoder:
    """The decoder in `folder`, ready to answer.

    UnsupportedModel: another architecture, or weights that do not fit. FileNotFoundError.
    """
    config = read_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.safetensors file")
    state: dict[str, Tensor] = {}
    for file in files:
        state |= load_file(file)
    return build(config, state)


def build(config: Config, state: dict[str, Tensor]) -> Decoder:
    """A decoder with these parameters, which it takes over without a copy."""
    with torch.device("meta"):  # no time for numbers that are replaced at once
        model = Decoder(config)
    state = {name.removeprefix("model."): value.float() for name, value in state.items()}
    if config.tied and "embed_tokens.weight" in state:
        state["lm_head.weight"] = state["embed_tokens.weight"]
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise UnsupportedModel(f"the parameters do not fit the config: {error}") from error
    if config.tied:
        model.lm_head.weight = model.embed_tokens.weight
    return model.eval().requires_grad_(False)


def read_config(settings: dict[str, Any]) -> Config:
    """What a checkpoint's `config.json` says. UnsupportedModel: it says something else."""
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    allowed = {
        "model_type": ("llama",),
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
    }
    for name, values in allowed.items():
        if (said := settings.get(name, values[0])) not in values:
            raise UnsupportedModel(f"{name}={said!r} is not supported, only {values[0]!r}")
    if (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
        raise UnsupportedModel(f"rope_type={kind!r} is not supported, only 'default'")
    heads, hidden = settings["num_attention_heads"], settings["hidden_size"]
    return Config(
        vocabulary=settings["vocab_size"],
        layers=settings["num_hidden_layers"],
        hidden=hidden,
        heads=heads,
        kv_heads=settings.get("num_key_value_heads") or heads,
        head_dim=settings.get("head_dim") or hidden // heads,
        intermediate=settings["intermediate_size"],
        context=settings["max_position_embeddings"],
        rope_theta=rope.get("rope_theta", settings.get("rope_theta", 10_000.0)),
        eps=settings["rms_norm_eps"],
        tied=settings.get("tie_word_embeddings", False),
    )
