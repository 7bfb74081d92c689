import threading

import pytest
import torch

from utils.core import plots
from utils.core.workers import crew
from utils.llm.decoder import Cache, Config, Decoder
from utils.llm.generate import generate
from utils.llm_concurrency.challenges import lengths, memory, noise
from utils.llm_concurrency.challenges.versions import Versions
from utils.llm_concurrency.hardware import bits

TINY = Config(
    layers=2,
    hidden=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    intermediate=64,
    vocabulary=97,
    tied=False,
)


def tiny(seed: int) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(TINY).eval().requires_grad_(False)


# ── Memory ────────────────────────────────────────────────────────────────────────────────────


def test_token_bytes_are_those_of_the_real_cache():
    cache = Cache(TINY, 3, 40)
    assert cache.keys.nbytes + cache.values.nbytes == 3 * 40 * memory.token_bytes(TINY, 4)


@pytest.mark.parametrize("model", list(memory.MODELS))
def test_what_fits_fits_and_one_more_does_not(model):
    entry = memory.MODELS[model]
    for gib in (0.5, 2, 20, 80):
        tokens = memory.room(entry, gib * memory.GIB)
        each = memory.token_bytes(entry.config, entry.number)
        if tokens:
            assert entry.weights + tokens * each <= gib * memory.GIB
        assert entry.weights + (tokens + 1) * each > gib * memory.GIB


def test_blocks_waste_less_than_a_block_a_sequence():
    result = memory.run()
    assert all(0 <= memory.blocks(n) - n < memory.BLOCK for n in result.lengths)
    row, block, none = result.fitting.values()
    assert 0 < row == result.tokens // result.context <= block <= none
    assert sum(map(memory.blocks, result.lengths[:block])) <= result.tokens
    assert sum(map(memory.blocks, result.lengths[: block + 1])) > result.tokens
    assert plots.png(memory.plot(result))


def test_weights_alone_can_be_too_large():
    result = memory.run(model="Llama 2 7B, bfloat16", gib=2)
    assert result.tokens == 0 and set(result.fitting.values()) == {0}
    assert plots.png(memory.plot(result))


# ── Lengths ───────────────────────────────────────────────────────────────────────────────────


def test_steps_counted_by_hand():
    answers = [3, 9, 2, 2, 8, 1]
    assert lengths.static_steps(answers, 2) == 9 + 2 + 8
    assert lengths.static_steps(sorted(answers), 2) == 2 + 3 + 9
    assert lengths.continuous_steps(answers, 2) == 15  # 3+2+2+8 beside 9+1
    assert lengths.continuous_steps(answers, 99) == 9


def test_no_way_is_faster_than_the_work_or_the_longest():
    for batch in (1, 3, 8, 64):
        result = lengths.run(batch=batch)
        for way, steps in result.steps.items():
            assert steps >= max(result.answers) and 0 <= result.empty(way) < 1
        assert result.steps["static, sorted"] <= result.steps["static, as they came"]
        assert result.steps["continuous, as they came"] <= result.steps["static, as they came"]
    assert plots.png(lengths.plot(result))


def test_replicas_share_all_the_work():
    answers = [5, 1, 1, 9, 4, 4]
    assert lengths.replica_loads(answers, 2, by_work=False) == [10, 14]
    assert lengths.replica_loads(answers, 2, by_work=True) == [13, 11]
    for by_work in (False, True):
        assert sum(lengths.replica_loads(answers, 3, by_work)) == sum(answers)


# ── Noise ─────────────────────────────────────────────────────────────────────────────────────


def test_another_order_of_sums_is_noise_and_fewer_bits_are_not(monkeypatch):
    model = tiny(0)
    monkeypatch.setattr("utils.llm.weights.smollm2", lambda: model)
    monkeypatch.setattr(
        noise.tokens, "smollm2", lambda: type("T", (), {"chat": lambda s, q: [5, 6, 7]})()
    )
    bits.int8.cache_clear()
    try:
        result = noise.run(count=16)
    finally:
        bits.int8.cache_clear()
    assert len(result.chosen) == 16 and (result.margin >= 0).all()
    for way in ("all at once", "in a batch of 4"):
        assert result.change[way].max() < 1e-4 and result.kl[way] < 1e-6
    assert result.change["int8 weights"].max() > 1e-4
    assert plots.png(noise.plot(result))


def test_chosen_tokens_are_those_of_generate():
    model = tiny(0)
    chosen, scores = noise.token_by_token(model, [1, 2, 3], 12)
    assert chosen == list(generate(model, [1, 2, 3], 12))
    for batch in (1, 4):
        assert torch.allclose(noise.all_at_once(model, [1, 2, 3], chosen, batch), scores, atol=1e-5)


# ── Versions ──────────────────────────────────────────────────────────────────────────────────


def test_a_request_keeps_its_version():
    versions = Versions("old")
    with versions.pinned() as first:
        assert versions.swap("new") == 2
        with versions.pinned() as second:
            assert (first, second) == ((1, "old"), (2, "new"))
        with pytest.raises(TimeoutError, match="1 requests"):
            versions.drain(0.05)
    versions.drain(0.05)


def test_drain_waits_for_the_last_reader_and_not_for_new_ones():
    versions, entered, leave = Versions("old"), threading.Event(), threading.Event()

    def read() -> None:
        with versions.pinned():
            entered.set()
            leave.wait(10)

    with crew(2) as pool:
        reading = pool.submit(read)
        assert entered.wait(10)
        versions.swap("new")
        with versions.pinned():  # a reader of the new version holds nobody up
            draining = pool.submit(versions.drain, 10)
            assert not draining.done()
            leave.set()
            draining.result(timeout=10)
        reading.result(timeout=10)


def test_a_failing_request_lets_go():
    versions = Versions("old")
    with pytest.raises(ZeroDivisionError), versions.pinned():
        raise ZeroDivisionError
    versions.swap("new")
    versions.drain(0.05)


def test_swapped_in_the_middle_of_real_answers():
    """Every answer, in four threads and through many swaps, is that of one version alone."""
    models = {1: tiny(1), 2: tiny(2)}
    prompt, count = [3, 1, 4], 20
    whole = {n: list(generate(model, prompt, count)) for n, model in models.items()}
    assert whole[1] != whole[2]
    versions = Versions((1, models[1]))

    def answer(_: int) -> None:
        with versions.pinned() as version:
            name, model = version.model
            assert list(generate(model, prompt, count)) == whole[name]

    with crew(4) as pool:
        answers = [pool.submit(answer, number) for number in range(24)]
        for swap in range(8):
            versions.swap((1 + swap % 2, models[1 + swap % 2]))
        for future in answers:
            future.result(timeout=60)
    versions.drain(1)
