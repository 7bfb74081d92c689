"""The opening of Chapter 1 beside transformers' own `generate`, and the loading of the model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from utils.core import assets, bench
from utils.overview import people

PEOPLE, TOKENS, REPEATS = 8, 16, 4
_LOAD = """
import sys, time
import torch
from transformers import AutoModelForCausalLM
start = time.perf_counter()
AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
print(time.perf_counter() - start)
"""


def figures() -> Iterator[str]:
    command = [sys.executable, "-c", _LOAD, str(assets.path("smollm2"))]
    loads = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(REPEATS)
    ]
    yield f"loading SmolLM2 in a fresh process: {bench.Sample(tuple(loads))}"
    people.answer(["warm up"], tokens=2)
    runs = [people.ask(PEOPLE, TOKENS).runs for _ in range(REPEATS)]
    for mode in people.MODES:
        rates = sorted(run[mode].tokens_per_second for run in runs)
        waits = sorted(run[mode].mean_wait for run in runs)
        yield (
            f"{PEOPLE} people, {mode}: {rates[REPEATS // 2]:.0f} tokens/s, "
            f"first token after {bench.seconds(waits[REPEATS // 2])} on average"
        )
    questions = list(people.QUESTIONS.values())[:PEOPLE]
    times = bench.compare(
        {
            "ours": lambda: people.answer(questions, TOKENS),
            "generate": lambda: _generate(questions),
        },
        repeats=REPEATS,
    )
    slower = bench.ratio(times["generate"], times["ours"])
    yield f"transformers' generate takes {slower} as long as our loop, one batch"


def _generate(questions: list[str]) -> None:
    import torch

    prompts = [people.prompt(question) for question in questions]
    batch = people.tokenizer()(prompts, return_tensors="pt", padding=True)
    with torch.inference_mode():
        people.model().generate(
            **batch, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False
        )
