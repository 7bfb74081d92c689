"""The clocks: nothing is lost or timed twice, the model computes as before, no hook stays."""

import pytest
import torch

from utils.core import machine, plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.llm import weights
from utils.llm.anatomy import clock, roofline
from utils.llm.decoder import Cache, Config, Decoder
from utils.llm.scale.costs import Device, Shape, flops, step

SMALL = Config(
    layers=3, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=64, vocabulary=9999
)


@pytest.fixture
def small(monkeypatch):
    torch.manual_seed(0)
    model = Decoder(SMALL).eval()
    monkeypatch.setattr(weights, "smollm2", lambda: model)
    monkeypatch.setattr(machine, "cores", lambda: 1)  # a tiny model only waits for more threads
    return model


def hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_parts_add_up_and_layers_are_within_the_whole(small):
    with torch.inference_mode():
        phase = clock.measure(small, torch.arange(20)[None], Cache(SMALL, 1, 20))
    assert set(phase.parts) == set(clock.PARTS) and len(phase.layers) == SMALL.layers
    assert all(seconds > 0 for seconds in phase.parts.values())
    assert all(seconds > 0 for seconds in phase.layers)
    assert sum(phase.layers) < phase.seconds
    within = sum(phase.parts[part] for part in ("q, k, v, o", "attention itself", "MLP"))
    assert within < sum(phase.layers)
    assert hooks(small) == 0


def test_a_slow_part_is_found(small, monkeypatch):
    import time

    for name, part in (("mlp", "MLP"), ("self_attn", "attention itself")):
        module = getattr(small.layers[1], name)
        with monkeypatch.context() as patched:
            slow = module.forward
            patched.setattr(module, "forward", lambda *a, f=slow: (time.sleep(0.2), f(*a))[1])
            with torch.inference_mode():
                phase = clock.measure(small, torch.arange(5)[None], Cache(SMALL, 1, 20))
        assert phase.parts[part] >= 0.2 and phase.layers[1] >= 0.2


def test_the_stopwatch_changes_no_result_and_takes_its_hooks_off_after_an_error(small):
    tokens = torch.arange(9)[None]
    plain = small(tokens)
    with clock.stopwatch(small):
        assert torch.equal(small(tokens), plain)
    with pytest.raises(ZeroDivisionError), clock.stopwatch(small):
        raise ZeroDivisionError
    assert hooks(small) == 0


def test_both_phases_are_measured(small):
    found = clock.run(prompt=16, steps=3, threads=1)
    assert (found.prefill.tokens, found.decode.tokens) == (16, 1)
    assert plots.png(clock.plot(found)).startswith(b"\x89PNG")


def test_decoding_steps_repeat_at_the_same_place(small):
    prompt = torch.arange(1000, 1010)[None]
    with torch.inference_mode():
        one = Cache(SMALL, 1, 10)
        small.hidden(prompt, one)
        again = roofline.decoding(small, one, 3)
        again()
        again()  # a cache of one token more than the prompt would overflow if steps moved on
        assert one.length == 10


def test_the_roofline_counts_what_the_calculators_say(small, monkeypatch):
    device = Device("", 1e9, 1e9, 1e12)
    monkeypatch.setattr(roofline, "this_machine", lambda: device)
    found = roofline.run(prompt=32, batch=6, repeats=1)
    assert list(found.decode) == [1, 2, 4, 6]
    at = [timed.step.intensity for timed in found.decode.values()]
    assert at == sorted(at)
    assert found.prefill.step.flops == flops(Shape.of(SMALL), 32, scored=1)
    for size, timed in found.decode.items():
        assert found.tokens_a_second(size) == size / timed.seconds
        assert timed.step == step(Shape.of(SMALL), 1, 32, size)
        assert found.limit(size) == size / timed.step.least(device)
    assert plots.png(roofline.plot(found)).startswith(b"\x89PNG")


@pytest.mark.parametrize("run", [clock.run, roofline.run])
def test_cancel_leaves_no_hook_and_the_number_of_threads(small, run):
    control, before = Control(), torch.get_num_threads()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        run()
    assert hooks(small) == 0 and torch.get_num_threads() == before


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="prompt=1 is not allowed"):
        clock.run(prompt=1)
    with pytest.raises(ValueError, match="threads"):
        clock.run(threads=machine.cores() + 1)
    with pytest.raises(ValueError, match="batch=65"):
        roofline.run(batch=65)
