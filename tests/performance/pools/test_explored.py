"""The pools under every schedule with few preemptions."""

import contextlib

import pytest

from utils.performance.pools.future import Future
from utils.performance.pools.thread_pool import ThreadPool
from utils.performance.pools.work_stealing import WorkStealingPool
from utils.threads import schedules
from utils.threads.bugs import together


def two_wait_for_one_future() -> None:
    future, got = Future(), []

    def finish() -> None:
        future.set_running_or_notify_cancel()
        future.set_result("x")

    wait = lambda: got.append(future.result())  # noqa: E731
    together(wait, wait, finish)
    assert got == ["x", "x"]


def a_wait_in_time_or_not() -> None:
    future, got = Future(), []

    def wait() -> None:
        try:
            got.append(future.result(timeout=1))
        except TimeoutError:
            got.append("late")

    together(wait, lambda: future.set_result("x"))
    assert got[0] in ("x", "late") and future.result(0) == "x"


def cancelled_or_begun() -> None:
    future, ran, called = Future(), [], []
    future.add_done_callback(called.append)

    def begin() -> None:
        if future.set_running_or_notify_cancel():
            ran.append(1)
            future.set_result(1)

    cancelled = []
    together(begin, lambda: cancelled.append(future.cancel()))
    assert cancelled == [not ran] and future.done() and called == [future]


def a_callback_runs_once() -> None:
    future, called = Future(), []
    together(lambda: future.set_result(1), lambda: future.add_done_callback(called.append))
    assert called == [future]


def submitted_or_refused(make):
    def program() -> None:
        pool, ran, accepted = make(1), [], []

        def submit() -> None:
            with contextlib.suppress(RuntimeError):
                accepted.append(pool.submit(ran.append, "x"))

        together(submit, pool.shutdown)
        pool.shutdown()
        assert len(ran) == len(accepted) and all(future.done() for future in accepted)

    return program


def a_worker_is_woken_or_a_task_found(make):
    """The second task comes when the worker is busy, looks, lies down, or sleeps."""

    def program() -> None:
        pool, ran = make(1), []
        pool.submit(ran.append, 1)
        pool.submit(ran.append, 2)
        pool.shutdown()
        assert ran == [1, 2]

    return program


def cancelled_by_shutdown_or_run(make):
    def program() -> None:
        pool, ran = make(1), []
        tasks = [pool.submit(ran.append, number) for number in range(2)]
        pool.shutdown(cancel_futures=True)
        cancelled = [number for number, task in enumerate(tasks) if task.cancelled()]
        assert sorted(ran + cancelled) == [0, 1] and all(task.done() for task in tasks)

    return program


def room_for_one(make):
    def program() -> None:
        pool, ran = make(1, max_pending=1), []
        together(*[lambda: pool.submit(ran.append, 1)] * 2)
        pool.shutdown()
        assert ran == [1, 1]

    return program


def stolen_or_taken_by_its_owner() -> None:
    pool, ran = WorkStealingPool(2), []

    def parent() -> None:
        for number in range(2):
            pool.submit(ran.append, number)

    pool.submit(parent).result()
    pool.shutdown()
    assert sorted(ran) == [0, 1]


def who_waits_helps() -> None:
    pool = WorkStealingPool(1)
    outer = pool.submit(lambda: pool.submit(int).result())
    assert outer.result() == 0
    pool.shutdown()


def who_waits_helps_or_the_thief_has_it() -> None:
    pool = WorkStealingPool(2)
    outer = pool.submit(lambda: pool.submit(int).result())
    assert outer.result() == 0
    pool.shutdown()


# Two preemptions, or one where that takes too long for a test, or none; and random ones with any
# number.
@pytest.mark.parametrize(
    ("program", "preemptions"),
    [
        (two_wait_for_one_future, 0),
        (a_wait_in_time_or_not, 2),
        (cancelled_or_begun, 2),
        (a_callback_runs_once, 2),
        (submitted_or_refused(ThreadPool), 1),
        (submitted_or_refused(WorkStealingPool), 0),
        (a_worker_is_woken_or_a_task_found(ThreadPool), 1),
        (a_worker_is_woken_or_a_task_found(WorkStealingPool), 0),
        (cancelled_by_shutdown_or_run(ThreadPool), 1),
        (cancelled_by_shutdown_or_run(WorkStealingPool), 0),
        (room_for_one(ThreadPool), 0),
        (room_for_one(WorkStealingPool), 0),
        (who_waits_helps, 0),
        (who_waits_helps_or_the_thief_has_it, 0),
        (stolen_or_taken_by_its_owner, 0),
    ],
)
def test_no_schedule_breaks_it(program, preemptions) -> None:
    report = schedules.check(program, preemptions=preemptions, seconds=60, random=20)
    assert report.verdict == "proved", report
