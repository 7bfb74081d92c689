"""The classic problems on real threads: nothing lost, nobody starved for good, nobody left."""

import sys
import threading

import pytest

from utils.core import plots
from utils.core.trace import Span, Trace
from utils.threads.classics import (
    barber,
    bounded_buffer,
    lost_update,
    philosophers,
    readers_writers,
)


@pytest.fixture(autouse=True)
def leaves_no_thread():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def drawn(fig) -> bool:
    return plots.png(fig).startswith(b"\x89PNG")


def test_with_a_lock_every_addition_arrives() -> None:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # many more switches than usual
    try:
        result = lost_update.count(threads=3, additions=10_000)
    finally:
        sys.setswitchinterval(usual)
    assert result.expected == 30_000
    assert result.lost("the same, with a lock") == 0
    assert all(0 <= result.lost(adder) < result.expected for adder in lost_update.ADDERS)
    assert drawn(lost_update.plot(result))


def test_one_thread_loses_nothing() -> None:
    result = lost_update.count(threads=1, additions=10_000)
    assert set(result.arrived.values()) == {10_000}


@pytest.mark.parametrize(("producers", "consumers", "capacity"), [(1, 1, 1), (3, 2, 2), (2, 4, 8)])
def test_every_item_passes_the_buffer_once(producers: int, consumers: int, capacity: int) -> None:
    result = bounded_buffer.pass_on(producers, consumers, capacity, make_ms=1, use_ms=1)
    assert sorted(result.received) == list(range(bounded_buffer.ITEMS))
    levels = [level for _, level in result.levels]
    assert all(0 <= level <= capacity for level in levels)
    assert all(abs(b - a) == 1 for a, b in zip(levels[:-1], levels[1:], strict=True))
    assert levels[-1] == 0
    assert drawn(bounded_buffer.plot(result))


def test_a_buffer_is_first_in_first_out() -> None:
    buffer = bounded_buffer.Buffer(capacity=3)
    for item in (1, 2, 3):
        buffer.put(item)
    assert [buffer.get() for _ in range(3)] == [1, 2, 3]


def test_the_slower_side_sets_the_rate() -> None:
    run = bounded_buffer.Run(2, 1, 3, 0.004, 0.001, Trace(), (), ())
    assert run.expected_rate == pytest.approx(500)
    run = bounded_buffer.Run(2, 1, 3, 0.001, 0.004, Trace(), (), ())
    assert run.expected_rate == pytest.approx(250)


def test_the_buffer_gives_up_instead_of_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_buffer, "DEADLINE", 0.01)
    buffer = bounded_buffer.Buffer(capacity=1)
    with pytest.raises(TimeoutError, match="no item"):
        buffer.get()
    buffer.put(1)
    with pytest.raises(TimeoutError, match="no free slot"):
        buffer.put(2)
    assert buffer.get() == 1


def overlap(one: Span, other: Span) -> bool:
    return one.start < other.end and other.start < one.end


@pytest.mark.parametrize("strategy", philosophers.STRATEGIES)
@pytest.mark.parametrize("seats", [2, 3, 5])
def test_everybody_eats_and_no_two_neighbours_at_once(strategy, seats: int) -> None:
    result = philosophers.dine(seats, strategy, meals=2)
    assert result.eaten == 2 * seats
    meals = [
        result.trace.select(lane=f"philosopher {seat + 1}", category="decode").spans
        for seat in range(seats)
    ]
    for seat, mine in enumerate(meals):
        assert [span.name for span in mine] == ["meal 1", "meal 2"]
        for ours in mine:
            assert not any(overlap(ours, theirs) for theirs in meals[(seat + 1) % seats])
    if strategy != "naive":
        assert result.deadlocks == ()
    assert drawn(philosophers.plot(result))


def test_a_deadlock_at_dinner_is_named_and_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """All take their left fork before anybody reaches for the right one."""
    monkeypatch.setattr(philosophers, "REACH", 0.05)
    result = philosophers.dine(3, "naive", meals=1)
    assert result.eaten == 3
    (_, deadlock), *_ = result.deadlocks
    assert {wait.mutex for wait in deadlock.cycle} == {"fork 1", "fork 2", "fork 3"}
    assert drawn(philosophers.plot(result))


def test_a_fork_is_back_after_an_error_at_the_table() -> None:
    for strategy in philosophers.STRATEGIES.values():
        table = philosophers.Table(3)
        with pytest.raises(ZeroDivisionError), strategy(table, 0):
            raise ZeroDivisionError
        assert not any(fork.locked() for fork in table.forks)
        with strategy(table, 0):
            assert sum(fork.locked() for fork in table.forks) == 2


@pytest.mark.parametrize("first", ["reader", "writer"])
def test_a_writer_is_alone(first) -> None:
    result = readers_writers.visit(3, first)
    writes = result.trace.select(category="compute").spans
    reads = result.trace.select(category="decode").spans
    assert len(writes) == readers_writers.WRITES
    assert len(reads) == 3 * readers_writers.READS
    assert not any(overlap(write, read) for write in writes for read in reads)
    assert any(a is not b and overlap(a, b) for a in reads for b in reads)
    assert drawn(readers_writers.plot(result))


def test_every_customer_is_served_or_turned_away() -> None:
    result = barber.open_shop(chairs=1, arrival_ms=2, cut_ms=2)
    assert result.served + len(result.turned_away) == barber.CUSTOMERS
    seated = [count for _, count in result.waiting]
    assert set(seated) <= {0, 1}
    assert seated[-1] == 0
    assert drawn(barber.plot(result))


def test_share_turned_away_by_hand() -> None:
    """One chair, arrivals as fast as cuts: of the three equally likely states one is full."""
    day = barber.Day(1, 0.004, 0.004, Trace(), (), ())
    assert day.expected_share == pytest.approx(1 / 3)
    # Half as many cuts needed: states weigh 1, 1/2, 1/4.
    day = barber.Day(1, 0.004, 0.002, Trace(), (), ())
    assert day.expected_share == pytest.approx(1 / 7)


@pytest.mark.parametrize(
    ("experiment", "wrong"),
    [
        (lost_update.count, {"threads": 0}),
        (bounded_buffer.pass_on, {"capacity": 0}),
        (philosophers.dine, {"philosophers": 1}),
        (philosophers.dine, {"strategy": "polite"}),
        (readers_writers.visit, {"first": "nobody"}),
        (barber.open_shop, {"chairs": 0}),
    ],
)
def test_bad_input_is_named(experiment, wrong) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value!r} is not allowed"):
        experiment(**wrong)
