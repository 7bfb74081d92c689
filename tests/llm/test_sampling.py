"""Each rule does what the library's does, and the dice are fair."""

import math
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from transformers import generation

from utils.llm.sampling import GREEDY, Sampling, choose, probabilities

SAID = [3, 17, 3, 50]
RULES = {
    "temperature 0.5": (Sampling(0.5), generation.TemperatureLogitsWarper(0.5)),
    "temperature 2": (Sampling(2.0), generation.TemperatureLogitsWarper(2.0)),
    "top-k 1": (Sampling(1, top_k=1), generation.TopKLogitsWarper(1)),
    "top-k 7": (Sampling(1, top_k=7), generation.TopKLogitsWarper(7)),
    "top-k beyond": (Sampling(1, top_k=1000), generation.TopKLogitsWarper(1000)),
    "top-p 0.3": (Sampling(1, top_p=0.3), generation.TopPLogitsWarper(0.3)),
    "top-p 0.9": (Sampling(1, top_p=0.9), generation.TopPLogitsWarper(0.9)),
    "top-p tiny": (Sampling(1, top_p=1e-6), generation.TopPLogitsWarper(1e-6)),
    "min-p 0.05": (Sampling(1, min_p=0.05), generation.MinPLogitsWarper(0.05)),
    "min-p 1": (Sampling(1, min_p=1), generation.MinPLogitsWarper(1.0)),
    "penalty 1.3": (
        Sampling(1, repetition_penalty=1.3), generation.RepetitionPenaltyLogitsProcessor(1.3),
    ),
    "penalty 0.7": (
        Sampling(1, repetition_penalty=0.7), generation.RepetitionPenaltyLogitsProcessor(0.7),
    ),
}  # fmt: skip


def scores(seed: int, size: int = 101) -> torch.Tensor:
    return 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(5))
def test_a_rule_alone_is_the_library_s(rule, seed) -> None:
    how, processor = RULES[rule]
    expected = processor(torch.tensor([SAID]), scores(seed)[None])[0].softmax(0)
    torch.testing.assert_close(probabilities(scores(seed), how, SAID), expected)


@pytest.mark.parametrize("seed", range(20))
def test_all_rules_together_are_the_library_s_one_after_the_other(seed) -> None:
    how = Sampling(1.4, top_k=30, top_p=0.9, min_p=0.02, repetition_penalty=1.2)
    expected = scores(seed)[None]
    for processor in (
        generation.RepetitionPenaltyLogitsProcessor(1.2),
        generation.TemperatureLogitsWarper(1.4),
        generation.TopKLogitsWarper(30),
        generation.TopPLogitsWarper(0.9),
        generation.MinPLogitsWarper(0.02),
    ):
        expected = processor(torch.tensor([SAID]), expected)
    found = probabilities(scores(seed), how, SAID)
    torch.testing.assert_close(found, expected[0].softmax(0))


@pytest.mark.parametrize("seed", range(10))
def test_greedy_takes_the_best(seed) -> None:
    assert choose(scores(seed), GREEDY) == int(scores(seed).argmax())
    assert probabilities(scores(seed), GREEDY)[scores(seed).argmax()] == 1


def test_greedy_with_a_penalty_takes_the_best_that_is_left() -> None:
    given = torch.tensor([1.0, 5.0, 4.9, -1.0])
    how = Sampling(repetition_penalty=1.1)
    assert choose(given, how, said=[1]) == 2
    assert choose(given, how, said=[1, 2]) == 1
    assert choose(given, how) == 1  # nothing was said: nothing is pushed down
    assert choose(-given, how, said=[3]) == 3


@pytest.mark.parametrize("how", [Sampling(1), Sampling(0.7, top_k=5), Sampling(1.5, top_p=0.8)])
def test_tokens_come_as_often_as_they_should(how) -> None:
    given, dice = scores(0, 12) / 3, torch.Generator().manual_seed(0)
    chances = probabilities(given, how).double().numpy()
    seen = Counter(choose(given, how, dice) for _ in range(4000))
    possible = chances.nonzero()[0].tolist()
    assert set(seen) <= set(possible)
    counts = [seen[token] for token in possible]
    expected = 4000 * chances[possible] / chances[possible].sum()
    assert chisquare(counts, expected).pvalue > 1e-4


def test_the_same_seed_gives_the_same_tokens() -> None:
    def row(seed: int) -> list[int]:
        dice = torch.Generator().manual_seed(seed)
        return [choose(scores(7), Sampling(1.5), dice) for _ in range(20)]

    assert row(1) == row(1) != row(2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf),
        ("top_k", -1), ("top_p", 0), ("top_p", 1.01), ("top_p", math.nan), ("min_p", -0.1),
        ("min_p", 1.1), ("min_p", math.nan), ("repetition_penalty", 0),
        ("repetition_penalty", -1), ("repetition_penalty", math.inf),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_named(name, value) -> None:
    with pytest.raises(ValueError, match=f"{name}={value} is not allowed: give"):
        Sampling(**{name: value})
