"""The engine beside the engines people install: output tokens a second, in one run, by turns.

Peers: transformers' `generate` in left-padded static batches of several sizes, and its continuous
batching (`generate_batch`). All get the same prompts and lengths, greedy and with no early end, and
as many threads as there are cores.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from utils.core import assets, machine
from utils.core.workers import intra_op
from utils.llm import tokens, weights
from utils.llm_concurrency.engine.engine import Engine
from utils.llm_concurrency.engine.model import Layout, plain
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.speculate import PromptLookup
from utils.llm_concurrency.hardware.linears import Int8Linear

ROUNDS = 4
PROMPTS, ANSWERS = (32, 256), (32, 128)
BATCHES = (8, 16, 32)
COPY = (
    "Repeat this word for word: " + "the quick brown fox jumps over the lazy dog and runs on. " * 4
)
Serve = Callable[[list[Request]], object]


def figures() -> Iterator[str]:
    cores = machine.cores()
    with intra_op(cores):
        many = requests(32)
        one = [Request(many[0].prompt[:64], 64, ignore_end=True)]
        copying = [Request(tuple(tokens.smollm2().chat(COPY)), 64, ignore_end=True)]
        peers = {f"generate, batches of {size}": Generate(size) for size in BATCHES}
        for name, batch, ways in (
            ("32 requests", many, peers | {"generate_batch": generate_batch}),
            ("one stream", one, {"generate": Generate(1)}),
            ("one stream that copies", copying, {"generate": Generate(1)}),
        ):
            yield from beside(name, batch, ways, cores)


def beside(name: str, batch: list[Request], peers: dict[str, Serve], cores: int) -> Iterator[str]:
    """Median rate of each way, and of each pair of runs next to each other the ratio to ours."""
    with Ours(plain, cores) as exact, Ours(Int8Linear.of, cores) as int8:
        ways: dict[str, Serve] = {"ours, float32": exact, "ours, int8": int8, **peers}
        if len(batch) == 1:
            with Ours(Int8Linear.of, cores, PromptLookup()) as guessing:
                ways["ours, int8, guessing"] = guessing
                rates = measure(batch, ways)
        else:
            rates = measure(batch, ways)
    for way, values in rates.items():
        yield f"{name}, {way}: {statistics.median(values):.0f} output tokens/s"
    fastest = max(peers, key=lambda peer: statistics.median(rates[peer]))
    for way in (way for way in rates if way not in peers):
        ratio = statistics.median(a / b for a, b in zip(rates[way], rates[fastest], strict=True))
        yield f"{name}: {way} ÷ {fastest} = {ratio:.2f}"


def measure(batch: list[Request], ways: dict[str, Serve]) -> dict[str, list[float]]:
    total, rates = sum(request.limit for request in batch), {way: [] for way in ways}
    for way in ways.values():
        way(batch[:1])
    for number in range(ROUNDS):
        for way in list(ways) if number % 2 else list(ways)[::-1]:
            start = time.perf_counter()
            ways[way](batch)
            rates[way].append(total / (time.perf_counter() - start))
    return rates


def requests(count: int, seed: int = 0) -> list[Request]:
    """Mixed lengths of tokens without sense: only their number counts."""
    dice = random.Random(seed)
    return [
        Request(
            tuple(dice.randrange(100, 40_000) for _ in range(dice.randint(*PROMPTS))),
            dice.randint(*ANSWERS),
            ignore_end=True,
        )
        for _ in range(count)
    ]


class Ours(Engine):
    """An engine with memory for all; called with requests, it serves them. No prefix is shared."""

    def __init__(self, layout: Layout, cores: int, proposer: PromptLookup | None = None) -> None:
        super().__init__(
            weights.smollm2(), tokens.smollm2(), blocks=32 * 25, share=False, threads=cores,
            layout=layout, proposer=proposer,
        )  # fmt: skip

    def __call__(self, batch: list[Request]) -> None:
        self.generate(batch, timeout=600)


@cache
def theirs() -> Any:
    """transformers' model, which all its ways share."""
    return AutoModelForCausalLM.from_pretrained(assets.path("smollm2"))


class Generate:
    """transformers, static batches in order of length: each as long as its longest answer."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, batch: list[Request]) -> None:
        ordered = sorted(batch, key=lambda request: request.limit)
        for start in range(0, len(ordered), self.size):
            self._together(ordered[start : start + self.size])

    @torch.inference_mode()
    def _together(self, batch: list[Request]) -> None:
        longest = max(len(request.prompt) for request in batch)
        rows = [[2] * (longest - len(one.prompt)) + list(one.prompt) for one in batch]
        real = [[0] * (longest - len(one.prompt)) + [1] * len(one.prompt) for one in batch]
        limit = max(request.limit for request in batch)
        theirs().generate(
            torch.tensor(rows), attention_mask=torch.tensor(real), do_sample=False,
            min_new_tokens=limit, max_new_tokens=limit, pad_token_id=2,
        )  # fmt: skip


def generate_batch(batch: list[Request]) -> None:
    """transformers, continuous: it knows one limit for all, so every answer has the mean length."""
    limit = round(statistics.mean(request.limit for request in batch))
    config = GenerationConfig(
        max_new_tokens=limit, do_sample=False, eos_token_id=-1, pad_token_id=2,
        num_blocks=1024, max_batch_tokens=512,
    )  # fmt: skip
    theirs().generate_batch([list(one.prompt) for one in batch], generation_config=config)
