"""What `train` refuses, and what is left when a training fails or is cancelled."""

import math
import threading

import pytest
import torch

from utils.core.experiment import Cancelled, Control, controlled
from utils.deep_learning import digits
from utils.deep_learning.digits import Digits
from utils.deep_learning.recipe import Recipe
from utils.deep_learning.training.hogwild import Hogwild
from utils.deep_learning.training.train import STRATEGIES, TrainingFailed, train

DATA = digits.load()[0][:90].to(torch.float64)
RECIPE = Recipe(epochs=3, batch=32, shift=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "magic"}, "strategy='magic' is unknown.*data parallel"),
        ({"model": "magic"}, "model='magic' is unknown.*small"),
        ({"workers": 0}, "workers=0"),
        ({"workers": 41, "data": DATA[:40]}, "workers=41.*40 digits"),
        ({"workers": 9, "recipe": Recipe(batch=8)}, "workers=9.*8 digits"),
        ({"weights": [1, 0]}, "weights"),
        ({"weights": [1, 1, 1]}, "weights"),
        ({"steps": 0}, "steps=0"),
        ({"micro_batches": 0}, "micro_batches=0"),
        ({"local_steps": 0}, "local_steps=0"),
        ({"on": "moon"}, "on='moon'"),
        ({"strategy": "ddp", "on": "threads"}, "on='threads' is not possible"),
        ({"strategy": "zero", "checkpoint": "x"}, "checkpoint"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_at_the_call(arguments, message):
    with pytest.raises(ValueError, match=message):
        train(**{"on": "threads", **arguments})


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"ddp", "fsdp"}))
def test_a_loss_that_is_not_a_number_ends_it_and_keeps_what_was(strategy):
    images = DATA.images.clone()
    images[60] = math.nan  # one of 90: in each epoch, whatever the order
    with pytest.raises(
        TrainingFailed, match=r"FloatingPointError: the loss of step \d is nan"
    ) as error:
        train(strategy, recipe=RECIPE, data=Digits(images, DATA.labels), on="threads")
    result = error.value.partial
    assert len(result.losses) < 3 and all(map(math.isfinite, result.losses))
    assert result.state is None and math.isnan(result.accuracy)


@pytest.mark.parametrize("strategy", ["serial", "data parallel", "hogwild", "asynchronous server"])
def test_a_cancelled_training_ends(strategy):
    class Impatient(Control):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "progress" and value.done:
                self.cancel()

    with controlled(Impatient()), pytest.raises(Cancelled):
        train(strategy, recipe=Recipe(epochs=1000), on="threads")


@pytest.mark.timeout(60)
def test_a_thread_that_fails_ends_those_that_do_not_wait_for_it(monkeypatch):
    step, begun = Hogwild.step, threading.Semaphore(0)

    def fail(self, mine, whole):
        if self.group.rank == 1:
            begun.acquire()
            begun.acquire()  # rank 0 has begun its second step, so it has done one
            raise OSError("rank 1 has had enough")
        begun.release()
        return step(self, mine, whole)

    monkeypatch.setattr(Hogwild, "step", fail)
    with pytest.raises(TrainingFailed, match="rank 1 has had enough") as error:
        train("hogwild", recipe=Recipe(epochs=100_000, batch=30), data=DATA, on="threads")
    assert error.value.partial.losses  # rank 0's first
