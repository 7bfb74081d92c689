"""Attention in parts is attention: by heads, texts, tokens; and round a ring, with gradients."""

from types import SimpleNamespace

import pytest
import torch

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.deep_learning.collectives.launch import launch
from utils.llm_concurrency.parallel import cuts, phases, stretch
from utils.llm_concurrency.parallel.ring import deal, ring_attention, spread_attention


def dense(q, k, v, causal):
    """Written out, as the reference."""
    k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], 1) for each in (k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if causal:
        hidden = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ v


def qkv(tokens: int, scale: float = 1.0):
    dice = torch.Generator().manual_seed(tokens)
    heads = (6, 2, 2)
    return [
        scale * torch.randn(2, n, tokens, 4, generator=dice, dtype=torch.float64) for n in heads
    ]


def one_rank(group, whole, positions, causal, down):
    """Largest differences of this rank's rows and of its three gradients; bytes both ways."""
    own = positions[group.rank]
    parts = [each[:, :, own].clone().requires_grad_() for each in whole]
    rows = ring_attention(group, *parts, positions, causal)
    forward = group.bytes_sent
    rows.backward(down[:, :, own])
    wanted = [each.clone().requires_grad_() for each in whole]
    expected = dense(*wanted, causal)
    expected.backward(down)
    errors = [(rows - expected[:, :, own]).abs().max().item()]
    for part, reference in zip(parts, wanted, strict=True):
        errors.append((part.grad - reference.grad[:, :, own]).abs().max().item())
    return errors, forward, group.bytes_sent - forward


def layouts():
    for ranks in (1, 2, 3, 4):
        yield deal(4 * ranks, ranks, zigzag=False)
        yield deal(4 * ranks + 3, ranks, zigzag=True)
        yield [torch.arange(rank, 11, ranks) for rank in range(ranks)]  # striped
    yield list(torch.arange(13).split([1, 7, 2, 3]))
    yield list(torch.arange(9).split([8, 1]))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "positions", list(layouts()), ids=lambda each: "-".join(map(str, map(len, each)))
)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_output_and_gradients_equal_dense_attention_on_every_rank(positions, causal, scale) -> None:
    tokens, ranks = sum(map(len, positions)), len(positions)
    whole = qkv(tokens, scale)
    down = qkv(tokens + 1)[0][:, :, 1:]
    results = launch(one_rank, ranks, whole, positions, causal, down, on="threads").results
    for errors, _, _ in results:
        assert max(errors) <= 1e-10 * scale, errors
    block = whole[1].nbytes + whole[2].nbytes
    assert sum(forward for _, forward, _ in results) == (ranks - 1) * block
    again = ((ranks - 1) + ranks * (ranks > 1)) * block  # gradients go all the way home
    assert sum(backward for *_, backward in results) == again


def test_a_long_block_goes_round_too() -> None:
    """Longer than what a channel holds: who only sent would wait for ever."""
    positions = list(torch.arange(600).split([500, 100]))
    dice = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 600, 1024, generator=dice)

    def rank(group):
        own = positions[group.rank]
        return ring_attention(group, q[:, :, own], k[:, :, own], v[:, :, own], positions)

    rows = torch.cat(launch(rank, 2, on="threads").results, 2)
    assert torch.allclose(rows, dense(q, k, v, True), atol=1e-4)


def test_one_query_over_the_keys_of_all_ranks() -> None:
    q, k, v = qkv(10, 20.0)
    cut = [slice(0, 1), slice(1, 7), slice(7, 10)]

    def rank(group):
        own = cut[group.rank]
        return spread_attention(group, q[:, :, -1:], k[:, :, own], v[:, :, own])

    for row in launch(rank, 3, on="threads").results:
        assert torch.allclose(row, dense(q, k, v, True)[:, :, -1:], rtol=0, atol=1e-10)


def test_what_cannot_be_dealt_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens=5 is not allowed: give at least 6"):
        deal(5, 3, zigzag=True)
    for positions in ([torch.arange(4)], [torch.arange(4), torch.arange(0)]):
        with pytest.raises(ValueError, match=r"positions .* are not allowed: give each of 2 ranks"):
            ring_attention(SimpleNamespace(rank=0, size=2), *qkv(4), positions)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_zigzag_shares_the_work_and_both_orders_are_exact(ranks) -> None:
    result = stretch.run(ranks, tokens=128)
    assert result.error <= 1e-4 and result.sent == result.formula
    size = 128 // ranks
    work = {order: [sum(row) for row in table] for order, table in result.pairs.items()}
    assert work["stretches"] == [(rank + 1) * size**2 for rank in range(ranks)]
    assert work["zigzag"] == [(ranks + 1) * size**2 // 2] * ranks
    for order, spans in result.traces.items():
        for rank in range(ranks):
            blocks = {s.args["block"] for s in spans.select(lane=f"rank {rank}").spans if s.args}
            seen = set(range(ranks)) if order == "zigzag" else set(range(rank + 1))
            assert blocks == seen  # what nobody sees is not computed
    plots.png(stretch.plot(result))


@pytest.mark.parametrize(("workers", "batch"), [(1, 1), (2, 1), (3, 4)])
def test_attention_cut_along_each_dimension_is_the_same(workers, batch) -> None:
    result = cuts.run(workers, batch, tokens=48)
    assert max(result.errors.values()) <= 1e-4
    for name, spans in result.traces.items():
        busy = len(spans.select(category="compute"))
        assert busy == (min(workers, batch) if name == "batch" else workers)
    layers = result.traces["layers"].select(category="compute").spans
    assert all(a.end <= b.start for a, b in zip(layers, layers[1:], strict=False))
    plots.png(cuts.plot(result))


def test_one_pass_and_many_give_the_same_scores() -> None:
    result = phases.run(tokens=12)
    assert result.error <= 1e-3
    assert len(result.trace.select(category="decode")) == 12
    plots.png(phases.plot(result))


@pytest.mark.parametrize("run", [cuts.run, phases.run, stretch.run])
def test_a_run_can_be_cancelled(run) -> None:
    control = Control()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        run()
