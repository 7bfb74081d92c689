"""Who polls wakes T / t times; who is notified without a time-out wakes once."""

import threading

import pytest

from utils.core import plots
from utils.core.experiment import Cancelled, Control, controlled
from utils.performance.synchronisation import polling
from utils.performance.synchronisation.polling import TIMEOUTS, Event, poll


def test_wake_ups() -> None:
    result = poll(timeout_ms=500)
    assert [w.timeout for w in result.polled] == [ms / 1e3 for ms in sorted({*TIMEOUTS, 500})]
    assert [w.timeout for w in result.notified] == [w.timeout for w in result.polled]
    assert result.plain.wakeups == 1 and result.plain.notified
    for waits in (*result.polled, *result.notified):
        assert waits.wakeups >= 1 and waits.reaction >= 0
    assert result.chosen == 0.5 and result.poller(result.chosen).timeout == 0.5
    with pytest.raises(KeyError):
        result.poller(0.3)
    assert plots.png(polling.plot(result)).startswith(b"\x89PNG")


@pytest.mark.parametrize("notify", [True, False])
def test_a_watcher_by_hand(notify: bool) -> None:
    """Without a notification it hears of the event at its next look; with one, there is no next."""
    event = Event()
    answers: list[tuple[int, float]] = []
    timeout = 30.0 if notify else 0.05
    thread = threading.Thread(target=lambda: answers.append(event.watch(timeout, timeout)))
    thread.start()
    while not event.changed._waiters:
        pass
    event.happen(notify)
    thread.join(20)
    assert not thread.is_alive()
    (wakeups, reaction), *_ = answers
    assert wakeups >= 1 and (wakeups == 1 or not notify) and reaction >= 0


def test_an_event_that_has_happened_wakes_nobody() -> None:
    event = Event()
    event.happen(notify=False)
    assert event.watch(10, 10)[0] == 0


def test_the_first_wait_is_the_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    event, waits = Event(), list[float]()

    def wait(timeout: float) -> None:
        waits.append(timeout)
        event.at = 1 if len(waits) == 3 else 0

    monkeypatch.setattr(event.changed, "wait", wait)
    assert event.watch(0.5, 0.2)[0] == 3
    assert waits == [0.2, 0.5, 0.5]


@pytest.mark.timeout(60)  # it is released, it doesn't wait for a deadline
def test_a_cancelled_run_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "DEADLINE", 250)
    control = Control()
    timer = threading.Timer(0.2, control.cancel)
    timer.start()
    with controlled(control), pytest.raises(Cancelled):
        poll(timeout_ms=100)
    timer.join()
    assert not [t for t in threading.enumerate() if t.name.startswith("worker")]


def test_values_outside_the_sliders_are_refused() -> None:
    with pytest.raises(ValueError, match="timeout_ms=0"):
        poll(timeout_ms=0)
