"""The pictures' experiments: what they show follows from invariants, not from timings."""

import pytest

from utils.core import plots
from utils.core.trace import Span, Trace
from utils.deep_learning.training import anatomy, compare, literal, replicas, staleness


def drawn(module, result):
    assert plots.png(module.plot(result)).startswith(b"\x89PNG")


@pytest.mark.parametrize("strategy", ["data parallel", "asynchronous server", "hogwild"])
def test_compare_draws_every_rank(strategy):
    result = compare.run(strategy, workers=2, batch=16, steps=10)
    assert len(result.serial.losses) == len(result.chosen.losses) == 10
    assert set(result.ranks) <= set(result.chosen.trace.lanes) | {"rank 0"}
    drawn(compare, result)


def test_the_window_is_cut_from_the_middle():
    steps = [Span("rank 0", "compute", "gradient", 10 * n, 10 * n + 8) for n in range(20)]
    shown = compare.window(Trace(steps), 4)
    assert shown.start >= 75 and shown.end <= 125
    assert 4 <= len(shown) <= 6


def test_replicas_that_start_apart_stay_apart_unless_parameters_are_averaged():
    gradients, parameters, nothing = (
        replicas.run(averaged, steps=10) for averaged in ("gradients", "parameters", "nothing")
    )
    assert max(gradients.gaps["identical"]) == 0
    assert min(gradients.gaps["different"]) > 0.99 * gradients.gaps["different"][0] > 1
    assert parameters.gaps["different"][0] > 1 and max(parameters.gaps["different"][1:]) < 1e-5
    assert nothing.gaps["identical"][-1] > 0
    assert gradients.losses["identical"] == pytest.approx(parameters.losses["identical"], abs=1e-2)
    drawn(replicas, gradients)


def test_the_pseudo_code_trains_one_model_several_times():
    result = literal.run(workers=3, count=300)
    printed, small, part, mended = result.outcomes.values()
    assert printed.updates == 3 * 2 and printed.computed == 3
    assert small.gap == small.from_serial == 0 and small.computed == 3
    assert part.computed == 1 and part.gap > 1e-4
    assert mended.computed == 1 and mended.gap == 0 and mended.from_serial < 1e-5
    drawn(literal, result)


def test_a_gradient_that_is_not_late_is_fresh():
    result = staleness.run(staleness=3, steps=20)
    fresh, late = result.losses[0], result.losses[3]
    assert fresh[:1] == late[:1] and late[1] != fresh[1]
    assert len(set(late[:4])) == 4  # other batches, the same parameters: nothing applied yet
    drawn(staleness, result)


@pytest.mark.parametrize(("model", "kind"), [("small", "convolution"), ("tower", "matrix product")])
def test_the_parts_of_a_step_add_up(model, kind):
    result = anatomy.run(model, batch=8, steps=3)
    assert sum(result.kinds.values()) == pytest.approx(1)
    assert result.kinds[kind] > 0
    assert all(forward > 0 and backward >= 0 for forward, backward in result.layers.values())
    drawn(anatomy, result)
