"""The picture of a failing schedule says what the schedule says."""

from threading import Lock, Thread

import pytest

from utils.core import plots
from utils.threads import schedules
from utils.threads.schedules.picture import interesting


def lock_order() -> None:
    first, second = Lock(), Lock()

    def one() -> None:
        with first, second:
            pass

    def other() -> None:
        with second, first:
            pass

    threads = [Thread(target=one), Thread(target=other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def texts(picture) -> list[str]:
    return [text.get_text() for ax in picture.axes for text in ax.texts]


def test_lines_threads_failure_and_cycle_are_drawn() -> None:
    report = schedules.check(lock_order)
    picture = schedules.plot(report)
    drawn = texts(picture)
    assert {"A", "B"} <= set(drawn)
    for line in interesting(report.failure):
        assert any(text.startswith(f"{line.line}  ") for text in drawn)
    assert any(text.startswith("deadlock: ") for text in drawn)
    assert {"first", "second"} <= set(drawn)  # what the wait-for graph's arrows are named after
    assert plots.png(picture).startswith(b"\x89PNG")


def test_every_line_of_a_schedule_has_its_source_and_what_it_did() -> None:
    lines = schedules.check(lock_order).failure.lines
    by_thread = [(line.thread, line.does) for line in lines if "with" in line.source]
    assert (
        sorted(by_thread)
        == [
            ("A", ("acquire first", "wait for second")),
            ("B", ("acquire second", "wait for first")),
        ]
        or len(by_thread) > 2
    )


def test_there_is_no_picture_of_a_proof() -> None:
    def right() -> None:
        thread = Thread(target=int)
        thread.start()
        thread.join()

    with pytest.raises(ValueError, match="nothing failed"):
        schedules.plot(schedules.check(right))
