"""The engine's core, a step at a time in the caller's thread: the same steps in every run.

In the engine, requests come when they like. Here all of them are there before the first step, so
an experiment can be repeated, cancelled between two steps, and looked at after each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from utils.core.experiment import checkpoint
from utils.llm_concurrency.engine.core import Core
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.sequence import Sequence


def serve(
    core: Core,
    requests: Iterable[Request],
    watch: Callable[[list[Sequence]], object] = len,
    first: int = 0,
) -> list[Sequence]:
    """Serve all `requests`, numbered from `first`; `watch` sees everybody after each step."""
    everybody = [Sequence(number, request) for number, request in enumerate(requests, first)]
    for sequence in everybody:
        core.add(sequence)
    limit = sum(sequence.request.limit for sequence in everybody)
    while not core.scheduler.idle:
        said = sum(len(sequence.generated) for sequence in everybody)
        checkpoint(said, limit, f"{said} of {limit} tokens")
        core.step()
        watch(everybody)
    return everybody
