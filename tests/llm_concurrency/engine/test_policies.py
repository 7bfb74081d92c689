"""Who comes first, who may join, who loses memory."""

import pytest

from utils.llm_concurrency.engine.policies import (
    FairShare,
    FirstCome,
    Priority,
    Shortest,
    Static,
)
from utils.llm_concurrency.engine.request import Request
from utils.llm_concurrency.engine.sequence import Sequence


def order(served) -> list[int]:
    """Numbers in the order of their first token."""
    return sorted(served.sequences, key=lambda number: served.sequences[number].times[0])


@pytest.mark.parametrize(
    "policy, expected",
    [
        (FirstCome(), [0, 1, 2, 3]),
        (Shortest(), [2, 1, 3, 0]),
        (Priority(), [3, 0, 2, 1]),
    ],
)
def test_the_order_of_those_who_wait(serve, policy, expected) -> None:
    requests = [
        Request([5], limit, priority=priority)
        for limit, priority in ((9, 1), (5, 2), (3, 1), (5, -1))
    ]
    assert order(serve(requests, policy=policy, slots=1)) == expected


def test_static_lets_nobody_join_a_batch_that_has_begun(serve) -> None:
    requests = [Request([n], limit) for n, limit in enumerate((3, 9, 4, 4, 2))]
    served = serve(requests, policy=Static(2), arrive={4: 1})
    batches = [{number for number, _ in plan} for plan in served.core.runner.plans]
    together = batches[:1]
    for batch in batches:
        if batch & together[-1]:
            together[-1] |= batch
        else:
            together.append(batch)
    assert together == [{0, 1}, {2, 3}, {4}]


def test_static_waits_for_the_whole_batch_s_prompts_and_its_preempted(serve, alone) -> None:
    requests = [Request(range(n, n + 20), 8) for n in range(4)]
    served = serve(requests, policy=Static(3), chunk=6, budget=12, slots=4, blocks=12)
    assert served.tokens == [alone(one) for one in requests]
    assert order(served)[-1] == 3


def sequence(number: int, user: str) -> Sequence:
    return Sequence(number, Request([1], user=user))


def test_fair_share_takes_the_user_who_had_least() -> None:
    policy = FairShare()
    one, other = sequence(0, "a"), sequence(1, "b")
    for each in (one, other):
        policy.arrived(each)
    policy.computed(one, 10)
    assert policy.rank(other) < policy.rank(one)
    policy.computed(other, 11)
    assert policy.rank(one) < policy.rank(other)


def test_a_newcomer_starts_where_the_least_served_who_is_there_stands() -> None:
    policy = FairShare()
    gone, here, new = sequence(0, "gone"), sequence(1, "here"), sequence(2, "new")
    policy.arrived(gone)
    policy.computed(gone, 3)
    policy.arrived(here)
    policy.ended(gone)
    policy.computed(here, 1000)
    policy.arrived(new)
    assert policy.served["new"] == policy.served["here"]
    back = sequence(3, "gone")
    policy.arrived(back)
    assert policy.served["gone"] == policy.served["here"]  # no credit for having been away


def test_after_a_pause_nobody_has_an_old_debt() -> None:
    policy = FairShare()
    first = sequence(0, "a")
    policy.arrived(first)
    policy.computed(first, 500)
    policy.ended(first)
    policy.arrived(sequence(1, "b"))
    assert policy.served["b"] == policy.served["a"] == 500


def test_the_difference_between_users_who_wait_is_bounded(serve) -> None:
    """By what one step may give: however many requests one of them has sent."""
    requests = [Request([n], 10, user="many") for n in range(12)]
    requests += [Request([n], 10, user="few") for n in range(4)]
    policy = FairShare()
    gaps: list[int] = []
    computed = policy.computed

    def note(sequence, tokens) -> None:
        computed(sequence, tokens)
        if len(policy._present) == 2 and sum(policy._present.values()) > 2:
            gaps.append(abs(policy.served["many"] - policy.served["few"]))

    policy.computed = note
    serve(requests, policy=policy, slots=2, budget=4, arrive=dict.fromkeys(range(12, 16), 15))
    assert gaps and max(gaps) <= 2 * 10  # slots × tokens of an answer: who runs stays


def test_who_is_last_in_order_loses_memory(serve, alone) -> None:
    requests = [Request(range(9), 16, priority=n) for n in (3, 1, 2)]
    served = serve(requests, policy=Priority(), blocks=14, share=False)
    assert served.tokens == [alone(one) for one in requests]
    assert served.sequences[0].preempted > 0 and served.sequences[1].preempted == 0
