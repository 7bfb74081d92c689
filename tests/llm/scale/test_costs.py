"""The calculators against what exists: parameters and operations as counted, real caches."""

import random
import re
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
)

from utils.llm import weights
from utils.llm.decoder import Cache, Config, Decoder
from utils.llm.scale import costs
from utils.llm.scale.catalogue import DEVICES, MODELS
from utils.llm.scale.costs import BYTES, Device, Shape

TINY = Shape(97, 2, 32, 4, 2, 8, 64, context=50)


def count(config: PretrainedConfig) -> int:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


def total(shape: Shape) -> int:
    return sum(costs.parameters(shape).values())


def test_the_real_model_has_as_many_parameters_as_calculated():
    model = weights.smollm2()
    assert total(Shape.of(model.config)) == sum(each.numel() for each in model.parameters())
    assert Shape.of(model.config) == replace(MODELS["SmolLM2 135M"].shape, eps=model.config.eps)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("seed", range(3))
def test_random_shapes_have_as_many_parameters_as_in_transformers(kind, seed):
    dice = random.Random(seed)
    kv_heads = dice.choice([1, 2, 3])
    heads, head_dim = kv_heads * dice.choice([1, 2, 4]), 2 * dice.randint(2, 8)
    shape = Shape(
        vocabulary=dice.randint(50, 300),
        layers=dice.randint(1, 4),
        hidden=heads * head_dim,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=dice.randint(10, 200),
        context=dice.randint(10, 100),
        tied=seed % 2 == 0,
        qkv_bias=kind == "qwen2",
    )
    if kind == "gpt2":
        shape = replace(shape, kv_heads=heads, gated=False, bias=True, learnt_positions=True)
        config = GPT2Config(
            vocab_size=shape.vocabulary,
            n_positions=shape.context,
            n_embd=shape.hidden,
            n_layer=shape.layers,
            n_head=heads,
            n_inner=shape.intermediate,
            tie_word_embeddings=shape.tied,
        )
    else:
        config = {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind](
            vocab_size=shape.vocabulary,
            num_hidden_layers=shape.layers,
            hidden_size=shape.hidden,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=shape.intermediate,
            max_position_embeddings=shape.context,
            tie_word_embeddings=shape.tied,
        )
    assert total(shape) == count(config)


@pytest.mark.parametrize("name", MODELS)
def test_named_models_have_as_many_parameters_as_published(name):
    number, digits, unit = re.fullmatch(r"(([0-9.]+?)0*)[MB]", MODELS[name].published).group(
        1, 2, 0
    )
    scale = {"M": 1e6, "B": 1e9}[unit[-1]]
    zeros = len(number) - len(digits) if "." not in number else 0
    last = 10.0 ** (zeros - len(digits.partition(".")[2]))  # what the last digit given stands for
    published = float(number) * scale
    # makers round generously: 1.558 is called 1.5, and 6.74 is called 7
    allowed = min(last * scale, 0.04 * published)
    assert abs(total(MODELS[name].shape) - published) < allowed
    assert MODELS[name].source.startswith("https://")


@pytest.mark.parametrize("new, past, batch, scored", [(1, 0, 1, None), (7, 0, 3, None),
                                                      (1, 20, 4, 1), (5, 9, 2, 1)])  # fmt: skip
def test_operations_equal_those_torch_counts(new, past, batch, scored):
    model, cache = Decoder(TINY), Cache(TINY, batch, 50)
    cache.length = past
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        last = model.hidden(torch.zeros(batch, new, dtype=torch.long), cache)
        model.lm_head(last[:, -(scored or new) :])
    assert costs.flops(TINY, new, past, batch, scored) == counter.get_total_flops()


def test_training_takes_three_times_the_operations_torch_counts_forward():
    model = Decoder(replace(TINY, tied=False))
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 10, dtype=torch.long)).sum().backward()
    forward = 2 * 10 * costs.training_flops(TINY, 10)
    # torch's fused attention computes the scores once more backward, which "three times" leaves out
    again = 2 * TINY.layers * 2 * TINY.heads * TINY.head_dim * 10 * 10
    assert counter.get_total_flops() == forward + again


def test_training_is_6n_plus_12ldt_and_mfu_a_part_of_the_peak():
    products = sum(costs.matrices(TINY).values())
    per_token = 6 * products + 12 * TINY.layers * TINY.heads * TINY.head_dim * 40
    assert costs.training_flops(TINY, 40) == pytest.approx(per_token)
    assert costs.mfu(TINY, 1000, 40, peak=4000 * per_token) == pytest.approx(0.25)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_real_cache_has_as_many_bytes_as_calculated(dtype):
    cache = Cache(TINY, 3, 20, getattr(torch, dtype))
    assert cache.keys.nbytes + cache.values.nbytes == costs.cache_bytes(TINY, 20, 3, dtype)


def test_bytes_of_weights_follow_the_number_format():
    model = Decoder(TINY)
    assert costs.weight_bytes(TINY, "float32") == sum(each.nbytes for each in model.parameters())
    sizes = [costs.weight_bytes(TINY, dtype) for dtype in BYTES]
    assert sizes == sorted(sizes, reverse=True)


def test_training_needs_16_bytes_a_parameter_and_more_with_more_tokens():
    need = costs.training_bytes(TINY, 100)
    assert need["weights"] + need["gradients"] + need["Adam"] == 16 * total(TINY)
    assert costs.training_bytes(TINY, 200)["activations"] == 2 * need["activations"]


def test_the_least_time_is_that_of_memory_or_of_arithmetic():
    step = costs.step(TINY, 5, 9, 2)
    weights_once = 4 * sum(costs.matrices(TINY).values())
    assert step.bytes == weights_once + costs.cache_bytes(TINY, 14, 2)
    slow_memory = Device("", 1e9, read=1.0, matrix=1e18)
    slow_cores = Device("", 1e9, read=1e18, matrix=1.0)
    assert step.least(slow_memory) == step.bytes
    assert step.least(slow_cores) == step.flops == costs.flops(TINY, 5, 9, 2, scored=1)


def test_fewer_kv_heads_shrink_the_cache_in_proportion():
    shape = MODELS["Llama 3.1 70B"].shape
    full = replace(shape, kv_heads=shape.heads)
    assert costs.cache_bytes(full, 1) == 8 * costs.cache_bytes(shape, 1)


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match="dtype='float8' .* float32, bfloat16"):
        costs.weight_bytes(TINY, "float8")
    for bad in (
        {"new": 0},
        {"new": 1, "past": -1},
        {"new": 2, "scored": 3},
        {"new": 1, "batch": 0},
    ):
        with pytest.raises(ValueError, match=", ".join(f"{k}={v}" for k, v in bad.items())[:5]):
            costs.flops(TINY, **bad)
    with pytest.raises(ValueError, match="heads=9 must be a multiple of kv_heads=2"):
        Shape.of(Config(kv_heads=2))


def test_devices_say_where_their_figures_come_from():
    assert all(device.source and device.read < device.matrix for device in DEVICES)
