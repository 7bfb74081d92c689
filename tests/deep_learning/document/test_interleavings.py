"""What each order of two threads' operations does to their gradients."""

import threading
from collections import Counter

import pytest

from utils.core.experiment import Cancelled, Control, controlled
from utils.deep_learning.document.interleavings import interleave, interleavings, orders, plot

SHARED = ("shared, freed", "shared, zeroed in place")
ZERO, BACKWARD, STEP = range(3)


def by_hand(order: tuple[int, ...]) -> tuple[int, int]:
    """The same on paper: a bag of gradients that zero empties, backward fills, step applies."""
    done, bag, applied = [0, 0], [0, 0], [0, 0]
    for whose in order:
        operation, done[whose] = done[whose], done[whose] + 1
        if operation == ZERO:
            bag = [0, 0]
        elif operation == BACKWARD:
            bag[whose] += 1
        else:
            applied = [a + b for a, b in zip(applied, bag, strict=True)]
    return applied[0], applied[1]


def test_there_are_twenty_orders() -> None:
    assert len(set(orders())) == len(orders()) == 20
    assert all(Counter(order) == {0: 3, 1: 3} for order in orders())


@pytest.mark.parametrize("gradients", SHARED)
def test_shared_gradients_are_lost_and_repeated_as_on_paper(gradients) -> None:
    result = interleavings(gradients)
    assert result.applied == {order: by_hand(order) for order in orders()}
    right = {order for order, counts in result.applied.items() if counts == (1, 1)}
    assert right == {(0, 0, 0, 1, 1, 1), (1, 1, 1, 0, 0, 0)}  # one thread after the other
    assert result.right == 2
    plot(result)


def test_the_last_to_zero_wipes_what_the_other_computed() -> None:
    assert interleave((0, 0, 1, 1, 0, 1), "shared, zeroed in place") == (0, 2)


def test_own_gradients_count_once_in_every_order() -> None:
    result = interleavings("own of each thread")
    assert set(result.applied.values()) == {(1, 1)} and result.right == 20
    plot(result)


def test_a_turn_that_never_comes_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr("utils.deep_learning.document.interleavings.DEADLINE", 0.1)
    threads = set(threading.enumerate())
    with pytest.raises((TimeoutError, StopIteration, RuntimeError)):
        interleave((0, 0, 0, 0, 1, 1), "shared, freed")  # four operations of three
    assert set(threading.enumerate()) == threads


def test_cancel_leaves_no_thread_behind() -> None:
    threads, control = set(threading.enumerate()), Control()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        interleavings()
    assert set(threading.enumerate()) == threads
