"""What is wrong with a request is said at once, by name."""

import numpy as np
import pytest
import torch

from utils.llm.sampling import Sampling
from utils.llm_concurrency.engine.request import Rejected, Request


@pytest.mark.parametrize(
    "name, value",
    [
        ("prompt", ()), ("prompt", "text"), ("prompt", (1.5,)), ("prompt", 5), ("prompt", (None,)),
        ("limit", 0), ("limit", 2.5), ("limit", "3"), ("limit", float("nan")),
        ("sampling", None), ("sampling", 0.7), ("seed", "x"), ("seed", 2**63), ("seed", 1.5),
        ("stop", "end"), ("stop", ("",)), ("stop", (3,)), ("stop", None),
        ("deadline", 0), ("deadline", -1), ("deadline", float("nan")), ("deadline", "soon"),
        ("priority", "high"), ("priority", 0.5), ("user", None), ("user", ["a"]),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_named(name, value) -> None:
    with pytest.raises(Rejected, match=rf"^{name}=.* is not allowed: give "):
        Request(**{"prompt": (1, 2), name: value})


def test_rows_of_any_kind_are_prompts() -> None:
    for row in ([1, 2], range(1, 3), np.array([1, 2]), torch.tensor([1, 2]), iter((1, 2))):
        request = Request(row, 5, Sampling(1.0), seed=-(2**63), stop=["a"], deadline=0.5)
        assert request.prompt == (1, 2) and type(request.prompt[0]) is int
        assert request.length == 7 and request.stop == ("a",)
        assert hash(request) == hash(request)
