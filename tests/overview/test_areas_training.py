"""Data-parallel training: sharding changes neither the gradient nor what is learned."""

import threading

import pytest
import torch

from utils.overview.areas import training
from utils.overview.areas.training import average, gradient, gradient_error, plot, train


@pytest.mark.parametrize(("images", "shards"), [(96, 1), (96, 2), (96, 8), (97, 8), (10, 3)])
def test_sharded_gradient_is_the_full_batch_gradient(images, shards):
    x, y, _, _ = training._digits()
    assert gradient_error(x[:images], y[:images], shards) < 1e-12


def test_unequal_shards_need_their_weights():
    x, y, _, _ = training._digits()
    model = training._model()
    parts = [gradient(model, x[:3], y[:3]), gradient(model, x[3:10], y[3:10])]
    *_, whole = gradient(model, x[:10], y[:10])
    unweighted = [(a + b) / 2 for a, b in zip(parts[0][2], parts[1][2], strict=True)]
    for right, wrong, full in zip(average(parts), unweighted, whole, strict=True):
        torch.testing.assert_close(right, full, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(wrong, full, rtol=1e-4, atol=1e-6)


def test_gradients_are_values_and_no_worker_writes_to_the_model():
    x, y, _, _ = training._digits()
    model = training._model()
    gradient(model, x[:4], y[:4])
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("workers", [1, 3])
def test_the_loss_and_the_accuracy_are_those_of_one_worker(workers):
    threads, inside = threading.active_count(), torch.get_num_threads()
    result = train(workers=workers, batch=512)
    assert (threading.active_count(), torch.get_num_threads()) == (threads, inside)
    assert result.losses == pytest.approx(result.losses_one, rel=1e-3)
    assert result.accuracy == pytest.approx(result.accuracy_one, abs=0.01)
    assert result.accuracy > 0.5  # it learned: guessing gives 0.1
    steps = len(result.losses)
    assert len(result.contest.trace.select(category="compute")) == steps * workers
    assert len(result.contest.trace.select(category="communicate")) == steps
    assert len(plot(result).axes) == 3
