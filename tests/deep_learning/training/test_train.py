"""`train`: every strategy, the numbers it reports, and what it refuses."""

import math

import pytest
import torch

from utils.core.trace import validate_chrome
from utils.deep_learning import digits, models
from utils.deep_learning.recipe import Recipe, fit
from utils.deep_learning.training.train import train

# 90 digits in batches of 32: the last of an epoch has 26, which 4 workers cannot share evenly.
DATA = digits.load()[0][:90].to(torch.float64)
RECIPE = Recipe(epochs=3, batch=32, shift=1)
EXACT = ["serial", "intra-op", "data parallel", "overlapped", "accumulation", "parameter server",
         "zero"]  # fmt: skip
LOOSE = ["asynchronous server", "hogwild", "local sgd"]


def furthest(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in other)


@pytest.fixture(scope="module")
def alone():
    model = models.make("small", dtype=torch.float64)
    losses = fit(model, DATA, RECIPE)
    return losses, model.state_dict()


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("strategy", EXACT)
def test_the_parameters_are_those_of_serial_training(alone, strategy, workers):
    result = train(strategy, workers=workers, recipe=RECIPE, data=DATA, on="threads")
    losses, state = alone
    assert result.losses == pytest.approx(losses, abs=1e-10)
    assert furthest(result.state, state) <= 1e-10


def test_a_local_step_between_two_means_is_data_parallel_with_sgd(alone):
    data = DATA[:64]  # equal parts
    local = train("local sgd", recipe=RECIPE, data=data, local_steps=1, on="threads")
    together = train("data parallel", recipe=RECIPE, data=data, on="threads")
    assert furthest(local.state, together.state) <= 1e-10
    rarely = train("local sgd", recipe=RECIPE, data=data, local_steps=3, on="threads")
    assert furthest(rarely.state, together.state) > 1e-6
    assert rarely.bytes_sent[1] * 2 < local.bytes_sent[1]


@pytest.mark.parametrize("strategy", LOOSE)
@pytest.mark.parametrize("workers", [1, 3])
def test_the_loose_ones_learn_from_every_digit_once_an_epoch(strategy, workers):
    result = train(strategy, workers=workers, recipe=RECIPE, data=DATA, on="threads")
    assert len(result.losses) == 9
    assert all(map(math.isfinite, result.losses))
    if workers == 1:
        assert result.losses == pytest.approx(
            train("serial", recipe=RECIPE, data=DATA, on="threads").losses, abs=1e-10
        )


def test_staleness_counts_the_updates_in_between():
    result = train("asynchronous server", workers=3, recipe=RECIPE, data=DATA, on="threads")
    assert len(result.staleness) == 9
    assert min(result.staleness) >= 0
    assert sum(result.staleness) > 0  # three began with the same parameters
    assert not train("parameter server", recipe=RECIPE, data=DATA, on="threads").staleness


@pytest.mark.parametrize("workers", [1, 2, 3, 11])
def test_zero_divides_the_optimiser_s_state(workers):
    result = train("zero", workers=workers, recipe=RECIPE, data=DATA, steps=2, on="threads")
    whole = 21_840 * 8  # momentum, float64
    assert len(result.state_bytes) == workers
    assert all(abs(each - whole / workers) <= 8 for each in result.state_bytes)


def test_data_parallel_sends_what_a_ring_sends():
    short, long = (
        train("data parallel", workers=3, recipe=RECIPE, data=DATA, steps=n, on="threads")
        for n in (2, 7)
    )
    for before, after in zip(short.bytes_sent, long.bytes_sent, strict=True):
        assert (after - before) / 5 == pytest.approx(2 * 2 / 3 * 21_840 * 8, rel=0.001)


def test_a_result_has_a_curve_a_rate_and_a_timeline():
    result = train("data parallel", recipe=Recipe(batch=500), steps=4, on="threads")
    assert len(result.losses) == 4 and result.samples_per_second > 0
    assert 0 <= result.accuracy <= 1
    assert {"rank 0", "rank 1"} <= set(result.trace.lanes)
    assert {"compute", "communicate"} <= {span.category for span in result.trace.spans}
    validate_chrome(result.trace.to_chrome())


@pytest.mark.parametrize("strategy", ["data parallel", "hogwild"])
def test_they_learn_to_read(strategy):
    recipe = Recipe(epochs=1, batch=32)
    assert train(strategy, recipe=recipe, on="threads").accuracy >= 0.8
