"""Real stages compute what one process does; both clocks agree; failures end everybody."""

import multiprocessing
import threading

import pytest
import torch
from torch import nn

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.deep_learning import digits, models
from utils.deep_learning.collectives.launch import RankFailed, launch
from utils.deep_learning.model_parallel import article, clocks
from utils.deep_learning.model_parallel.clocks import largest
from utils.deep_learning.model_parallel.schedules import SCHEDULES, make_schedule
from utils.deep_learning.model_parallel.stages import Pipeline, chain, cut
from utils.deep_learning.recipe import loss_of

every = pytest.mark.parametrize("name", SCHEDULES)


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("name", models.MODELS)
def test_a_chain_of_layers_is_the_model(name) -> None:
    model = models.make(name)
    images = digits.load()[0].images[:4]
    assert torch.equal(nn.Sequential(*chain(model))(images), model(images))
    stages = cut(model, 3)
    assert torch.equal(nn.Sequential(*sum(stages, []))(images), model(images))
    assert all(list(nn.Sequential(*layers).parameters()) for layers in stages)


def one_step(group, model, plan, data) -> dict:
    pipeline = Pipeline(group, model, plan, data.images)
    loss = pipeline.step(data)
    assert all(not stage.kept for stage in pipeline.stages.values())
    return {"loss": loss, "peak": pipeline.peak}


@every
@pytest.mark.parametrize(
    ("model_name", "p", "m", "batch"),  # equal, ragged and empty micro-batches
    [("small", 2, 4, 24), ("small", 2, 4, 13), ("tower", 3, 6, 13), ("tower", 3, 6, 3)],
)
def test_loss_and_raw_gradients_equal_one_process(name, model_name, p, m, batch) -> None:
    data = digits.load()[0][:batch].to(torch.float64)
    serial = models.make(model_name, dtype=torch.float64)
    loss = loss_of(serial, data)
    loss.backward()
    shared = models.make(model_name, dtype=torch.float64)  # threads touch their own stages only
    plan = make_schedule(name, p, m)
    outcome = launch(one_step, p, shared, plan, data, on="threads", deadline=20)
    for result in outcome.results:
        assert abs(result["loss"] - loss.item()) <= 1e-10
    for got, wanted in zip(shared.parameters(), serial.parameters(), strict=True):
        assert largest(got.grad, wanted.grad) <= 1e-10
    peaks = [result["peak"] for result in outcome.results]
    if name == "GPipe":
        assert peaks == [m] * p
    elif name == "1F1B":
        assert all(peak <= p - rank for rank, peak in enumerate(peaks))


@every
def test_both_clocks_agree_on_the_order(name) -> None:
    result = clocks.two_clocks(schedule=name, p=2, m=4, batch=16)
    plan = result.real.schedule
    for rank, actions in enumerate(plan.ranks):
        assert result.real.actions(rank) == result.virtual.actions(rank) == actions
    assert result.real.peaks == result.virtual.peaks
    assert result.loss_error <= 1e-10 and result.gradient_error <= 1e-10
    # The virtual clock's messages take no time: no real run can be shorter.
    assert result.virtual.trace.duration <= result.real.trace.duration
    plots.png(clocks.plot(result))


def test_messages_larger_than_a_channel() -> None:
    wide = nn.Sequential(nn.Flatten(), nn.Linear(784, 60_000, bias=False))
    for _ in range(2):
        wide.extend([nn.Linear(60_000, 2, bias=False), nn.Linear(2, 60_000, bias=False)])
    wide.append(nn.Linear(60_000, 10))
    data = digits.load()[0][:64]  # 60 000 × 16 × 4 bytes a message: a channel holds 2 MB
    plan = make_schedule("interleaved", 2, 4)
    launch(one_step, 2, wide, plan, data, on="threads", deadline=20)


def test_more_stages_than_layers_is_an_error() -> None:
    with pytest.raises(ValueError, match="stages=5 is not allowed: the model has 4 layers"):
        cut(models.make("small"), 5)
    with pytest.raises(RankFailed, match="stages=8 is not allowed: the model has 7 layers"):
        plan = make_schedule("1F1B", 8, 2)
        launch(one_step, 8, models.make("tower"), plan, digits.load()[0][:4], on="threads")


def test_a_group_of_another_size_is_refused() -> None:
    with pytest.raises(RankFailed, match="1F1B is for 3 ranks, the group has 2"):
        plan = make_schedule("1F1B", 3, 2)
        launch(one_step, 2, models.make("tower"), plan, digits.load()[0][:4], on="threads")


def fails_later(group, model, plan, data) -> None:
    pipeline = Pipeline(group, model, plan, data.images)
    pipeline.step(data)
    if group.rank == 1:
        raise ZeroDivisionError("on purpose")
    for _ in range(100):
        pipeline.step(data)


def test_a_stage_that_fails_ends_all() -> None:
    """A process that is killed ends its group as well: see test_launch."""
    plan = make_schedule("1F1B", 2, 4)
    data = digits.load()[0][:16]
    with pytest.raises(RankFailed, match="rank 1 raised ZeroDivisionError"):
        launch(fails_later, 2, models.make("small"), plan, data, on="threads")


def test_cancel_ends_all_ranks() -> None:
    control = Control()
    threading.Timer(0.05, control.cancel).start()
    with controlled(control), pytest.raises(Cancelled):
        clocks.two_clocks("GPipe", p=4, m=16, batch=1024)


def test_the_article_trains_the_same_model_again_and_again() -> None:
    result = article.model_parallel_train(workers=3, samples=30)
    assert result.difference == 0
    assert (result.trained, result.batches) == (9, 3)
    assert result.steps[0].startswith("runs, changes")
    assert [step.split(":")[0] for step in result.steps[1:]] == ["RuntimeError"] * 2
    assert result.common == 0
