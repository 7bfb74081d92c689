"""Micro-batches beside one request at a time: the highest rate that is served in time.

Same model, worker and threads; the same limit for the P95; random arrivals of a fixed seed. A rate
counts if nobody was refused, answers kept up with it and the P95 was within the limit. It is found
by halving the gap (in logarithms) between one that is served and one that is not; a rate is tried
again before it is given up, because other programs may have taken the cores meanwhile. Modes are
searched in turns, so that both meet the same machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch

from utils.core import machine
from utils.deep_learning.serving import service
from utils.deep_learning.serving.engine import Engine
from utils.deep_learning.serving.load import arrivals, open_loop
from utils.deep_learning.serving.sweep import MODES, alone

LIMIT = 0.1  # seconds
SECONDS, TRIES, HALVINGS, ROUNDS = 1.0, 3, 4, 3


def figures() -> Iterator[str]:
    yield f"a model that does nothing: the engine takes {1e6 * overhead():.0f} µs of CPU a request"
    for name in service.MODELS:
        for threads in sorted({1, machine.cores()}):
            rates = {mode: [] for mode in MODES}
            for _ in range(ROUNDS):
                for mode, size in MODES.items():
                    rates[mode].append(capacity(name, threads, size))
            one, many = (statistics.median(rates[mode]) for mode in MODES)
            pairs = [b / a for a, b in zip(*rates.values(), strict=True)]
            yield (
                f"{name}, 1 worker × {threads} threads, P95 ≤ {1e3 * LIMIT:g} ms: "
                f"{one:.0f}/s one at a time, {many:.0f}/s in batches of up to "
                f"{max(MODES.values())}: {statistics.median(pairs):.1f} × (goal 4)"
            )


def capacity(name: service.Name, threads: int, size: int) -> float:
    """The highest rate that is served in time, requests a second."""
    low, high = 0.0, 0.5 / alone(name, threads)
    while served(name, high, threads, size):
        low, high = high, 2 * high
    low = low or high / 4
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        if served(name, middle, threads, size):
            low = middle
        else:
            high = middle
    return low


def served(name: service.Name, rate: float, threads: int, size: int) -> bool:
    """Whether all requests of one of `TRIES` runs were."""
    for seed in range(TRIES):
        run = service.measure(name, rate, SECONDS, threads=threads, max_batch=size, seed=seed)
        if run.in_time(LIMIT) and run.kept_up:
            return True
    return False


def overhead() -> float:
    """CPU seconds of all threads a request, by the best of some runs: others only ever add."""
    answer, images = torch.zeros(32, 10), torch.zeros(16, 1, 28, 28)
    planned, taken = arrivals(1e6, 0.02), []
    for _ in range(5):
        with Engine(lambda batch: answer[: len(batch)], capacity=len(planned)) as engine:
            start = time.process_time()
            open_loop(engine, images, planned)
            taken.append(time.process_time() - start)
    return min(taken) / len(planned)
