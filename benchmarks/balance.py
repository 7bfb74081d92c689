"""The balance policies on threads: how far from the lower bound, and whether both clocks agree.

Costs are calibrated while all workers compute; what another program takes from the cores shows as
"real ÷ virtual" above 1, and not in "replayed", where each task is as long as it was.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from utils.performance.balance.clocks import two_clocks
from utils.performance.balance.policies import POLICIES

ROUNDS = 5


def figures() -> Iterator[str]:
    runs = {name: [] for name in POLICIES}
    for _ in range(ROUNDS):
        for name, results in runs.items():
            results.append(two_clocks(name, "rhythm", count=2, milliseconds=10))
    for name, results in runs.items():
        excess = statistics.median(result.real.excess for result in results)
        planned, replayed = (
            statistics.median(
                result.real.makespan / getattr(result, which).makespan for result in results
            )
            for which in ("virtual", "replayed")
        )
        yield (
            f"{name}, 64 tasks, every eighth 20 times as long, 2 threads: {excess:.2f} × the "
            f"bound; real ÷ virtual {planned:.2f}, replayed {replayed:.3f} (medians of {ROUNDS})"
        )
