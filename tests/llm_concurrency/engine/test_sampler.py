"""From scores to tokens: the best, or drawn; guesses accepted, and never of any influence."""

import pytest
import torch
from scipy.stats import chi2

from utils.llm.sampling import GREEDY, Sampling, choose, probabilities
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.sampler import draw
from utils.llm_concurrency.engine.scheduler import Work
from utils.llm_concurrency.engine.sequence import Sequence

BOLD = Sampling(temperature=0.8)


def one(number: int = 0, draft=(), how=GREEDY, seed: int = 0, **more) -> Work:
    sequence = Sequence(number, Request([1, 2, 3], 9, how, seed, **more))
    sequence.computed, sequence.draft = 2, list(draft)
    return Work(sequence, 2, 1 + len(draft))


def scores_for(*best: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(best), 7).float()


@pytest.mark.parametrize(
    "draft, tokens",
    [
        ([], [4]),
        ([4, 5, 6], [4, 5, 6, 1]),  # all right: one more
        ([0, 5, 6], [4]),  # wrong at the first, in the middle, at the last
        ([4, 0, 6], [4, 5]),
        ([4, 5, 0], [4, 5, 6]),
    ],
)
@pytest.mark.parametrize("penalty", [1, 1.0001])  # the second goes the way of the dice
def test_guesses_are_accepted_up_to_the_first_wrong_one(draft, tokens, penalty) -> None:
    how = Sampling(repetition_penalty=penalty)
    (drawn,) = draw([one(draft=draft, how=how)], scores_for(4, 5, 6, 1)[: len(draft) + 1])
    assert drawn.tokens == tokens and drawn.logprobs == []


def test_rows_belong_to_their_sequences_and_a_chunk_in_between_has_none() -> None:
    chunk = Work(Sequence(1, Request(range(9))), 0, 4)
    works = [one(0, [2]), chunk, one(2)]
    assert [work.rows for work in works] == [2, 0, 1]
    drawn = draw(works, scores_for(2, 3, 5))
    assert [each.tokens for each in drawn] == [[2, 3], [], [5]]


def test_logprobs_are_those_of_the_model_before_any_rule() -> None:
    scores = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    best = scores.argmax(1).tolist()
    works = [one(0, best[:2], logprobs=True), one(1, how=BOLD, logprobs=True)]
    first, second = draw(works, torch.cat([scores, scores[:1]]))
    expected = scores.log_softmax(1)
    assert first.logprobs == expected.gather(1, torch.tensor(best)[:, None])[:, 0].tolist()
    assert second.logprobs == [expected[0, second.tokens[0]].item()]


@pytest.mark.parametrize("draft", [(), (0, 0), (3, 5), (6, 6)])
def test_a_seed_gives_the_plain_loop_s_tokens_whatever_is_guessed(draft) -> None:
    scores = torch.randn(3, 7, generator=torch.Generator().manual_seed(2))
    for seed in range(40):
        dice = torch.Generator().manual_seed(seed)
        plain = [choose(line, BOLD, dice) for line in scores]
        (drawn,) = draw([one(0, draft, BOLD, seed)], scores[: len(draft) + 1])
        assert drawn.tokens == plain[: len(drawn.tokens)]
        right = 0
        while right < len(draft) and draft[right] == plain[right]:
            right += 1
        assert len(drawn.tokens) == right + 1


def test_drawn_tokens_have_the_model_s_distribution() -> None:
    """Two tokens, of which the first was guessed: chi-square of the pairs, seeded."""
    scores = 1.5 * torch.randn(2, 5, generator=torch.Generator().manual_seed(4))
    first, second = (probabilities(line, BOLD) for line in scores)
    guess, times = int(first.argmax()), 3000
    counts, accepted = torch.zeros(5), torch.zeros(5)
    sequence = one(0, [guess], BOLD)
    for _ in range(times):
        (drawn,) = draw([sequence], scores)
        counts[drawn.tokens[0]] += 1
        if len(drawn.tokens) == 2:
            accepted[drawn.tokens[1]] += 1
    for seen, chances in ((counts, first), (accepted, second)):
        expected = chances * seen.sum()
        assert ((seen - expected) ** 2 / expected).sum() < chi2.ppf(0.999, 4)
    assert accepted.sum() == counts[guess]
