"""The scheduling experiments: what must hold at every setting, and that each draws its picture."""

import pytest
import torch

from utils.core import plots
from utils.llm.decoder import Config, Decoder
from utils.llm_concurrency.scheduling import chunks, fit, live, memory, orders, speculation

TINY = Config(layers=3, hidden=16, heads=2, kv_heads=1, head_dim=8, intermediate=32)


@pytest.fixture
def tiny(monkeypatch) -> Decoder:
    """A model of random numbers, with SmolLM2's vocabulary, in place of the real one."""
    torch.manual_seed(0)
    decoder = Decoder(TINY).eval().requires_grad_(False)
    for module in (chunks, fit, speculation):
        monkeypatch.setattr(module.weights, "smollm2", lambda: decoder)
    return decoder


def drawn(picture) -> bool:
    return plots.png(picture).startswith(b"\x89PNG")


def test_all_policies_do_the_same_work() -> None:
    result = orders.orders(requests=24, rate=6)
    for served in result.served.values():
        assert [len(one.times) for one in served] == [one.request.limit for one in served]
    # Whoever is always busy finishes when the work is done, whatever the order.
    assert result.wait("shortest", "short") <= result.wait("first come", "short")
    assert drawn(orders.plot(result))


def test_joined_spans_cover_the_same_time() -> None:
    trace = orders.orders(requests=16).trace
    shorter = orders.joined(trace)
    assert len(shorter) < len(trace)
    for category in ("queue", "prefill", "decode"):
        assert shorter.total(category) == pytest.approx(trace.total(category))


def test_small_chunks_bound_the_gap_and_delay_the_newcomer() -> None:
    result = chunks.virtual(chunk=64, prompt=500, people=3)
    small, whole = result.visits
    assert max(small.gaps) == pytest.approx(0.02 + 0.0015 * (64 + 3))
    assert max(whole.gaps) == pytest.approx(0.02 + 0.0015 * (500 + 3))
    assert small.first > whole.first
    assert drawn(chunks.plot(result))


def test_chunks_change_nobodys_tokens(tiny) -> None:
    result = chunks.real(chunk=16, prompt=100, people=2)
    first, second = result.visits
    assert first.tokens == second.tokens
    assert [len(one) for one in first.tokens] == [chunks.TALK, chunks.TALK, 8]
    assert drawn(chunks.plot(result))


@pytest.mark.parametrize("blocks", [20, 40, 120])
def test_less_memory_computes_more_and_forgets_nothing(blocks) -> None:
    result = memory.pressure(blocks=blocks)
    assert all(len(one.generated) == one.request.limit for one in result.served)
    again = sum(one.preempted for one in result.served)
    assert (result.computed > result.needed) == (again > 0)
    assert (blocks == 120) == (again == 0)
    assert drawn(memory.plot(result))


@pytest.mark.parametrize("way", ["prompt lookup", "fewer layers"])
def test_guesses_change_no_token(tiny, way) -> None:
    result = speculation.guess(way=way, keep=2, limit=24)
    assert result.same and sum(result.steps) == 24 - 1  # the first one came with the prompt
    assert result.accepted == sum(result.steps) - len(result.steps)
    assert drawn(speculation.plot(result))


def test_no_guesses_is_one_token_a_pass(tiny) -> None:
    result = speculation.guess(count=0, limit=8)
    assert result.same and result.steps == (1,) * 7 and result.rate == 0


def test_all_layers_guess_everything(tiny) -> None:
    result = speculation.guess(way="fewer layers", keep=2, count=3, limit=16)
    assert result.accepted == result.drafted  # 2 and the last one are all three layers


def test_the_fit_is_made_of_costs(tiny) -> None:
    result = fit.fit(past=32, repeats=1)
    assert min(result.cost.base, result.cost.token, result.cost.pair) >= 0
    assert len(result.seconds) == len(result.expected) == 2 * len(fit.SHAPES)
    assert drawn(fit.plot(result))


def test_a_frame_shows_whose_every_block_is() -> None:
    for step in (0, 55, 100):
        frame = live.replay(step=step)
        running = {row.number: row for row in frame.rows if row.running}
        assert {owner for owner in frame.owners if owner >= 0} == set(running)
        for number, row in running.items():
            assert row.computed <= 16 * sum(owner == number for owner in frame.owners)
        assert drawn(live.plot(frame))
