"""Recommendation (S1.3-d): the ten best of many items for every user, block of users by block.

A matrix-factorisation recommender (Koren, Bell & Volinsky, "Matrix Factorization Techniques for
Recommender Systems", 2009) scores an item for a user by the dot product of their two factor
vectors. Users do not depend on each other, so blocks of users go to workers with nothing to
agree on. **The factors here are synthetic**: random vectors of the size that a real system
learns from its users' behaviour.

The block size decides what a worker spends its time on. One user a block is a small product and
many trips through Python, which holds the GIL, so a second worker adds little. A thousand users
a block make a score matrix larger than the caches: workers still add up there, but each gets
less done than with blocks that stay in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.core.workers import intra_op, lanes
from utils.overview.areas.common import Contest, Team, contest, draw_rates

USERS, ITEMS, FACTORS, TOP = 2048, 8192, 64, 10
DATA = f"synthetic data: {USERS:,} users, {ITEMS:,} items, {FACTORS} random factors each"


@dataclass(frozen=True)
class RecommendResult:
    """The recommendations and how fast they came."""

    contest: Contest
    block: int
    items: Tensor  # int64 [USERS, TOP], best first
    scores: Tensor  # float32 [USERS, TOP]
    identical: bool  # every item and every score equals one worker's, bit for bit
    data: str = DATA


@experiment
def recommend(
    workers: Annotated[int, Range(1, 8)] = 2,
    block: Literal[1, 16, 128, 1024] = 128,
) -> RecommendResult:
    """Find the ten best items for each user, `block` users at a time."""
    users, items = _factors()

    def all_users(team: Team) -> tuple[Tensor, Tensor]:
        parts = team.map(lambda part: best(part, items), users.split(block), "top 10")
        scores, chosen = zip(*parts, strict=True)
        return torch.cat(scores), torch.cat(chosen)

    with intra_op(1):
        raced, alone, (scores, chosen) = contest(all_users, workers, items=USERS, unit="users")
    same = torch.equal(alone[0], scores) and torch.equal(alone[1], chosen)
    return RecommendResult(raced, block, chosen, scores, same)


def best(users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and numbers of the best `TOP` of `items` `[m, f]` for each of `users` `[n, f]`."""
    top = torch.topk(users @ items.T, TOP, dim=1)
    return top.values, top.indices


def _factors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(USERS, FACTORS, generator=generator),
        torch.randn(ITEMS, FACTORS, generator=generator),
    )


def plot(result: RecommendResult) -> plots.Picture:
    """Which worker took which block of users, and the rates."""
    fig, (left, right) = plots.figure(9.5, 3.4, cols=2, width_ratios=[2.4, 1])
    plots.timeline(
        left, result.contest.trace, lanes=lanes(result.contest.workers),
        title=f"Top {TOP} for {result.block:,} users at a time",
    )  # fmt: skip
    draw_rates(right, result.contest)
    fig.supxlabel(result.data, fontsize=8, color=plots.GREY)
    return fig
