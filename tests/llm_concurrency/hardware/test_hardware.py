import pytest
import torch

from utils.core import plots
from utils.llm.decoder import Cache, Config, Decoder
from utils.llm_concurrency.hardware import bits, threads, vectors

TINY = Config(layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=64, vocabulary=97)


@pytest.fixture
def tiny(monkeypatch):
    torch.manual_seed(0)
    model = Decoder(TINY).eval().requires_grad_(False)
    monkeypatch.setattr("utils.llm.weights.smollm2", lambda: model)
    bits.int8.cache_clear()
    yield model
    bits.int8.cache_clear()


def test_both_phases_are_measured_against_both_roofs(tiny):
    result = threads.run(prompt=16, batch=2)
    assert set(result.seconds) == {(p, t) for p in ("prefill", "decode") for t in result.threads}
    assert result.tokens == {"prefill": 16, "decode": 2}
    for count in result.threads:
        assert result.memory["prefill", count] == result.memory["decode", count] > 0
        assert result.arithmetic["prefill", count] > result.arithmetic["decode", count]
    assert plots.png(threads.plot(result))


def test_operations_and_bytes_count_each_weight_once(tiny):
    weights = sum(parameter.numel() for parameter in tiny.layers.parameters())
    head = 97 * 32
    assert threads.operations(tiny, 5, 1) == 2 * (5 * weights + head)
    assert threads.size(tiny) == 4 * (weights + head + 32)


def test_a_step_leaves_the_past_alone(tiny):
    cache, tokens = Cache(TINY, 2, 9), torch.arange(16).view(2, 8)
    threads.step(tiny, tokens, cache, 0)
    again = [threads.step(tiny, tokens[:, :1], cache, 8) for _ in range(2)]
    assert torch.equal(*again)


def test_both_kinds_of_weights_are_timed(tiny):
    result = bits.run(batch=4)
    assert list(result.seconds) == [1, 4] and set(result.seconds[4]) == {"float32", "int8"}
    assert plots.png(bits.plot(result))


def test_four_bits_are_off_by_half_a_step_and_take_half_a_byte():
    torch.manual_seed(0)
    weight = torch.randn(6, 64)
    packed, scale, low = bits.grouped(weight)
    assert packed.nbytes == weight.numel() / 2
    left = bits.ungrouped(packed, scale, low, weight.shape)
    error = (left - weight).abs().unflatten(1, (-1, 32))
    assert (error <= scale / 2 * (1 + 1e-4)).all()
    with pytest.raises(ValueError, match="group=48"):
        bits.grouped(weight, 48)


def test_a_model_of_four_bits_keeps_its_original(tiny):
    before = tiny.lm_head.weight.clone()
    small = bits.with_int4(tiny)
    assert torch.equal(tiny.lm_head.weight, before)
    assert not torch.equal(small.lm_head.weight, before)
    assert torch.equal(bits.with_int4(small).lm_head.weight.round(decimals=4),
                       small.lm_head.weight.round(decimals=4))  # fmt: skip


def test_each_capability_has_a_process_of_its_own():
    result = vectors.run()
    assert 1 <= len(result.seconds) <= 2
    for seconds in result.seconds.values():
        assert set(seconds) == set(vectors.WORKS.values()) and min(seconds.values()) > 0
    assert plots.png(vectors.plot(result))
