"""Requests as a service gets them: of two kinds, from two people, at random moments."""

from __future__ import annotations

import random

from utils.llm_concurrency.engine.request import Request

Arrivals = list[tuple[float, Request]]  # seconds, in order
PROMPTS, ANSWERS = {"short": (8, 48), "long": (200, 400)}, {"short": (8, 32), "long": (64, 128)}
BUSY, CALM = "busy", "calm"  # one asks three times as often, and has the lower priority


def kind(request: Request) -> str:
    """Whether a request is one of the "short" or the "long" ones."""
    return "short" if request.limit <= ANSWERS["short"][1] else "long"


def poisson(count: int, rate: float, long_share: float = 0.3, seed: int = 0) -> Arrivals:
    """`count` requests, on average `rate` a second, whatever becomes of those before."""
    if count < 1 or not rate > 0:
        raise ValueError(f"count={count}, rate={rate}: give at least 1, and a number above 0")
    dice, second, arrivals = random.Random(seed), 0.0, []
    for number in range(count):
        second += dice.expovariate(rate)
        which = "long" if dice.random() < long_share else "short"
        calm = dice.random() < 0.25
        prompt = [number] * dice.randint(*PROMPTS[which])  # nobody has a beginning in common
        request = Request(
            tuple(prompt),
            dice.randint(*ANSWERS[which]),
            user=CALM if calm else BUSY,
            priority=0 if calm else 1,
            ignore_end=True,
        )
        arrivals.append((second, request))
    return arrivals
