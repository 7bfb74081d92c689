"""What an executor promises: the library's and ours are held to the same."""

import asyncio
import contextlib
import gc
import logging
import subprocess
import sys
import threading
import time
import traceback
import weakref
from concurrent import futures
from concurrent.futures import CancelledError, InvalidStateError, ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool

import pytest

from utils.core import trace
from utils.performance.pools.future import Future
from utils.performance.pools.thread_pool import ThreadPool
from utils.performance.pools.work_stealing import WorkStealingPool

OURS = [ThreadPool, WorkStealingPool]
every_pool = pytest.mark.parametrize("make", [ThreadPoolExecutor, *OURS])
our_pool = pytest.mark.parametrize("make", OURS)
LIMIT = 20  # s until a wait counts as a hang


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(LIMIT)
        assert not thread.is_alive(), f"{thread.name} is left"


class Gate:
    """A task that says it has begun, and ends when it may."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.may_end.wait(LIMIT)
        return "through"

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.may_end.set()


def fail() -> None:
    raise KeyError("no such thing")


# ── Results and exceptions ────────────────────────────────────────────────────────────────


@every_pool
def test_a_result_and_an_exception_with_its_traceback(make) -> None:
    with make(2) as pool:
        assert pool.submit(divmod, 7, 2).result(LIMIT) == (3, 1)
        assert pool.submit(dict, self=1, fn=2).result(LIMIT) == {"self": 1, "fn": 2}
        future = pool.submit(fail)
        error = future.exception(LIMIT)
        assert isinstance(error, KeyError)
        assert "fail" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        with pytest.raises(KeyError, match="no such thing"):
            future.result(LIMIT)
        assert pool.submit(int).result(LIMIT) == 0  # the worker goes on


@every_pool
def test_a_fetched_exception_leaves_no_circle_of_references(make) -> None:
    with make(1) as pool:
        future = pool.submit(fail)
        gc.disable()
        try:
            with contextlib.suppress(KeyError):
                future.result(LIMIT)
            left = weakref.ref(future)
            del future
            until(lambda: left() is None)  # a moment after the worker has let go of it, too
        finally:
            gc.enable()


@every_pool
def test_what_is_not_an_exception_ends_the_task_and_not_the_worker(make) -> None:
    with make(1) as pool:
        assert isinstance(pool.submit(sys.exit, 3).exception(LIMIT), SystemExit)
        assert pool.submit(int).result(LIMIT) == 0


@every_pool
def test_submitting_what_cannot_be_called_is_the_future_s_error(make) -> None:
    with make(1) as pool:
        with pytest.raises(TypeError, match="not callable"):
            pool.submit(5).result(LIMIT)
        with pytest.raises(TypeError):
            pool.submit()


@every_pool
def test_first_submitted_first_begun(make) -> None:
    begun = []
    with make(1) as pool, Gate() as gate:
        pool.submit(gate)
        rest = [pool.submit(begun.append, number) for number in range(50)]
        gate.may_end.set()
        futures.wait(rest, LIMIT)
    assert begun == list(range(50))


@every_pool
def test_results_of_map_come_in_order_whoever_ends_first(make) -> None:
    with make(4) as pool:
        naps = [0.03, 0, 0.02, 0.01]
        order = list(pool.map(lambda index, nap: (time.sleep(nap), index)[1], range(4), naps))
    assert order == [0, 1, 2, 3]


@every_pool
def test_map_submits_at_once_and_gives_the_error_in_its_place(make) -> None:
    seen = []
    with make(2) as pool:
        pool.map(seen.append, range(10))  # nobody looks at the results
        results = pool.map(lambda divisor: 6 // divisor, [1, 2, 0, 3])
        assert [next(results), next(results)] == [6, 3]
        with pytest.raises(ZeroDivisionError):
            next(results)
    assert sorted(seen) == list(range(10))


@every_pool
def test_map_in_time_or_not_at_all(make) -> None:
    with make(1) as pool, Gate() as gate:
        results, ran = pool.map(lambda task: task(), [gate, fail], timeout=0.05), []
        rest = pool.submit(ran.append, 1)
        with pytest.raises(TimeoutError):
            next(results)
        gate.may_end.set()  # `fail` was cancelled with the map
        rest.result(LIMIT)
    assert ran == [1]


# ── Time-outs and cancelling ──────────────────────────────────────────────────────────────


@every_pool
def test_a_wait_ends_in_time(make) -> None:
    with make(1) as pool, Gate() as gate:
        future = pool.submit(gate)
        for timeout in (-1, 0, 0.01):
            with pytest.raises(TimeoutError):
                future.result(timeout)
            with pytest.raises(TimeoutError):
                future.exception(timeout)
        gate.may_end.set()
        assert future.result(LIMIT) == "through"


@every_pool
def test_only_what_has_not_begun_can_be_cancelled(make) -> None:
    ran = []
    with make(1) as pool, Gate() as gate:
        running = pool.submit(gate)
        assert gate.begun.wait(LIMIT)
        pending = pool.submit(ran.append, "pending")
        assert running.running() and not running.cancel() and not running.cancelled()
        assert not pending.running() and not pending.done()
        assert pending.cancel() and pending.cancel() and pending.cancelled() and pending.done()
        with pytest.raises(CancelledError):
            pending.result(0)
        with pytest.raises(CancelledError):
            pending.exception(0)
        gate.may_end.set()
        assert running.result(LIMIT) == "through" and not running.cancel()
    assert not ran


@every_pool
def test_cancelling_wakes_who_waits(make) -> None:
    with make(1) as pool, make(2) as others, Gate() as gate:
        pool.submit(gate)
        pending = pool.submit(int)
        waiters = [others.submit(pending.result), others.submit(pending.exception)]
        time.sleep(0.05)
        assert pending.cancel()
        assert all(isinstance(w.exception(LIMIT), CancelledError) for w in waiters)


# ── Together with the rest of the library ─────────────────────────────────────────────────


@every_pool
@pytest.mark.parametrize("when", ["FIRST_COMPLETED", "FIRST_EXCEPTION", "ALL_COMPLETED"])
def test_wait(make, when: str) -> None:
    with make(3) as pool, Gate() as slow:
        first, failing, last = pool.submit(int), pool.submit(fail), pool.submit(slow)
        futures.wait([first, failing], LIMIT)
        done, not_done = futures.wait([failing, last], 0.05, when)
        assert done == {failing} and not_done == {last}
        threading.Timer(0.05, slow.may_end.set).start()
        done, not_done = futures.wait([first, last], LIMIT, "ALL_COMPLETED")
        assert done == {first, last} and not not_done


@every_pool
def test_wait_hears_of_what_is_cancelled(make) -> None:
    with make(1) as pool, Gate() as gate:
        pool.submit(gate)
        pending = [pool.submit(int) for _ in range(3)]
        assert pending[1].cancel()
        gate.may_end.set()
        assert futures.wait(pending, LIMIT).done == set(pending)


@every_pool
def test_as_completed(make) -> None:
    with make(3) as pool, Gate() as slow, Gate() as slower:
        waiting = [pool.submit(slower), pool.submit(slow), pool.submit(fail)]
        completed = futures.as_completed(waiting, LIMIT)
        assert next(completed) is waiting[2]
        slow.may_end.set()
        assert next(completed) is waiting[1]
        slower.may_end.set()
        assert list(completed) == [waiting[0]]
        with pytest.raises(TimeoutError, match="1 .of 1. futures unfinished"):
            list(futures.as_completed([pool.submit(time.sleep, 0.3)], 0.01))


@every_pool
def test_asyncio_can_wait_for_it(make) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(pool, pow, 2, 10) == 1024
        with pytest.raises(KeyError):
            await asyncio.wrap_future(pool.submit(fail))
        assert await asyncio.gather(*(loop.run_in_executor(pool, int) for _ in range(20)))
        running = pool.submit(gate)
        pending = pool.submit(int)
        wrapped = asyncio.wrap_future(pending)
        wrapped.cancel()  # goes through to ours
        with pytest.raises(asyncio.CancelledError):
            await wrapped
        await asyncio.sleep(0)  # it has told ours meanwhile
        assert pending.cancelled()
        gate.may_end.set()
        assert await asyncio.wait_for(asyncio.wrap_future(running), LIMIT) == "through"

    with make(1) as pool, Gate() as gate:
        asyncio.run(main())


@every_pool
def test_callbacks_in_order_also_when_one_raises(make, caplog) -> None:
    called = []

    def note(future) -> None:
        called.append((future, len(called)))

    def explode(future) -> None:
        raise OSError("in a callback")

    with make(1) as pool, Gate() as gate:
        future = pool.submit(gate)
        for callback in (note, explode, note):
            future.add_done_callback(callback)
        assert not called
        gate.may_end.set()
        assert pool.submit(int).result(LIMIT) == 0  # the worker has survived
        future.add_done_callback(note)  # at once
        future.add_done_callback(explode)
    assert called == [(future, 0), (future, 1), (future, 2)]
    assert caplog.text.count("OSError: in a callback") == 2


@our_pool
def test_a_callback_cannot_end_the_worker(make, caplog) -> None:
    with make(1) as pool, Gate() as gate:
        pool.submit(gate).add_done_callback(lambda future: sys.exit(1))
        gate.may_end.set()
        assert pool.submit(int).result(LIMIT) == 0
    assert "Exception in worker" in caplog.text


# ── The end ───────────────────────────────────────────────────────────────────────────────


@every_pool
def test_shutdown_runs_what_was_accepted_and_accepts_no_more(make) -> None:
    ran = []
    pool = make(2)
    for number in range(20):
        pool.submit(lambda number=number: (time.sleep(0.002), ran.append(number)))
    pool.shutdown()
    assert sorted(ran) == list(range(20))
    pool.shutdown()  # again is fine
    for use in (lambda: pool.submit(int), lambda: pool.map(int, "1")):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            use()


@every_pool
def test_shutdown_without_waiting(make) -> None:
    pool = make(1)
    with Gate() as gate:
        first, second = pool.submit(gate), pool.submit(int)
        pool.shutdown(wait=False)
        assert not first.done()
    assert (first.result(LIMIT), second.result(LIMIT)) == ("through", 0)


@every_pool
def test_shutdown_can_cancel_what_has_not_begun(make) -> None:
    with make(1) as pool, Gate() as gate:
        running = pool.submit(gate)
        assert gate.begun.wait(LIMIT)
        pending = [pool.submit(int) for _ in range(5)]
        pool.shutdown(wait=False, cancel_futures=True)
        assert all(future.cancelled() for future in pending)
        gate.may_end.set()
    assert running.result(0) == "through"


@our_pool
def test_wait_hears_of_what_shutdown_cancels(make) -> None:
    """With the library's executor this wait would never end."""
    with make(1) as pool, Gate() as gate:
        pool.submit(gate)
        pending = pool.submit(int)
        pool.shutdown(wait=False, cancel_futures=True)
        assert futures.wait([pending], LIMIT).done == {pending}


@every_pool
def test_an_exception_in_the_block_still_ends_the_workers(make) -> None:
    with pytest.raises(KeyError), make(2) as pool:
        pool.submit(time.sleep, 0.01)
        fail()


@our_pool
@pytest.mark.parametrize("how", ["", "pool.shutdown(wait=False)", "del pool"])
def test_the_interpreter_ends_after_the_last_task(make, how: str) -> None:
    code = f"""if True:
        import sys, time
        from {make.__module__} import {make.__name__} as Pool
        pool = Pool(2)
        def task(number):
            time.sleep(0.05)
            sys.stdout.write(f"{{number}}\\n")
        pool.submit(int).result()
        for number in range(4):
            pool.submit(task, number)
        {how}
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (sorted(done.stdout.split()), done.stderr) == (["0", "1", "2", "3"], "")


# ── Workers ───────────────────────────────────────────────────────────────────────────────


@every_pool
def test_workers_come_as_they_are_needed_and_have_names(make) -> None:
    with make(3, thread_name_prefix="crew") as pool, Gate() as gate:
        assert not pool._threads
        for _ in range(5):
            pool.submit(gate)
        assert sorted(thread.name for thread in pool._threads) == ["crew_0", "crew_1", "crew_2"]
        gate.may_end.set()
    with make(1) as pool:
        name = pool.submit(lambda: threading.current_thread().name).result(LIMIT)
    assert name.startswith(make.__name__) and name.endswith("_0")


@our_pool
def test_an_idle_worker_is_used_before_a_new_one(make) -> None:
    with make(5) as pool:
        for _ in range(5):
            pool.submit(int).result(LIMIT)
            until(lambda: len(pool._idle) == 1)
        assert len(pool._threads) == 1


def until(condition) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.001)


@every_pool
def test_each_worker_is_initialised_once(make) -> None:
    local = threading.local()

    def initialise(value) -> None:
        assert not hasattr(local, "value")
        local.value = value

    with make(3, initializer=initialise, initargs=(7,)) as pool:
        assert list(pool.map(lambda _: local.value, range(20))) == [7] * 20


@every_pool
def test_a_failed_initializer_breaks_the_pool(make, caplog) -> None:
    gate = Gate()

    def initialise() -> None:
        gate()
        raise OSError("no licence")

    with caplog.at_level(logging.CRITICAL, "concurrent.futures"), make(1, "", initialise) as pool:
        pending = [pool.submit(int) for _ in range(3)]
        gate.may_end.set()
        for future in pending:
            with pytest.raises(BrokenThreadPool):
                future.result(LIMIT)
        with pytest.raises(BrokenThreadPool):
            pool.submit(int)
    with pytest.raises(BrokenThreadPool):
        pool.submit(int)
    assert "OSError: no licence" in caplog.text


@every_pool
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": -1}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": "2"}, TypeError, "str"),
        ({"initializer": 3}, TypeError, "initializer must be a callable"),
    ],
)
def test_bad_arguments(make, arguments, error, words) -> None:
    with pytest.raises(error, match=words):
        make(**arguments)


@our_pool
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_pending": -1}, "max_pending=-1"),
        ({"submit_timeout": -1}, "submit_timeout=-1"),
        ({"submit_timeout": float("nan")}, "submit_timeout=nan"),
        ({"max_workers": 0}, "got 0"),
    ],
)
def test_bad_arguments_of_ours(make, arguments, words) -> None:
    with pytest.raises(ValueError, match=words):
        make(**arguments)


@every_pool
def test_a_task_can_submit_tasks(make) -> None:
    with make(2) as pool:
        inner = pool.submit(lambda: pool.submit(pow, 2, 5)).result(LIMIT)
        assert inner.result(LIMIT) == 32


# ── Back-pressure ─────────────────────────────────────────────────────────────────────────


@our_pool
def test_submit_waits_for_room(make) -> None:
    pending = []
    with make(2, max_pending=3) as pool:

        def task() -> None:
            pending.append(pool.pending())
            time.sleep(0.001)

        for _ in range(40):
            pool.submit(task)
            pending.append(pool.pending())
    assert len(pending) == 80 and max(pending) == 3


@our_pool
def test_no_room_in_time(make) -> None:
    with make(1, max_pending=1, submit_timeout=0.05) as pool, Gate() as gate:
        pool.submit(gate)
        assert gate.begun.wait(LIMIT)
        pool.submit(int)
        with pytest.raises(TimeoutError, match="0.05"):
            pool.submit(int)


@our_pool
def test_shutdown_refuses_who_waits_for_room(make) -> None:
    with make(1, max_pending=1) as pool, ThreadPoolExecutor(2) as others, Gate() as gate:
        pool.submit(gate)
        assert gate.begun.wait(LIMIT)
        pool.submit(int)
        waiting = [others.submit(pool.submit, int) for _ in range(2)]
        until(lambda: len(pool._room._waiters) == 2)
        pool.shutdown(wait=False)
        for refused in waiting:
            with pytest.raises(RuntimeError, match="after shutdown"):
                refused.result(LIMIT)


def test_a_task_s_own_subtasks_need_no_room() -> None:
    with WorkStealingPool(1, max_pending=1, submit_timeout=1) as pool, Gate() as gate:

        def parent() -> list:
            gate()
            return [pool.submit(int) for _ in range(10)]

        family = pool.submit(parent)
        assert gate.begun.wait(LIMIT)
        pool.submit(int)  # now the common queue is full
        gate.may_end.set()
        assert [child.result(LIMIT) for child in family.result(LIMIT)] == [0] * 10


# ── Work stealing ─────────────────────────────────────────────────────────────────────────


def fibonacci(pool, n: int) -> int:
    if n < 2:
        return n
    left = pool.submit(fibonacci, pool, n - 1)
    return fibonacci(pool, n - 2) + left.result(LIMIT)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_who_waits_for_a_subtask_helps(workers: int) -> None:
    with WorkStealingPool(workers) as pool:
        assert pool.submit(fibonacci, pool, 12).result(LIMIT) == 144
        assert len(pool._threads) <= workers


def test_a_thief_takes_the_oldest_first() -> None:
    begun = []

    def parent() -> None:
        for name in "abc":
            pool.submit(begun.append, name)
        until(lambda: len(begun) == 3)  # its worker stays in here, so all three must be stolen

    with WorkStealingPool(2) as pool:
        pool.submit(parent).result(LIMIT)
    assert begun == ["a", "b", "c"] and pool.steals == 3


def test_a_lone_worker_takes_its_newest_first() -> None:
    begun = []

    def parent() -> None:
        for name in "abc":
            pool.submit(begun.append, name)

    with WorkStealingPool(1) as pool:
        pool.submit(parent).result(LIMIT)
    assert begun == ["c", "b", "a"] and pool.steals == 0


def test_a_helper_is_woken_for_new_work_and_by_its_result() -> None:
    """Both workers are in use: one waits for the other, and must do the task that comes then."""
    with WorkStealingPool(2) as pool, Gate() as gate:

        def parent() -> str:
            child = pool.submit(gate)
            assert gate.begun.wait(LIMIT)  # stolen: we can only wait for it
            return child.result(LIMIT)

        waits = pool.submit(parent)
        until(lambda: len(pool._idle) == 1)
        assert pool.submit(int).result(LIMIT) == 0  # by the helper, for there is nobody else
        assert not waits.done()
        gate.may_end.set()
        assert waits.result(LIMIT) == "through"


def test_a_helper_s_wait_ends_in_time() -> None:
    with WorkStealingPool(2) as pool, Gate() as gate:

        def parent() -> list[str]:
            child = pool.submit(gate)
            assert gate.begun.wait(LIMIT)
            ends = []
            for timeout in (0, 0.05):
                try:
                    child.result(timeout)
                except TimeoutError:
                    ends.append("late")
            return [*ends, len(pool._idle)]  # a bell that nobody hears must not stay there

        assert pool.submit(parent).result(LIMIT) == ["late", "late", 0]


# ── What is recorded ──────────────────────────────────────────────────────────────────────


@our_pool
def test_tasks_and_waits_for_tasks_are_spans(make) -> None:
    with trace.recording() as recorder, make(1, "crew") as pool:
        pool.submit(time.sleep, 0).result(LIMIT)
        until(lambda: pool._idle)
        pool.submit(fail).exception(LIMIT)
    spans = [s for s in recorder.trace().spans if s.lane == "crew_0"]
    assert [(s.category, s.name) for s in spans if s.category == "compute"] == [
        ("compute", "sleep"),
        ("compute", "fail"),
    ]
    assert {s.category for s in spans} == {"compute", "idle"}
    assert all(a.end <= b.start for a, b in zip(spans, spans[1:], strict=False))


# ── The future alone ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", [futures.Future, Future])
def test_a_future_is_settled_once(make) -> None:
    future = make()
    assert future.set_running_or_notify_cancel()
    future.set_result(None)
    for again in (lambda: future.set_result(1), lambda: future.set_exception(OSError())):
        with pytest.raises(InvalidStateError, match="FINISHED"):
            again()
    cancelled = make()
    cancelled.cancel()
    with pytest.raises(InvalidStateError, match="CANCELLED"):
        cancelled.set_result(1)
    assert not cancelled.set_running_or_notify_cancel()


@pytest.mark.parametrize("make", [Future])
def test_a_future_is_begun_once(make) -> None:
    future = make()
    future.set_running_or_notify_cancel()
    with pytest.raises(RuntimeError, match="begun once"):
        future.set_running_or_notify_cancel()


class Nothing(Exception):
    """Falsy, and an exception all the same."""

    def __bool__(self) -> bool:
        return False


@every_pool
def test_a_falsy_exception_is_one(make) -> None:
    hold = threading.Event()

    def fail() -> None:
        raise Nothing

    with make(2) as pool:
        tasks = [pool.submit(hold.wait, 20), pool.submit(fail)]
        done, _ = futures.wait(tasks, LIMIT, futures.FIRST_EXCEPTION)
        assert not hold.is_set() and done == {tasks[1]}
        hold.set()
