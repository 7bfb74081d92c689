import multiprocessing
import threading

import pytest
import torch

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.deep_learning.collectives.costs import Model as Link
from utils.llm.decoder import Config, Decoder
from utils.llm_concurrency.communication import shares, split, wires

TINY = Config(layers=4, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=66, vocabulary=97)


@pytest.fixture
def tiny(monkeypatch):
    torch.manual_seed(0)
    model = Decoder(TINY).double().eval().requires_grad_(False)
    monkeypatch.setattr("utils.llm.weights.smollm2", lambda: model)
    return model


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_split_networks_add_up_to_the_whole(tiny, ranks):
    result = split.run(ranks=ranks, rows=6, layers=4)
    for way, found in result.results.items():
        assert torch.allclose(found, result.whole, atol=1e-12)
        spans = result.traces[way]
        for rank in range(ranks):
            assert len(spans.select(lane=f"rank {rank}", category="compute")) == 2 * 4
            assert len(spans.select(lane=f"rank {rank} wire", category="communicate")) == 2 * 4
        assert 0 <= result.exposed(way) <= 1
    one, other = result.results.values()
    assert torch.equal(one, other)  # the same sums, in the same order
    assert plots.png(split.plot(result))


def test_overlap_computes_while_a_sum_travels(tiny, monkeypatch):
    """Both halves are under way at once, and only with overlap."""
    under_way, most = [0], {False: 0, True: 0}

    class Slow:
        lane, rank, size = "rank 0", 0, 1

        def all_reduce(self, tensor):
            assert gate.wait(10)

    class Watching(split.Layer):
        def summand(self, x):
            under_way[0] += 1
            if under_way[0] >= 2:
                gate.set()
            return super().summand(x)

    for overlap in (False, True):
        under_way[0], gate = 0, threading.Event()
        if not overlap:
            gate.set()
        layers = [Watching(tiny.layers[0], 0, 1)]
        split.forward(Slow(), layers, torch.randn(4, 32, dtype=torch.float64), overlap)
        most[overlap] = under_way[0]
    assert most == {False: 2, True: 2}  # with overlap the second half opened the gate


def test_wires_carry_everything_and_leave_nothing():
    result = wires.run(rounds=3)
    assert set(result.seconds) == set(wires.WIRES)
    for name, sizes in result.seconds.items():
        assert [len(rounds) for rounds in sizes] == [3] * len(wires.SIZES)
        cost, (low, high) = result.cost(name), result.interval(name)
        assert 0 <= low.per_message <= high.per_message and cost.per_message >= 0
        assert 0 <= low.per_megabyte <= high.per_megabyte
        assert name in wires.about(result, name)
    assert plots.png(wires.plot(result))
    assert not [p for p in multiprocessing.active_children() if p.name == "echo"]


def test_cancel_ends_the_other_process(monkeypatch):
    control, seen = Control(), []

    def cancelled_meanwhile(*_):
        seen.extend(p for p in multiprocessing.active_children() if p.name == "echo")
        control.cancel()
        return 1.0

    monkeypatch.setattr(wires, "_there_and_back", cancelled_meanwhile)
    with controlled(control), pytest.raises(Cancelled):
        wires.run()
    assert len(seen) == 1 and not seen[0].is_alive()


def test_the_fit_finds_the_line_it_was_given():
    seconds = tuple((3e-5 + size * 2e-10,) * 4 for size in wires.SIZES)
    result = wires.Wires({"pipe": seconds})
    low, high = result.interval("pipe")
    for cost in (result.cost("pipe"), low, high):
        assert cost.per_message == pytest.approx(3e-5)
        assert cost.per_megabyte == pytest.approx(2e-4)


def test_shares_are_the_formulas():
    shape, link = shares.MODELS["Llama 2 7B, bfloat16"], Link(1e-5, 1e-10)
    machine = shares.Machine(1e12, 1e14)
    assert shares.computing(shape, 4, 1, machine) == pytest.approx(6.74e9 * 2 / 1e12 / 4)
    assert shares.computing(shape, 1, 1000, machine) == pytest.approx(2 * 6.74e9 * 1000 / 1e14)
    assert shares.talking(shape, 1, 8, link) == 0
    ring = 6 * 1e-5 + 1e-10 * 6 / 4 * 8 * 4096 * 2
    tree = 4 * 1e-5 + 1e-10 * 4 * 8 * 4096 * 2
    assert shares.talking(shape, 4, 8, link) == pytest.approx(64 * min(ring, tree))
    result = shares.run(model="Llama 2 7B, bfloat16", batch=8, rate=500, memory=4000)
    assert len(result.computing) == len(shares.RANKS)
    assert plots.png(shares.plot(result))
