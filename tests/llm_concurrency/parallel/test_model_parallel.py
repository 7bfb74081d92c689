"""Cut into parts, the model says what it says whole, and ranks send what the formulas say."""

import copy
from functools import cache

import pytest
import torch
from torch.nn import functional as F

from utils.core import plots
from utils.deep_learning.collectives.launch import RankFailed, launch
from utils.llm.decoder import Cache, Config, Decoder
from utils.llm.generate import generate
from utils.llm_concurrency.parallel import context, parts, pipeline, replicas, tensor, traffic
from utils.llm_concurrency.parallel.ring import deal

PROMPTS = [[5, 17, 42, 8, 3, 11, 90], [1, 2, 3], [77, 7, 7, 60, 13]]
LIMIT = 6


@cache
def tiny(kv_heads: int = 3, tied: bool = True) -> Decoder:
    """Random, float64, of 5 layers: its parts differ in size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = Config(
            layers=5, hidden=24, heads=6, kv_heads=kv_heads, head_dim=8, intermediate=31,
            vocabulary=97, tied=tied,
        )  # fmt: skip
        return Decoder(config).double()


def alone(prompt: list[int]) -> tuple[int, ...]:
    """Without a cache: `generate` would make one in float32."""
    return tuple(generate(tiny(), prompt, LIMIT, cached=False))


# ── Tensor parallel ───────────────────────────────────────────────────────────────────────────


def shards(group, kv_heads: int, tied: bool) -> dict:
    """Largest differences between a rank's part and its share of the whole model's."""
    whole, part = copy.deepcopy(tiny(kv_heads, tied)), tensor.cut(tiny(kv_heads, tied), group)
    x, y = torch.tensor([PROMPTS[0][:-1]]), torch.tensor(PROMPTS[0][1:])
    wanted, sent = whole(x)[0], group.bytes_sent
    got = part(x)[0]
    forward = group.bytes_sent - sent
    F.cross_entropy(got, y).backward()
    F.cross_entropy(wanted, y).backward()
    grads = copy.deepcopy(whole)
    with torch.no_grad():
        for target, source in zip(grads.parameters(), whole.parameters(), strict=True):
            target.copy_(source.grad)
    share = parts.narrow(grads, group.rank, group.size).state_dict()
    errors = {
        name: (parameter.grad - share[name.replace(".part", "")]).abs().max().item()
        for name, parameter in part.named_parameters()
    }
    backward = group.bytes_sent - sent - forward
    return {"logits": (got - wanted).abs().max().item(), "errors": errors,
            "sent": (forward, backward)}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("ranks", "kv_heads"), [(1, 3), (2, 3), (3, 3), (2, 2), (5, 6)])
def test_scores_and_all_gradients_equal_the_references_shards(ranks, kv_heads, tied) -> None:
    tiny(kv_heads, tied)  # made once, before ranks ask for it at the same time
    outcome = launch(shards, ranks, kv_heads, tied, on="threads")
    for result in outcome.results:
        assert result["logits"] <= 1e-12
        assert len(result["errors"]) == 2 + 9 * 5 + (not tied)
        assert max(result["errors"].values()) <= 1e-12, result["errors"]
    calls = outcome.trace.select(lane="rank 0", category="communicate")
    assert len(calls) == 2 * 2 * 5  # two a layer forward, two backward
    expected = tensor.formula(tiny(kv_heads, tied), ranks, len(PROMPTS[0]) - 1)
    for way in (0, 1):
        assert sum(result["sent"][way] for result in outcome.results) == expected


def test_a_ranks_cache_holds_its_own_heads_only() -> None:
    whole = Cache(tiny().config, 1, 10)
    sizes = []
    for rank in range(2):
        part = parts.narrow(tiny(), rank, 2)
        sizes.append(Cache(part.config, 1, 10).keys.numel())
        assert part.config.heads == 2 * part.config.kv_heads
    assert sizes[0] == 2 * sizes[1] and sum(sizes) == whole.keys.numel()


def test_channels_can_be_shared_as_one_likes_and_what_cannot_be_cut_is_refused() -> None:
    split = [parts.narrow(tiny(), rank, 2, [7, 24]) for rank in range(2)]
    assert [part.config.intermediate for part in split] == [7, 24]
    whole = sum(p.numel() for p in tiny().layers.parameters())
    norms = 2 * 24 * 5
    cut = sum(p.numel() for part in split for p in part.layers.parameters())
    assert cut == whole + norms  # nothing but the norms is there twice
    with pytest.raises(ValueError, match="ranks=4 is not allowed: give at most 3"):
        parts.narrow(tiny(), 0, 4)
    for wrong in ([31], [31, 0], [15, 15]):
        with pytest.raises(ValueError, match=r"channels=.* is not allowed: give 2 numbers"):
            parts.narrow(tiny(), 0, 2, wrong)
    with pytest.raises(RankFailed, match="ranks=4"):
        launch(tensor.be_rank, 4, tiny, PROMPTS[0], 2, on="threads")


# ── Pipeline ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("requests", [1, 3])
def test_stages_find_the_same_tokens_and_send_vectors_only(ranks, requests) -> None:
    asked = PROMPTS[:requests]
    results = launch(pipeline.be_stage, ranks, tiny, asked, LIMIT, on="threads").results
    assert [said.tokens for said in results[-1]] == [alone(prompt) for prompt in asked]
    sent = sum(max(said.sent[-1] for said in of_rank) for of_rank in results)
    through = sum(map(len, asked)) + requests * (LIMIT - 1)
    assert sent == pipeline.formula(tiny(), ranks, through, requests * (LIMIT - 1))


def test_stages_have_every_layer_once_and_about_the_same_weights() -> None:
    assert parts.bounds(Config(), 2) == [0, 19, 30]  # the head weighs as much as 8 layers
    for ranks in range(1, 31):
        ends = parts.bounds(Config(), ranks)
        assert ends == sorted(set(ends)) and (ends[0], ends[-1], len(ends)) == (0, 30, ranks + 1)
    with pytest.raises(ValueError, match="stages=6 is not allowed: give 1 to 5"):
        parts.bounds(tiny().config, 6)


@pytest.mark.parametrize(("p", "m"), [(1, 1), (2, 1), (4, 2), (4, 4), (3, 8)])
def test_a_pipeline_is_busy_for_as_many_requests_as_are_in_flight(p, m) -> None:
    result = pipeline.virtual(p, m, steps=32)
    (spans,) = result.traces.values()
    assert len(spans) == p * m * 32
    fill = 32 * max(p, m) + (p - 1 if m >= p else m - 1)  # ms; the last request leaves last
    assert spans.duration == pytest.approx(fill / 1e3)
    assert pipeline.idle(spans, p) == pytest.approx(1 - m * 32 / fill)
    for lane in spans.lanes:  # one thing at a time
        row = spans.select(lane=lane).spans
        assert all(a.end <= b.start for a, b in zip(row, row[1:], strict=False))
    plots.png(pipeline.plot(result))


# ── Data, sequence; all of them ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_replicas_answer_every_request_once_and_say_nothing_to_each_other(ranks) -> None:
    results = launch(replicas.be_replica, ranks, tiny32, PROMPTS, LIMIT, on="threads").results
    for request, prompt in enumerate(PROMPTS):
        said = results[request % ranks][request // ranks]
        assert said.tokens == tuple(generate(tiny32(), prompt, LIMIT))
        assert said.sent == (0,) * LIMIT
    assert sum(map(len, results)) == len(PROMPTS)


@cache
def tiny32() -> Decoder:
    return copy.deepcopy(tiny()).float()


def read(group, zigzag: bool) -> float:
    """Largest difference of this rank's vectors of a prompt, and of three tokens after it."""
    positions, text = deal(7, group.size, zigzag), torch.tensor([PROMPTS[0] + PROMPTS[1]])
    with torch.inference_mode():
        wanted, part = tiny().hidden(text), context.spread(tiny(), group, positions)
        own = positions[group.rank]
        errors = [(part.hidden(text[:, own]) - wanted[:, own]).abs().max().item()]
        for place in range(7, 10):
            got = part.hidden(text[:, place : place + 1])
            errors.append((got[:, 0] - wanted[:, place]).abs().max().item())
    return max(errors)


@pytest.mark.parametrize("zigzag", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_token_has_the_vector_that_it_has_in_the_whole_text(ranks, zigzag) -> None:
    tiny()
    assert max(launch(read, ranks, zigzag, on="threads").results) <= 1e-10


@pytest.mark.parametrize("zigzag", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_text_that_is_read_in_parts_is_answered_alike(ranks, zigzag) -> None:
    results = launch(
        context.be_reader, ranks, tiny, PROMPTS[0], LIMIT, zigzag, on="threads"
    ).results
    assert {said.tokens for said in results} == {alone(PROMPTS[0])}


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_table_knows_the_tiny_model_too(ranks) -> None:
    rows = {row.cut.split()[0]: row for row in traffic.table(tiny32().config, ranks, 7)}
    kinds = {"tensor": tensor.be_rank, "pipeline": pipeline.be_stage, "ring": context.be_reader}
    for name, function in kinds.items():
        asked = [PROMPTS[0]] if name == "pipeline" else PROMPTS[0]
        results = launch(function, ranks, tiny32, asked, 3, on="threads").results
        said = [result[0] if isinstance(result, list) else result for result in results]
        read, one = (sum(rank.sent[step] for rank in said) for step in (0, 1))
        assert (read, one - read) == rows[name].bytes, name
