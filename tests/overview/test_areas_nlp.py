"""Semantic search: the answers are right and do not depend on who gives them."""

import numpy as np
import pytest
import torch

from utils.overview.areas.nlp import QUERIES, SENTENCES, encode, plot, rank, search


def test_encoding_in_a_batch_is_encoding_alone():
    texts = [QUERIES[0], SENTENCES[1], "lock"]
    alone = torch.cat([encode([text]) for text in texts])
    torch.testing.assert_close(encode(texts), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.norm(dim=1), torch.ones(3))


def test_meaning_is_found_without_common_words():
    known = encode(SENTENCES)
    (best,) = rank(encode(["smaller weights, faster model"]), known, best=1)
    assert SENTENCES[best[0]].startswith("Quantization")


def test_every_sentence_finds_itself():
    known = encode(SENTENCES)
    assert rank(known, known, best=1)[:, 0].tolist() == list(range(len(SENTENCES)))


@pytest.mark.parametrize(("workers", "inside"), [(1, 1), (4, 2)])
def test_same_ranking_for_every_number_of_workers(workers, inside):
    before = torch.get_num_threads()
    result = search(workers=workers, threads_inside=inside)
    assert torch.get_num_threads() == before
    np.testing.assert_array_equal(result.rankings, result.rankings_one)
    assert len(result.latencies) == len(result.contest.trace) == len(QUERIES)
    overwritten = QUERIES.index("why was my increment overwritten?")
    assert result.answer(overwritten).startswith("An update is lost")
    assert len(plot(result).axes) == 3
