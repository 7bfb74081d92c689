"""Guesses save steps if they are right, and change nothing if they are wrong."""

import pytest

from utils.llm_concurrency.engine.model import PagedModel
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.speculate import DraftModel, PromptLookup, with_layers

PROMPTS = [Request(range(n, n + length), 20) for n, length in enumerate((3, 8, 12))]


class Scripted:
    """Guesses `count` tokens of the known answers, with one wrong at place `wrong`."""

    def __init__(self, answers, count: int, wrong: int | None = None) -> None:
        self.answers, self.count, self.wrong = answers, count, wrong

    def propose(self, sequences) -> None:
        for one in sequences:
            done = len(one.generated)
            one.draft = self.answers[one.number][done : done + self.count]
            if self.wrong is not None and self.wrong < len(one.draft):
                one.draft[self.wrong] = (one.draft[self.wrong] + 1) % 97


@pytest.fixture(scope="module")
def answers(alone) -> list[list[int]]:
    return [alone(one) for one in PROMPTS]


@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_right_guesses_are_all_accepted_and_save_steps(serve, answers, count) -> None:
    served = serve(PROMPTS, proposer=Scripted(answers, count), budget=200)
    core = served.core
    assert served.tokens == answers
    assert core.accepted == core.drafted
    assert (core.drafted > 0) == (count > 0)
    assert core.steps == 1 + -(-19 // (1 + count))


@pytest.mark.parametrize("wrong", [0, 2, 4])
@pytest.mark.parametrize("size", [1, 4, 16])
def test_what_was_computed_for_a_wrong_guess_is_void(serve, answers, wrong, size) -> None:
    """The cache is checked after every step: rewound at the first, middle, last guess."""
    served = serve(PROMPTS, proposer=Scripted(answers, 5, wrong), size=size, blocks=300 // size)
    assert served.tokens == answers
    if wrong == 0:
        assert served.core.accepted == 0 and served.core.steps == 20


@pytest.mark.parametrize("size", [1, 4])
def test_what_was_guessed_behind_the_end_is_not_remembered(serve, answers, size) -> None:
    end = answers[1][4]
    proposer = Scripted(answers, 9)
    served = serve(PROMPTS, proposer=proposer, end=end, size=size, blocks=300 // size, budget=99)
    for said, whole in zip(served.tokens, answers, strict=True):
        assert said == (whole[: whole.index(end) + 1] if end in whole else whole)


def test_an_adversary_changes_nothing(serve, answers) -> None:
    served = serve(PROMPTS, proposer=Scripted([[n % 97 for n in range(40)]] * 3, 30), blocks=26)
    assert served.tokens == answers


def test_prompt_lookup_guesses_what_followed_last_time() -> None:
    lookup = PromptLookup(count=3, longest=2)
    assert lookup.guess([1, 2, 3, 4, 5, 1, 2]) == [3, 4, 5]
    assert lookup.guess([1, 2, 3, 1, 2, 4, 1, 2]) == [4, 1, 2]  # the latest
    assert lookup.guess([7, 2, 8, 9, 2]) == [8, 9, 2]  # of fewer tokens
    assert lookup.guess([5, 5]) == [5]
    assert lookup.guess([1, 2, 3]) == lookup.guess([1]) == []
    assert PromptLookup(count=0).guess([1, 2, 1]) == []
    for wrong in ({"count": -1}, {"longest": 0}):
        with pytest.raises(ValueError, match="give count ≥ 0 and longest ≥ 1"):
            PromptLookup(**wrong)


def draft_model(decoder, blocks: int = 60, count: int = 4) -> DraftModel:
    return DraftModel(PagedModel(decoder, blocks, 4), blocks, 4, count)


def test_the_model_itself_as_a_draft_is_always_right(tiny, serve, answers) -> None:
    draft = draft_model(tiny)
    served = serve(PROMPTS, proposer=draft, budget=200)
    assert served.tokens == answers
    assert served.core.accepted == served.core.drafted > 0
    assert served.core.steps == 1 + -(-19 // 5)
    draft.propose([])
    assert draft.pool.used == 0


@pytest.mark.parametrize("blocks", [3, 60])  # three are too few to guess for all
def test_a_draft_of_fewer_layers_changes_nothing(tiny, serve, answers, blocks) -> None:
    draft = draft_model(with_layers(tiny, [1]), blocks)
    assert serve(PROMPTS, proposer=draft).tokens == answers
    assert serve(PROMPTS, proposer=draft_model(with_layers(tiny, [0])), blocks=16).tokens == answers


def test_a_draft_stops_at_the_end_of_the_context(tiny, serve, alone) -> None:
    request = Request(range(90), 6)
    longest = Request([*range(91), *range(91)], 18)  # all of the model's 200 tokens
    requests = [request, longest]
    assert serve(requests, proposer=draft_model(tiny, 120), budget=300, blocks=90).tokens == [
        alone(one) for one in requests
    ]
