"""When a batch is due, who is in it, and what the bounded line does under every schedule."""

import math
import threading
from dataclasses import dataclass

import pytest

from utils.deep_learning.serving.batching import Batcher
from utils.deep_learning.serving.intake import EngineClosed, Intake, QueueFull
from utils.threads import schedules
from utils.threads.bugs import together

MS = 10**6  # ns


@dataclass(eq=False)
class Item:
    arrival: int = 0
    deadline: float = math.inf


def line(policy: Batcher, *arrivals: int) -> list[Item]:
    items = [Item(moment) for moment in arrivals]
    for item in items:
        policy.arrive(item)
    return items


# ---------------------------------------------------------------- policy


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_batch", 0), ("max_batch", 1.5), ("max_wait", -1), ("max_wait", math.nan)],
)
def test_a_bad_policy_is_refused(name, value) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Batcher(**{name: value})


def test_nobody_waits_and_nothing_is_due() -> None:
    policy = Batcher()
    assert policy.due() is None and policy.take(10**18, flush=True) == ([], [])


def test_a_batch_is_due_when_its_oldest_has_waited() -> None:
    policy = Batcher(max_batch=4, max_wait=0.005)
    items = line(policy, 1 * MS, 2 * MS)
    assert policy.due() == 6 * MS
    assert policy.take(6 * MS - 1) == ([], [])
    assert policy.take(6 * MS) == (items, [])
    assert len(policy) == 0


def test_a_full_batch_does_not_wait_and_the_rest_stays() -> None:
    policy = Batcher(max_batch=2, max_wait=0.005)
    items = line(policy, 1, 2, 3)
    assert policy.due() == 1
    assert policy.take(3) == (items[:2], [])
    assert policy.due() == 3 + 5 * MS and policy.take(4) == ([], [])


def test_without_a_wait_a_worker_takes_whatever_is_there() -> None:
    policy = Batcher(max_batch=8)
    items = line(policy, 5, 5)
    assert policy.take(5) == (items, [])


def test_a_flush_takes_the_rest_at_once() -> None:
    policy = Batcher(max_batch=8, max_wait=1)
    items = line(policy, 5)
    assert policy.take(6) == ([], []) and policy.take(6, flush=True) == (items, [])


def test_who_is_late_takes_no_place_in_a_batch() -> None:
    policy = Batcher(max_batch=2)
    late, first, second = Item(0, deadline=3), Item(1), Item(2, deadline=4)
    for item in (late, first, second):
        policy.arrive(item)
    assert policy.take(3) == ([first, second], [late])


def test_who_leaves_is_not_taken_and_leaves_once() -> None:
    policy = Batcher(max_batch=8)
    items = line(policy, 1, 2, 3)
    assert policy.leave(items[0]) and not policy.leave(items[0])
    assert policy.take(9) == (items[1:], []) and not policy.leave(items[1])


def test_arrive_says_when_a_worker_has_to_look() -> None:
    policy = Batcher(max_batch=3, max_wait=1)
    assert [policy.arrive(Item()) for _ in range(7)] == [True, False, True, False, False, True, 0]


# ---------------------------------------------------------------- the bounded line


def test_a_full_line_refuses_and_a_closed_one_too() -> None:
    intake = Intake(Batcher(4), 2)
    intake.put(Item())
    intake.put(Item())
    with pytest.raises(QueueFull, match="2 requests wait"):
        intake.put(Item())
    with pytest.raises(QueueFull):
        intake.put(Item(), block=True, timeout=0.01)
    intake.close(drain=True)
    with pytest.raises(EngineClosed):
        intake.put(Item(), block=True)
    batch, late, _ = intake.take()
    assert len(batch) == 2 and not late and intake.take() is None


@pytest.mark.parametrize("capacity", [0, -1, 1.5])
def test_a_bad_capacity_is_refused(capacity) -> None:
    with pytest.raises(ValueError, match=f"capacity={capacity}"):
        Intake(Batcher(), capacity)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("end", ["take", "leave", "close"])
def test_who_waits_for_room_is_woken(end) -> None:
    intake, first, results = Intake(Batcher(1), 1), Item(), []
    intake.put(first)

    def put() -> None:
        try:
            intake.put(Item(), block=True, timeout=15)
            results.append("in")
        except EngineClosed:
            results.append("closed")

    thread = threading.Thread(target=put)
    thread.start()
    while not intake._room._waiters:
        pass
    {
        "take": intake.take,
        "leave": lambda: intake.leave(first),
        "close": lambda: intake.close(True),
    }[end]()
    thread.join(15)
    assert results == ["closed" if end == "close" else "in"]


@pytest.mark.timeout(20)
def test_a_sleeping_worker_is_told_of_the_first_of_a_full_batch_and_of_what_is_left() -> None:
    """Two workers sleep; three requests make a batch of two and a rest: both must get up."""
    intake, sizes = Intake(Batcher(max_batch=2, max_wait=0.05), 8), []
    threads = [
        threading.Thread(target=lambda: sizes.append(len(intake.take()[0]))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for _ in range(3):
        intake.put(Item())
    for thread in threads:
        thread.join(15)
    assert sorted(sizes) == [1, 2]


# ---------------------------------------------------------------- explored


def worker(intake: Intake, done: list) -> None:
    while (taken := intake.take()) is not None:
        done.extend(taken[0])


def put_or_refused(intake: Intake, accepted: list, item: Item, block: bool = False) -> None:
    try:
        intake.put(item, block)
        accepted.append(item)
    except (QueueFull, EngineClosed):
        pass


def accepted_is_done_or_refused() -> None:
    intake, done, accepted = Intake(Batcher(2), 2), [], []

    def submit() -> None:
        put_or_refused(intake, accepted, Item())
        put_or_refused(intake, accepted, Item())

    def close() -> None:
        intake.close(drain=True)

    together(submit, lambda: worker(intake, done), close)
    assert done == accepted


def a_sleeper_is_woken() -> None:
    """The worker looks, lies down or sleeps while requests come; then the door closes."""
    intake, done = Intake(Batcher(1), 2), []

    def submit() -> None:
        intake.put(Item())
        intake.put(Item())
        intake.close(drain=True)

    together(lambda: worker(intake, done), submit)
    assert len(done) == 2


def two_workers_share_what_comes() -> None:
    intake, done = Intake(Batcher(1), 2), []

    def submit() -> None:
        intake.put(Item())
        intake.put(Item())
        intake.close(drain=True)

    together(lambda: worker(intake, done), lambda: worker(intake, done), submit)
    assert len(done) == len(set(map(id, done))) == 2


def taken_or_gone() -> None:
    intake, done, item, left = Intake(Batcher(2), 2), [], Item(), []
    intake.put(item)

    def leave() -> None:
        left.append(intake.leave(item))
        intake.close(drain=True)

    together(lambda: worker(intake, done), leave)
    assert done == ([] if left[0] else [item])


def room_is_handed_on() -> None:
    intake, done, accepted = Intake(Batcher(1), 1), [], []

    def submit() -> None:
        for _ in range(2):
            put_or_refused(intake, accepted, Item(), block=True)
        intake.close(drain=True)

    together(submit, lambda: worker(intake, done))
    assert len(accepted) == len(done) == 2


def sent_home_or_done() -> None:
    intake, done, accepted, home = Intake(Batcher(2), 4), [], [], []
    for _ in range(2):
        put_or_refused(intake, accepted, Item())
    together(lambda: worker(intake, done), lambda: home.extend(intake.close(drain=False)))
    assert {*map(id, done), *map(id, home)} == set(map(id, accepted))
    assert len(done) + len(home) == 2


# Two preemptions, or one or none where that takes too long for a test (with one the first and the
# third took 20 s, and held); and random ones with any number.
@pytest.mark.parametrize(
    ("program", "preemptions"),
    [
        (accepted_is_done_or_refused, 0),
        (a_sleeper_is_woken, 2),
        (two_workers_share_what_comes, 0),
        (taken_or_gone, 2),
        (room_is_handed_on, 1),
        (sent_home_or_done, 2),
    ],
)
def test_no_schedule_breaks_it(program, preemptions) -> None:
    report = schedules.check(program, preemptions=preemptions, seconds=60, random=20)
    assert report.verdict == "proved", report
