"""Named models and devices: shapes and rates as their makers publish them, each with its source.

`published` is the number of parameters as the maker writes it; that the shapes give the same is a
test. Rates are of dense matrix products in bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from utils.core import machine
from utils.llm.scale.costs import Device, Shape

GPT = partial(Shape, vocabulary=50257, gated=False, bias=True, learnt_positions=True)
LLAMA3 = partial(Shape, vocabulary=128256, kv_heads=8, head_dim=128, context=131072, tied=False)

_HUB = "https://huggingface.co/"
_META = "https://github.com/meta-llama/llama-models/blob/main/models/sku_list.py"


@dataclass(frozen=True)
class Model:
    published: str
    year: int
    shape: Shape
    source: str


def _gpt(layers: int, hidden: int, heads: int, context: int) -> Shape:
    size = hidden // heads
    return GPT(layers=layers, hidden=hidden, heads=heads, kv_heads=heads, head_dim=size,
               intermediate=4 * hidden, context=context)  # fmt: skip


MODELS = {
    "GPT-2": Model("124M", 2019, _gpt(12, 768, 12, 1024),
                   "https://github.com/openai/gpt-2/blob/master/src/model.py"),
    "GPT-2 XL": Model("1.5B", 2019, _gpt(48, 1600, 25, 1024), _HUB + "openai-community/gpt2-xl"),
    "GPT-3": Model("175B", 2020, _gpt(96, 12288, 96, 2048), "https://arxiv.org/abs/2005.14165"),
    "Llama 2 7B": Model("7B", 2023, Shape(
        32000, 32, 4096, 32, 32, 128, 11008, 4096, tied=False), _HUB + "meta-llama/Llama-2-7b-hf"),
    "Llama 2 70B": Model("70B", 2023, Shape(
        32000, 80, 8192, 64, 8, 128, 28672, 4096, tied=False), _HUB + "meta-llama/Llama-2-70b-hf"),
    "Mistral 7B": Model("7B", 2023, Shape(
        32000, 32, 4096, 32, 8, 128, 14336, 32768, tied=False), _HUB + "mistralai/Mistral-7B-v0.1"),
    "Llama 3.1 8B": Model("8B", 2024, LLAMA3(
        layers=32, hidden=4096, heads=32, intermediate=14336), _META),
    "Llama 3.1 70B": Model("70B", 2024, LLAMA3(
        layers=80, hidden=8192, heads=64, intermediate=28672), _META),
    "Llama 3.1 405B": Model("405B", 2024, LLAMA3(
        layers=126, hidden=16384, heads=128, intermediate=53248), _META),
    "Qwen2.5 7B": Model("7.61B", 2024, Shape(
        152064, 28, 3584, 28, 4, 128, 18944, 131072, tied=False, qkv_bias=True),
        _HUB + "Qwen/Qwen2.5-7B"),
    "SmolLM2 135M": Model("135M", 2024, Shape(), _HUB + "HuggingFaceTB/SmolLM2-135M"),
    "SmolLM2 360M": Model("360M", 2024, Shape(49152, 32, 960, 15, 5, 64, 2560),
                          _HUB + "HuggingFaceTB/SmolLM2-360M"),
    "SmolLM2 1.7B": Model("1.7B", 2024, Shape(49152, 24, 2048, 32, 32, 64, 8192),
                          _HUB + "HuggingFaceTB/SmolLM2-1.7B"),
}  # fmt: skip

_TPU = "https://cloud.google.com/tpu/docs/v6e"
DEVICES = (
    Device("A100 SXM", 80e9, 2039e9, 312e12, "NVIDIA A100 datasheet, 80 GB, 2021"),
    Device("H100 SXM", 80e9, 3350e9, 989e12, "NVIDIA H100 datasheet, 2023; without sparsity"),
    Device("TPU v5e", 16e9, 819e9, 197e12, _TPU),
    Device("TPU v6e", 32e9, 1640e9, 918e12, _TPU),
)


def this_machine(seconds: float = 0.6) -> Device:
    """All cores of this machine, in float32, as measured now."""
    import psutil

    found, memory = machine.ceilings(seconds), psutil.virtual_memory().total
    return Device("this machine", memory, 1e9 * found.read[-1], 1e9 * found.matrix[-1], "measured")
