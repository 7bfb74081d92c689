"""An experiment refuses bad values, reports progress, stops when asked, and cleans up."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Literal

import pytest

from utils.core.experiment import (
    Cancelled,
    Control,
    Progress,
    Range,
    checkpoint,
    controlled,
    current,
    experiment,
    gather,
    parameters,
)


@experiment
def example(
    workers: Annotated[int, Range(1, 8, label="worker threads")] = 2,
    share: Annotated[float, Range(0, 1, step=0.1)] = 0.5,
    vehicle: Literal["threads", "processes"] = "threads",
    pin: bool = False,
) -> tuple:
    return workers, share, vehicle, pin


def test_controls_come_from_the_signature() -> None:
    workers, share, vehicle, pin = parameters(example)
    assert (workers.kind, workers.default, workers.label) == ("int", 2, "worker threads")
    assert (share.kind, share.range) == ("float", Range(0, 1, step=0.1))
    assert (vehicle.kind, vehicle.choices) == ("choice", ("threads", "processes"))
    assert (pin.kind, pin.default) == ("bool", False)


def test_good_values_reach_the_experiment_as_their_type() -> None:
    assert example() == (2, 0.5, "threads", False)
    values = example(8.0, share=1, vehicle="processes", pin=True)
    assert values == (8, 1.0, "processes", True)
    assert [type(value) for value in values] == [int, float, str, bool]


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ({"workers": 0}, "workers=0 is not allowed: give a whole number from 1 to 8"),
        ({"workers": 9}, "workers=9 "),
        ({"workers": 2.5}, "workers=2.5 "),
        ({"workers": "2"}, "workers='2' "),
        ({"workers": True}, "workers=True "),
        ({"workers": float("nan")}, "workers=nan "),
        ({"workers": float("inf")}, "workers=inf "),
        ({"share": float("nan")}, "share=nan is not allowed: give a number from 0 to 1"),
        ({"vehicle": "bus"}, "vehicle='bus' is not allowed: give one of 'threads', 'processes'"),
        ({"pin": 1}, "pin=1 is not allowed: give True or False"),
    ],
)
def test_bad_values_are_refused_by_name_value_and_range(arguments: dict, allowed: str) -> None:
    with pytest.raises(ValueError) as caught:
        example(**arguments)
    assert str(caught.value).startswith(allowed)


def test_a_default_outside_its_range_is_refused_at_definition() -> None:
    with pytest.raises(ValueError, match="workers=9"):

        @experiment
        def wrong(workers: Annotated[int, Range(1, 8)] = 9) -> None: ...


def test_an_undeclared_parameter_is_refused_at_definition() -> None:
    with pytest.raises(TypeError, match="'workers' must be bool"):

        @experiment
        def wrong(workers: int = 1) -> None: ...

    with pytest.raises(TypeError, match="'workers' needs a default"):

        @experiment
        def wrong_too(workers: Annotated[int, Range(1, 8)]) -> None: ...


def test_checkpoint_reports_to_its_own_control_and_stops_on_cancel() -> None:
    checkpoint(1, 2)  # nobody watches: nothing happens
    control = Control()
    with controlled(control):
        assert current() is control
        checkpoint(3, 10, "third")
        assert control.progress == Progress(3, 10, "third")
        checkpoint()
        assert control.progress == Progress(3, 10, "third")
        control.cancel()
        with pytest.raises(Cancelled):
            checkpoint(4, 10)
    checkpoint(5, 10)
    assert control.progress == Progress(3, 10, "third")


def test_gather_returns_in_the_order_given() -> None:
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(lambda n=n: time.sleep(0.01 * (3 - n)) or n) for n in range(3)]
        assert gather(futures, timeout=10) == [0, 1, 2]


def test_gather_raises_the_first_failure_and_cancels_what_has_not_begun() -> None:
    release = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        failing = pool.submit(int, "x")
        running = pool.submit(release.wait, 10)
        blocked = pool.submit(release.wait, 10)
        waiting = pool.submit(release.wait, 10)
        with pytest.raises(ValueError, match="invalid literal"):
            gather([running, failing, blocked, waiting], timeout=10)
        assert waiting.cancelled()
        release.set()


def test_gather_keeps_its_deadline_and_obeys_cancel() -> None:
    release, control = threading.Event(), Control()
    with ThreadPoolExecutor(1) as pool:
        futures = [pool.submit(release.wait, 10), pool.submit(release.wait, 10)]
        with pytest.raises(TimeoutError, match="2 of 2 tasks unfinished"):
            gather(futures, timeout=0.1)
        assert futures[1].cancelled()
        with controlled(control), pytest.raises(Cancelled):
            control.cancel()
            gather([futures[0], pool.submit(release.wait, 10)], timeout=10)
        release.set()
