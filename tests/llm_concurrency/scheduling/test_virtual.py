"""The virtual clock: it schedules what the real engine schedules, and adds up what steps cost."""

import pytest

from utils.core.experiment import Cancelled, Control, controlled
from utils.core.trace import Recorder
from utils.llm_concurrency.engine.blocks import BlockPool
from utils.llm_concurrency.engine.core import Core
from utils.llm_concurrency.engine.policies import FirstCome, Static
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.sampler import Drawn
from utils.llm_concurrency.engine.scheduler import Scheduler
from utils.llm_concurrency.engine.sequence import Sequence
from utils.llm_concurrency.scheduling.load import poisson
from utils.llm_concurrency.scheduling.orders import POLICIES
from utils.llm_concurrency.scheduling.virtual import Cost, VirtualRunner, features, simulate


def scheduler(policy=None, blocks=200, **options) -> Scheduler:
    options = {"slots": 4, "budget": 64, **options}
    return Scheduler(BlockPool(blocks, 16, share=False), policy, **options)


def requests(*shapes: tuple[float, int, int]) -> list[tuple[float, Request]]:
    return [
        (second, Request((number,) * prompt, limit, ignore_end=True))
        for number, (second, prompt, limit) in enumerate(shapes)
    ]


def test_times_are_sums_of_what_steps_cost() -> None:
    one, two = simulate(requests((0, 10, 3), (0.5, 70, 2)), scheduler(), Cost(1.0, 0.01))
    # One takes 1.1 s for 10 tokens, then 1.01 s a token. Two comes meanwhile, and its prompt goes
    # in two parts: 63 tokens beside one's second token, the other 7 beside its third.
    assert one.times == [1_100_000_000, 2_740_000_000, 3_820_000_000]
    assert two.arrived == 500_000_000
    assert two.times == [3_820_000_000, 4_830_000_000]


def test_an_idle_engine_skips_to_the_next_arrival() -> None:
    _, late = simulate(requests((0, 4, 1), (100, 4, 1)), scheduler(), Cost(1.0, 0.0))
    assert late.times == [101_000_000_000]


@pytest.mark.parametrize("name", POLICIES)
def test_every_request_is_served_and_all_memory_comes_back(name) -> None:
    arrivals, plan = poisson(60, 4, seed=3), scheduler(POLICIES[name](4), blocks=60)
    for sequence, (second, request) in zip(
        simulate(arrivals, plan, Cost(0.02, 0.001)), arrivals, strict=True
    ):
        assert len(sequence.generated) == len(sequence.times) == request.limit
        assert sequence.times == sorted(sequence.times)
        assert sequence.times[0] > sequence.arrived == round(1e9 * second)
    assert plan.idle and plan.pool.free == plan.pool.count


def test_it_plans_what_a_core_with_another_runner_plans() -> None:
    """Two clocks: the plans depend on who is there, and never on how long a step takes."""

    class Slow(VirtualRunner):
        def __init__(self, cost):
            super().__init__(cost)
            self.plans = []

        def run(self, plan) -> list[Drawn]:
            self.plans.append(
                [(work.sequence.number, work.start, work.count) for work in plan.work]
            )
            return super().run(plan)

    arrivals, runners = requests((0, 30, 9), (0, 100, 4), (0, 5, 20), (0, 64, 2), (0, 9, 9)), []
    for cost in (Cost(0.001, 0.5), Cost(3.0, 0.0)):
        runner, plan = Slow(cost), scheduler(blocks=14)
        core = Core(runner, plan, clock=lambda runner=runner: runner.time)
        for number, (_, request) in enumerate(arrivals):
            core.add(Sequence(number, request))
        while not plan.idle:
            core.step()
        runners.append(runner)
    assert runners[0].plans == runners[1].plans
    assert max(sum(count for *_, count in plan) for plan in runners[0].plans) == 64


def test_the_lanes_of_a_request_tell_its_whole_life() -> None:
    recorder = Recorder()
    served = simulate(poisson(30, 6), scheduler(blocks=60), Cost(0.02, 0.001), recorder)
    trace = recorder.trace()
    for sequence in served:
        spans = trace.select(lane=f"request {sequence.number}").spans
        assert spans[0].start == sequence.arrived and spans[-1].end == sequence.times[-1]
        assert all(a.end == b.start for a, b in zip(spans, spans[1:], strict=False))
        computed = sum(span.args["tokens"] for span in spans if span.args)
        assert computed == len(sequence.tokens) - 1 or sequence.preempted
    assert {span.category for span in trace.spans} == {"queue", "prefill", "decode"}


def test_static_batches_leave_slots_empty_that_continuous_ones_fill() -> None:
    arrivals = requests(*((0, 10, 5 if number % 4 else 50) for number in range(16)))
    steps = {}
    for policy in (Static(4), FirstCome()):
        served = simulate(arrivals, scheduler(policy), Cost(1.0, 0.0))
        steps[type(policy)] = max(one.times[-1] for one in served)
    assert steps[Static] == 4 * 50 * 10**9  # the longest of four, four times
    assert steps[FirstCome] < steps[Static] / 1.5


def test_features_count_pairs_as_a_loop_would() -> None:
    plan = scheduler()
    sequence = Sequence(0, Request((1,) * 20))
    plan.add(sequence)
    assert features(plan.plan()) == (1, 20, sum(place + 1 for place in range(20)))


def test_load_is_reproducible_and_refuses_nonsense() -> None:
    assert poisson(20, 3) == poisson(20, 3) != poisson(20, 3, seed=1)
    with pytest.raises(ValueError, match="count=0"):
        poisson(0, 1)
    with pytest.raises(ValueError, match="rate=0"):
        poisson(1, 0)


def test_cancel() -> None:
    control = Control()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        simulate(poisson(20, 3), scheduler(), Cost(0.1, 0.1))
