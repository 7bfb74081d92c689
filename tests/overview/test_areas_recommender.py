"""Recommendation: the ten best are the ten best, whoever computed them."""

import pytest
import torch

from utils.overview.areas import recommender
from utils.overview.areas.recommender import TOP, USERS, best, plot, recommend


def test_best_agrees_with_sorting_everything():
    users, items = recommender._factors()
    scores, chosen = best(users[:5], items)
    every = (users[:5] @ items.T).sort(dim=1, descending=True)
    torch.testing.assert_close(scores, every.values[:, :TOP])
    assert torch.equal(chosen, every.indices[:, :TOP])


@pytest.mark.parametrize(("workers", "block"), [(1, 1024), (2, 128), (8, 16)])
def test_several_workers_recommend_exactly_what_one_does(workers, block):
    result = recommend(workers=workers, block=block)
    assert result.identical
    assert result.items.shape == (USERS, TOP)
    assert len(result.contest.trace) == USERS // block
    assert "synthetic" in result.data
    assert len(plot(result).axes) == 2


def test_users_are_in_their_places():
    users, items = recommender._factors()
    result = recommend(workers=3, block=128)
    some = [0, 127, 128, USERS - 1]
    torch.testing.assert_close(result.scores[some], best(users[some], items)[0])
