"""The formulas against bytes and memory counted in real runs."""

import copy

import pytest
import torch
from torch import nn

from utils.core import plots
from utils.deep_learning.collectives.launch import launch
from utils.deep_learning.digits import Digits
from utils.deep_learning.model_parallel import choose
from utils.deep_learning.model_parallel.choose import BYTES, STATE, Job
from utils.deep_learning.model_parallel.schedules import one_f_one_b
from utils.deep_learning.model_parallel.stages import Pipeline
from utils.deep_learning.model_parallel.tensor import parallelize

WIDTH, LAYERS, BATCH = 24, 6, 16


def a_job(workers: int) -> Job:
    return Job(WIDTH, LAYERS, BATCH, workers, rate=1e9, bandwidth=1e9, latency=1e-5, micro=4)


def make() -> nn.Sequential:
    layers = [(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(LAYERS)]
    return nn.Sequential(*(layer for pair in layers for layer in pair))


class Kept:
    """Counts the bytes that autograd keeps for the backward, parameters and input left out."""

    def __init__(self, model: nn.Module, *inputs: torch.Tensor) -> None:
        self.known = {p.data_ptr() for p in model.parameters()} | {x.data_ptr() for x in inputs}
        self.bytes: dict[int, int] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in self.known:
            self.bytes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor


def numbers(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def kept_by(model: nn.Module, x: torch.Tensor) -> int:
    kept = Kept(model, x)
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        output = model(x)
    assert output.grad_fn is not None
    return sum(kept.bytes.values())


def data_rank(group, model, x) -> tuple[float, float]:
    mine = copy.deepcopy(model)
    held = kept_by(mine, x.tensor_split(group.size)[group.rank].clone())
    sent = group.bytes_sent
    group.all_reduce(torch.cat([p.detach().flatten() for p in mine.parameters()]))
    return BYTES * STATE * numbers(mine) + held, group.bytes_sent - sent


def zero_rank(group, model, x) -> tuple[float, float]:
    """What stage 3 exchanges: parameters twice, gradients once; only the bytes are looked at."""
    padded = torch.zeros(-(-numbers(model) // group.size) * group.size)
    sent = group.bytes_sent
    mine = group.reduce_scatter(padded)
    for _ in range(2):
        group.all_gather(mine)
    return choose.zero(a_job(group.size)).memory, group.bytes_sent - sent


def tensor_rank(group, model, x) -> tuple[float, float]:
    cut = parallelize(copy.deepcopy(model), group)
    held = kept_by(cut, x)
    sent = group.bytes_sent
    cut(x).sum().backward()
    return BYTES * STATE * numbers(cut) + held, group.bytes_sent - sent


def pipeline_rank(group, model, x) -> tuple[float, float]:
    plan = one_f_one_b(group.size, a_job(group.size).micro)
    pipeline = Pipeline(group, copy.deepcopy(model), plan, x)
    own = nn.ModuleList(layer for stage in pipeline.stages.values() for layer in stage.layers)
    held = kept_by(nn.Sequential(*own), x[: BATCH // plan.micro].clone())
    sent = group.bytes_sent
    pipeline.step(Digits(x, torch.zeros(len(x), dtype=torch.long)))
    loss = 2 * (group.size - 1) / group.size * 8  # the mean loss, to everybody
    memory = BYTES * STATE * numbers(own) + held * pipeline.peak
    return memory, group.bytes_sent - sent - loss


RANKS = {
    "data": (data_rank, 8),
    "ZeRO": (zero_rank, 50),
    "tensor": (tensor_rank, 8),
    "pipeline": (pipeline_rank, 8),
}


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("name", RANKS)
def test_formulas_say_what_is_counted(name, workers) -> None:
    function, slack = RANKS[name]
    torch.manual_seed(0)
    outcome = launch(function, workers, make(), torch.randn(BATCH, WIDTH), on="threads")
    memory, sent = (max(values) for values in zip(*outcome.results, strict=True))
    cost = choose.STRATEGIES[name](a_job(workers))
    assert sent == pytest.approx(cost.sent, abs=slack * workers)
    uneven = 0 if BATCH % workers == 0 else 0.05  # somebody has one sample more
    assert memory == pytest.approx(cost.memory, rel=uneven + 1e-9)


def test_alone_is_what_everything_is_without_others() -> None:
    alone = choose.alone(a_job(1))
    for name in ("data", "tensor", "pipeline"):
        cost = choose.STRATEGIES[name](a_job(1))
        assert cost.sent == 0
        if name != "pipeline":  # which takes a micro-batch at a time, and keeps less
            assert cost.memory == alone.memory
        assert cost.seconds == pytest.approx(alone.seconds)


def test_the_table_chooses_the_fastest_that_fits() -> None:
    result = choose.choose()
    for row, costs_of_row in enumerate(result.costs):
        for column, costs in enumerate(costs_of_row):
            best = result.best(row, column)
            fitting = [c.seconds for c in costs.values() if c.memory <= result.memory]
            assert (best is None and not fitting) or costs[best].seconds == min(fitting)
    plots.png(choose.plot(result))
    scarce = choose.choose(memory=1, workers=2)
    assert scarce.best(0, 4) is None
    plots.png(choose.plot(scarce))
    assert "pipeline" not in choose.choose(workers=17).costs[0][0]
