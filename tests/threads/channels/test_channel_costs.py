"""Every channel carries every message, the fit finds the cost, and nothing is left running."""

import multiprocessing
import os
import threading
from contextlib import contextmanager
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.threads.channels import address_space, back_pressure, channel_costs, dead_peer
from utils.threads.channels.carriers import CHANNELS
from utils.threads.channels.channel_costs import MB, Cost, Costs, copy_bandwidth, fit, plot
from utils.threads.channels.far_end import Channel, far_end
from utils.threads.channels.pipe import Pipe


def alive() -> set[str]:
    return {thread.name for thread in threading.enumerate()} & {"far end", "producer", "consumer"}


@pytest.mark.parametrize("between", ["threads", "processes"])
def test_every_channel_carries_messages_of_any_size(between) -> None:
    with far_end(between, CHANNELS[between]) as there:
        for name in CHANNELS[between]:
            for size in (0, 1, 70_000):
                there.transfer(name, [bytes(size)] * 5)  # checks the sum of what arrived
    assert not alive() and not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("between", "name"),
    [("threads", "Pipe"), ("threads", "queue.Queue"), ("processes", "multiprocessing.Queue")],
)
def test_an_experiment_that_fails_leaves_nobody_waiting(between, name: str) -> None:
    with pytest.raises(KeyError), far_end(between, CHANNELS[between]) as there:
        there._control.send((name, 1))  # it waits for a message that never comes
        raise KeyError
    assert not alive() and not multiprocessing.active_children()


def test_a_far_end_that_dies_breaks_the_pipe() -> None:
    @contextmanager
    def deadly():
        with Pipe() as pipe:
            yield Channel(pipe.sender.send_bytes, partial(os._exit, 3), pipe.receiver.close)

    broken = pytest.raises((BrokenPipeError, ConnectionResetError))
    with broken, far_end("processes", {"deadly": deadly}) as there:
        there.transfer("deadly", [bytes(10**6)])
    assert not multiprocessing.active_children()


def test_a_message_that_gets_lost_is_noticed() -> None:
    @contextmanager
    def shortening():
        with CHANNELS["threads"]["queue.Queue"]() as good:
            yield Channel(lambda message: good.send(message[1:]), good.take)

    noticed = pytest.raises(AssertionError, match="bad: 18 of 20 bytes arrived")
    with far_end("threads", {"bad": shortening}) as there, noticed:
        there.transfer("bad", [bytes(10)] * 2)


@given(st.floats(1e-7, 1e-3), st.floats(1e-6, 1e-2))
def test_the_fit_finds_the_cost(per_message: float, per_megabyte: float) -> None:
    sizes = (64, 4096, 2**17, 2**20)
    cost = Cost(per_message, per_megabyte)
    found = fit(sizes, tuple(map(cost.of, sizes)))
    for size in sizes:
        assert found.of(size) == pytest.approx(cost.of(size), rel=1e-6)


def test_no_part_of_a_fit_is_below_zero() -> None:
    falling = fit((1, MB), (2.0, 1.0))
    assert falling.per_megabyte == 0 and 1 < falling.per_message < 2
    convex = fit((1, 1000, MB), (1e-9, 1e-6, 2e-3))
    assert convex.per_message >= 0 and convex.per_megabyte > 0


def test_the_experiment_measures_the_chosen_size_and_draws_it() -> None:
    result = channel_costs.costs("threads", kib=3)
    assert result.chosen == 3 * 1024 and result.chosen in result.sizes
    assert set(result.seconds) == set(CHANNELS["threads"])
    assert all(value > 0 for row in result.seconds.values() for value in row)
    assert result.measured("Pipe") == result.seconds["Pipe"][result.sizes.index(3 * 1024)]
    assert plots.png(plot(result)).startswith(b"\x89PNG")
    assert copy_bandwidth(blocks=2, size=1024) > 0
    assert not alive()
    for bad in (0, 1025, 1.5):
        with pytest.raises(ValueError, match="kib="):
            channel_costs.costs("threads", bad)


def test_the_theory_of_one_copy_is_a_straight_line() -> None:
    result = Costs("threads", 1024, (64, 1024), {"Pipe": (1e-6, 2e-6)}, copying=1e-4)
    assert result.measured("Pipe") == 2e-6
    assert result.fit("Pipe").of(64) == pytest.approx(1e-6)


def test_cancelling_ends_the_far_end_too() -> None:
    control = Control()
    control.cancel()
    with controlled(control), pytest.raises(Cancelled):
        channel_costs.costs("processes")
    assert not alive() and not multiprocessing.active_children()


# ---------------------------------------------------------------- back-pressure


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_a_bound_is_kept_and_nothing_is_lost(bound: int) -> None:
    flow = back_pressure.back_pressure(bound)
    assert flow.received == tuple(range(back_pressure.MESSAGES))
    assert flow.longest <= (bound or back_pressure.MESSAGES)
    assert (flow.waited > 0) == (bound > 0)  # only a bound makes the producer wait
    assert set(flow.trace.lanes) == {"producer", "consumer"}
    assert plots.png(back_pressure.plot(flow)).startswith(b"\x89PNG")
    assert not alive()


def test_what_the_theory_expects() -> None:
    def flow(bound: int) -> back_pressure.Flow:
        return back_pressure.Flow(bound, (), (), back_pressure.Trace())

    assert [flow(bound).expected_longest for bound in (1, 4, 0)] == [1, 4, 16]


def test_cancelling_ends_both_threads() -> None:
    control = Control()
    threading.Timer(0.1, control.cancel).start()
    with controlled(control), pytest.raises(Cancelled):
        back_pressure.back_pressure(2)
    assert not alive()


# ---------------------------------------------------------------- address spaces


def test_a_thread_counts_in_our_memory_and_a_process_in_its_own() -> None:
    seen = address_space.who_sees_it()
    assert seen == address_space.Seen(
        after_thread=1, after_child=0, child_saw=1, in_shared_memory=1
    )
    assert not multiprocessing.active_children()


# ---------------------------------------------------------------- a killed sender


@pytest.mark.parametrize(("channel", "end"), [("pipe", "torn frame"), ("ring", "ended without")])
def test_whole_messages_of_a_killed_sender_arrive_and_no_half_one(channel, end: str) -> None:
    death = dead_peer.kill_sender(channel)
    assert death.received == tuple(map(dead_peer.message, range(dead_peer.WHOLE)))
    assert end in death.error and death.exitcode != 0 and not death.left
    assert not multiprocessing.active_children()
