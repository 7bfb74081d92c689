"""What fits, roofs, replicas: answers stay the same, invariants hold, Cancel leaves nothing."""

import multiprocessing
import threading
import time
from itertools import pairwise

import pytest
import torch

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.llm import weights
from utils.llm.decoder import Config, Decoder
from utils.llm.generate import generate
from utils.llm.scale import hardware, replicas, serve
from utils.llm.scale.catalogue import MODELS
from utils.llm.scale.costs import Device, step

SMALL = Config(
    layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=64, vocabulary=9999
)


HERE = Device("this machine", 8e9, 20e9, 100e9, "measured")


@pytest.fixture
def small(monkeypatch):
    torch.manual_seed(0)
    model = Decoder(SMALL).eval()
    monkeypatch.setattr(weights, "smollm2", lambda: model)
    monkeypatch.setattr(hardware, "this_machine", lambda: HERE)
    return model


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_the_largest_batch_fits_and_one_more_does_not(model, dtype):
    found = serve.serve(model=model, dtype=dtype, memory=288, context=1024)
    used = found.weights + found.most * found.cache
    assert used <= found.device.memory or found.most == 0
    assert used + found.cache > found.device.memory
    assert (found.devices == 1) == (found.batch <= found.most)


def test_more_sequences_are_never_slower_together_nor_faster_each():
    found = serve.serve()
    rates = [found.rate(batch) for batch in serve.BATCHES]
    assert all(a <= b for a, b in pairwise(rates))
    each = [found.rate(batch) / batch for batch in serve.BATCHES]
    assert all(a >= b for a, b in pairwise(each))


def test_kv_heads_change_the_cache():
    few, many = (serve.serve(kv_heads=heads).cache for heads in ("one (MQA)", "all (MHA)"))
    assert many == MODELS["Llama 3.1 8B"].shape.heads * few


def test_bad_choices_are_refused_by_name():
    with pytest.raises(ValueError, match="model='GPT-5' is not allowed: give one of 'GPT-2'"):
        serve.serve(model="GPT-5")
    with pytest.raises(ValueError, match="context=0 is not allowed"):
        serve.serve(context=0)
    with pytest.raises(ValueError, match="count=1 is not allowed"):
        replicas.replicas(count=1)


def test_no_step_is_above_a_roof(small):
    found = hardware.hardware(prompt=1024)
    for device, steps in found.steps.items():
        for each in steps.values():
            roof = min(device.matrix, each.intensity * device.read)
            assert each.flops / each.least(device) == pytest.approx(roof)


def test_a_batch_moves_decoding_towards_the_ridge():
    shape = MODELS["GPT-2"].shape
    at = [step(shape, 1, 64, batch, "bfloat16").intensity for batch in (1, 8, 64)]
    assert at == sorted(at) and at[0] < 2 < at[-1]


def test_the_cache_is_counted_as_it_is_kept():
    found = serve.serve(dtype="int4", batch=256, context=131072, memory=288)
    one, two = (found.device.read / found.rate(batch) * batch for batch in (1, 2))
    assert two - one == pytest.approx(found.cache)


def test_replicas_answer_as_one_does(small):
    threads_before, before = torch.get_num_threads(), threading.active_count()
    found = replicas.replicas(count=2, requests=3, tokens=6)
    prompts = [[1, *range(100 + 40 * n, 132 + 40 * n)] for n in range(3)]
    expected = tuple(tuple(generate(small, prompt, 6)) for prompt in prompts)
    assert {way.answers for way in found.ways.values()} == {expected}
    assert [(way.workers, way.threads) for way in found.ways.values()] == [(1, 1), (2, 1), (1, 2)]
    assert all(len(way.trace) == 3 for way in found.ways.values())
    assert torch.get_num_threads() == threads_before
    assert threading.active_count() <= before


def test_a_replica_in_a_process_answers_the_same_and_ends():
    prompt = [1, *range(100, 132)]
    with replicas.workers(1, "processes") as submit:
        *_, said = submit(replicas.answer, prompt, 2, 1).result(timeout=60)
    assert said == list(generate(weights.smollm2(), prompt, 2))
    assert not multiprocessing.active_children()


def test_an_answer_stands_in_a_lane_that_was_free():
    answers = [(0, 10, []), (1, 5, []), (6, 9, []), (10, 12, []), (11, 15, [])]
    trace = replicas._rows(answers, 2)
    assert len(trace) == 5
    for lane in trace.lanes:
        spans = trace.select(lane=lane).spans
        assert all(a.end <= b.start for a, b in pairwise(spans))


def test_cancel_stops_the_replicas(small):
    control = Control()
    caught = []

    def run() -> None:
        with controlled(control), pytest.raises(Cancelled) as raised:
            replicas.replicas(requests=32, tokens=64)
        caught.append(raised.value)

    before = threading.active_count()
    thread = threading.Thread(target=run)
    thread.start()
    while not control.progress.total:
        time.sleep(0.01)
    control.cancel()
    thread.join(timeout=30)
    assert caught and threading.active_count() <= before


def test_pictures(small):
    results = {
        serve: serve.serve(model="Llama 3.1 405B"),
        hardware: hardware.hardware(),
        replicas: replicas.replicas(requests=2, tokens=2),
    }
    for module, result in results.items():
        assert plots.png(module.plot(result)).startswith(b"\x89PNG")
