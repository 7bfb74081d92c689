"""Which cut makes ranks talk about what, how often and how much: by formula, and counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

from utils.core.experiment import Range, checkpoint, experiment
from utils.deep_learning.collectives.launch import launch
from utils.llm import weights
from utils.llm.decoder import Config
from utils.llm_concurrency.parallel.context import be_reader
from utils.llm_concurrency.parallel.pipeline import be_stage
from utils.llm_concurrency.parallel.prompts import prompts
from utils.llm_concurrency.parallel.replicas import be_replica
from utils.llm_concurrency.parallel.tensor import be_rank

FLOAT, TOKEN = 4, 8  # bytes of a float32 number; of a token's number, an int64


class Row(NamedTuple):
    """What one request costs: `times` ranks talk, and `bytes` all of them send."""

    cut: str
    what: str
    times: tuple[int, int]  # to read the prompt; for a token of the answer
    bytes: tuple[int, int]


def table(config: Config, ranks: int, tokens: int) -> list[Row]:
    """For a prompt of `tokens`, in float32. An all-reduce of n bytes moves 2(N−1)n in all."""
    vector, layers, hops = config.hidden * FLOAT, config.layers, ranks - 1
    block = 2 * config.kv_heads * config.head_dim * FLOAT  # keys and values of one token
    merged = config.heads * (1 + config.head_dim + 1) * FLOAT  # maxima; means and their weights
    summed = 2 * layers * 2 * hops * vector
    back = TOKEN if hops else 0
    return [
        Row("replicas (batch)", "nothing", (0, 0), (0, 0)),
        Row("tensor (heads)", "sums of vectors", (2 * layers,) * 2, (tokens * summed, summed)),
        Row(
            "pipeline (layers)",
            "vectors; the token back",
            (hops + bool(hops),) * 2,
            (tokens * hops * vector + back, hops * vector + back),
        ),
        Row(
            "ring (sequence)",
            "keys and values; later means",
            (layers * hops + 1, 2 * layers),
            (layers * hops * tokens * block + hops * TOKEN, layers * 2 * hops * merged),
        ),
    ]


@dataclass(frozen=True)
class Traffic:
    """`rows` by formula, and what was `counted` in the same order; the tokens that each found."""

    ranks: int
    tokens: int
    rows: list[Row]
    counted: list[tuple[int, int]]
    answers: list[tuple[int, ...]]


@experiment
def run(
    ranks: Annotated[int, Range(2, 3)] = 2,
    tokens: Annotated[int, Range(8, 256, 8, label="tokens of the prompt")] = 32,
) -> Traffic:
    """The real model answers one prompt four times, cut in four ways, on threads."""
    model, limit = weights.smollm2(), 3
    prompt = (prompts(1)[0] * tokens)[:tokens]
    counted, answers = [], []
    kinds = (be_replica, be_rank, be_stage, be_reader)
    for done, function in enumerate(kinds):
        checkpoint(done, len(kinds), function.__module__.rpartition(".")[2])
        asked = [prompt] * ranks if function is be_replica else [prompt]
        asked = prompt if function in (be_rank, be_reader) else asked
        results = launch(function, ranks, weights.smollm2, asked, limit, on="threads").results
        said = [result[0] if isinstance(result, list) else result for result in results]
        read, one = (sum(rank.sent[step] for rank in said) for step in (0, 1))
        counted.append((read, one - read))
        answers.append(said[-1].tokens)
    return Traffic(ranks, tokens, table(model.config, ranks, tokens), counted, answers)
