"""What the explorer finds, proves, and admits not to know."""

import _thread
import itertools
import os
import queue
import threading
import time
from threading import Barrier, Condition, Event, Lock, RLock, Semaphore, Thread

import pytest

from utils.core.experiment import Cancelled, Control, controlled
from utils.threads import schedules


def together(*works) -> None:
    threads = [Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ── Programs ──────────────────────────────────────────────────────────────────────────────────


def lost_update() -> None:
    count = 0

    def add() -> None:
        nonlocal count
        count += 1

    together(add, add)
    assert count == 2


def locked_update() -> None:
    count, lock = 0, Lock()

    def add() -> None:
        nonlocal count
        with lock:
            count += 1

    together(add, add)
    assert count == 2


def lock_order() -> None:
    first, second = Lock(), Lock()

    def one() -> None:
        with first, second:
            pass

    def other() -> None:
        with second, first:
            pass

    together(one, other)


def lost_wakeup() -> None:
    condition = Condition()

    def wait() -> None:
        with condition:
            condition.wait()

    def notify() -> None:
        with condition:
            condition.notify()

    together(wait, notify)


def polite() -> None:
    wants = [False, False]

    def enter(me: int) -> None:
        wants[me] = True
        while wants[1 - me]:
            wants[me] = False
            wants[me] = True
            time.sleep(0)
        wants[me] = False

    together(lambda: enter(0), lambda: enter(1))


def changed_while_iterated() -> None:
    prices = {"a": 1, "b": 2}

    def total() -> None:
        for name in prices:
            len(name)

    together(total, lambda: prices.update(c=3))


def half_a_transfer(check) -> None:
    left, right, lock = 10, 0, Lock()
    schedules.always(lambda: check(lock, left + right))

    def move() -> None:
        nonlocal left, right
        with lock:
            left -= 5
            right += 5

    together(move)


def seen_half_way() -> None:
    half_a_transfer(lambda lock, total: total == 10)


def seen_only_whole() -> None:
    half_a_transfer(lambda lock, total: lock.locked() or total == 10)


def slow_lock() -> None:
    lock, got = Lock(), []

    def hold() -> None:
        with lock:
            got.append(1)

    def try_for_a_second() -> None:
        if lock.acquire(timeout=1):
            got.append(2)
            lock.release()

    together(hold, try_for_a_second)
    assert len(got) == 2


def behind_the_lock() -> None:
    """A lock orders what comes before its release, and nothing that comes after it."""
    count, lock = 0, Lock()

    def add() -> None:
        nonlocal count
        with lock:
            pass
        count += 1

    together(add, add)
    assert count == 2


def sleep_as_synchronisation() -> None:
    ready = False

    def prepare() -> None:
        nonlocal ready
        ready = True

    thread = Thread(target=prepare)
    thread.start()
    time.sleep(0.1)
    assert ready
    thread.join()


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        (lost_update, "assertion"),
        (lock_order, "deadlock"),
        (lost_wakeup, "deadlock"),
        (polite, "livelock"),
        (changed_while_iterated, "exception"),
        (seen_half_way, "invariant"),
        (slow_lock, "assertion"),
        (behind_the_lock, "assertion"),
        (sleep_as_synchronisation, "assertion"),
    ],
)
def test_a_bug_is_found_and_its_schedule_replays(program, kind: str) -> None:
    report = schedules.check(program)
    assert report.verdict == "failed" and report.failure.kind == kind
    again = schedules.replay(program, report.failure.schedule)
    assert (again.kind, again.message) == (kind, report.failure.message)
    if kind != "livelock":  # that one ends where patience does, give or take a step
        assert again.schedule == report.failure.schedule


def on_condition() -> None:
    condition, items, got = Condition(), [], []

    def take() -> None:
        with condition:
            while not items:
                condition.wait()
            got.append(items.pop())

    def put() -> None:
        with condition:
            items.append("x")
            condition.notify()

    together(take, put)
    assert got == ["x"]


def on_semaphore() -> None:
    full, items, got = Semaphore(0), [], []

    def put() -> None:
        items.append("x")
        full.release()

    def take() -> None:
        full.acquire()
        got.append(items.pop())

    together(put, take)
    assert got == ["x"]


def on_event() -> None:
    event, value = Event(), 0

    def set_() -> None:
        nonlocal value
        value = 1
        event.set()

    def read() -> None:
        assert event.wait(timeout=None)
        assert value == 1

    together(set_, read)


def on_barrier() -> None:
    barrier, here = Barrier(2), [False, False]

    def meet(me: int) -> None:
        here[me] = True
        barrier.wait()
        assert all(here)

    together(lambda: meet(0), lambda: meet(1))


def on_queue() -> None:
    pipe, got = queue.Queue(1), []

    def put() -> None:
        for item in range(2):
            pipe.put(item)

    def take() -> None:
        for _ in range(2):
            got.append(pipe.get())

    together(put, take)
    assert got == [0, 1]


def on_simple_queue() -> None:
    pipe, got = queue.SimpleQueue(), []
    together(lambda: pipe.put("x"), lambda: got.append(pipe.get()))
    assert got == ["x"]


def on_rlock() -> None:
    lock, count = RLock(), 0

    def add() -> None:
        nonlocal count
        with lock, lock:
            count += 1

    together(add, add)
    assert count == 2


def on_busy_waiting() -> None:
    ready = False

    def set_() -> None:
        nonlocal ready
        ready = True

    def spin() -> None:
        while not ready:
            pass

    together(set_, spin)


def with_timeouts() -> None:
    event = Event()
    waiter = Thread(target=lambda: event.wait(timeout=5))
    waiter.start()
    waiter.join()  # nobody sets it: the clock jumps
    assert not waiter.is_alive()


@pytest.mark.parametrize(
    "program",
    [
        locked_update,
        seen_only_whole,
        on_condition,
        on_semaphore,
        on_event,
        on_barrier,
        on_queue,
        on_simple_queue,
        on_rlock,
        on_busy_waiting,
        with_timeouts,
    ],
)
def test_what_is_right_is_proved(program) -> None:
    report = schedules.check(program)
    assert report.verdict == "proved", report
    assert len(report.counts) == 3 and report.counts[0] >= 1 and report.random == 100


def test_the_first_failure_needs_the_fewest_preemptions() -> None:
    def two_preemptions_deep() -> None:
        x = 0

        def one() -> None:
            nonlocal x
            if x == 0:
                x = 1
            if x == 2:
                x = 3

        def other() -> None:
            nonlocal x
            if x == 1:
                x = 2

        together(one, other)
        assert x != 3

    assert schedules.check(two_preemptions_deep, preemptions=0, random=0).verdict == "proved"
    assert schedules.check(lost_update).failure.preemptions == 1
    assert schedules.check(two_preemptions_deep).failure.preemptions == 1


def test_who_goes_on_after_a_join_is_a_free_choice() -> None:
    def program() -> None:
        ready = False

        def prepare() -> None:
            nonlocal ready
            ready = True

        first, second = Thread(target=int), Thread(target=prepare)
        first.start()
        second.start()
        first.join()
        assert not ready  # wrong if `second` runs as soon as `first` has ended
        second.join()

    assert schedules.check(program, preemptions=0, random=0).failure.preemptions == 0


def test_a_deadlock_names_its_cycle() -> None:
    failure = schedules.check(lock_order).failure
    assert "A waits for second, held by B" in failure.message
    assert "B waits for first, held by A" in failure.message


def test_random_schedules_go_beyond_the_bound() -> None:
    report = schedules.check(lost_update, preemptions=0)
    assert report.verdict == "failed" and report.random > 0 and report.failure.preemptions >= 1
    assert schedules.check(lost_update, preemptions=0, random=0).verdict == "proved"


def test_the_same_seed_tries_the_same_schedules() -> None:
    runs = [schedules.check(lost_update, preemptions=0, seed=7) for _ in range(2)]
    assert runs[0].random == runs[1].random
    assert runs[0].failure.schedule == runs[1].failure.schedule


# ── Functions as people write them ────────────────────────────────────────────────────────────


class Account:
    def __init__(self) -> None:
        self.balance = 10

    def withdraw(self, amount: int) -> None:
        if self.balance >= amount:
            self.balance -= amount


def on_a_class_of_this_module() -> None:
    account = Account()
    together(lambda: account.withdraw(8), lambda: account.withdraw(8))
    assert account.balance >= 0


class Worker(threading.Thread):
    def __init__(self, box: list) -> None:
        super().__init__()
        self.box = box

    def run(self) -> None:
        self.box[0] = self.box[0] + 1


def on_a_subclass_of_thread() -> None:
    box = [0]
    workers = [Worker(box), Worker(box)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert box == [2]


total = 0


def on_a_global() -> None:
    global total
    total = 0

    def add() -> None:
        global total
        total += 1

    together(add, add)
    assert total == 2


@pytest.mark.parametrize(
    "program", [on_a_class_of_this_module, on_a_subclass_of_thread, on_a_global]
)
def test_bugs_in_classes_and_globals_are_found(program) -> None:
    assert schedules.check(program).verdict == "failed"


def test_threads_have_their_names_and_know_them() -> None:
    seen = []

    def program() -> None:
        seen.clear()
        together(lambda: seen.append(threading.current_thread().name))
        named = Thread(target=lambda: seen.append(threading.current_thread().name), name="writer 1")
        named.start()
        named.join()
        with pytest.raises(RuntimeError, match="only be started once"):
            named.start()
        with pytest.raises(RuntimeError, match="cannot join current thread"):
            threading.current_thread().join()

    assert schedules.check(program).verdict == "failed"  # main is no Thread object to be joined
    assert seen == ["A", "writer 1"]


def test_a_program_lasts_as_long_as_its_threads() -> None:
    def program() -> None:
        lock, entered = Lock(), []

        def enter() -> None:
            with lock:
                entered.append(1)
                assert len(entered) < 2

        for _ in range(2):
            Thread(target=enter).start()  # and nobody joins them

    assert schedules.check(program).failure.kind == "assertion"


def test_a_lock_that_another_thread_was_given_is_no_longer_ones_own() -> None:
    def program() -> None:
        lock, order = Lock(), []

        def second() -> None:
            with lock:
                order.append("second")

        thread = Thread(target=second)
        thread.start()
        with lock:  # the first operation after making it, but not before telling
            order.append("first")
        thread.join()
        assert order == ["first", "second"]

    assert schedules.check(program).verdict == "failed"


def test_a_daemon_does_not_keep_a_program_alive() -> None:
    def program() -> None:
        Thread(target=Event().wait, daemon=True).start()

    assert schedules.check(program).verdict == "proved"


# ── Limits ────────────────────────────────────────────────────────────────────────────────────

outside, other_outside = _thread.allocate_lock(), _thread.RLock()


def locks_from_outside() -> None:
    def one() -> None:
        with outside, other_outside:
            pass

    def other() -> None:
        with other_outside:
            outside.acquire()
            outside.release()

    together(one, other)


def test_locks_from_outside_are_refused() -> None:
    """They are real ones: nothing would ever be seen to happen while somebody holds them."""
    report = schedules.check(locks_from_outside)
    assert report.verdict == "inconclusive" and "not made while it ran" in report.reason
    assert not outside.locked()


def test_waiting_outside_its_control_is_inconclusive_and_leaves_the_rest_alone() -> None:
    reader, writer = os.pipe()
    try:
        report = schedules.check(lambda: together(lambda: os.read(reader, 1)))
        assert report.verdict == "inconclusive" and "outside the scheduler's" in report.reason
        assert schedules.check(locked_update).verdict == "proved"
        os.write(writer, b"x")  # the stuck thread comes back, and ends
        deadline = time.monotonic() + 10
        while any(t.name in ("A", "ended") for t in threading.enumerate()):
            assert time.monotonic() < deadline, threading.enumerate()
            time.sleep(0.01)
    finally:
        os.close(reader)
        os.close(writer)


def test_a_raw_thread_is_refused() -> None:
    report = schedules.check(lambda: _thread.start_new_thread(int, ()))
    assert report.verdict == "inconclusive" and "threading.Thread" in report.reason


def test_a_long_loop_of_one_thread_is_no_livelock() -> None:
    def program() -> None:
        count = 0
        for number in range(3_000):
            count += [number][0]

    report = schedules.check(program, operations=500)
    assert report.verdict == "inconclusive" and "500 operations" in report.reason


def test_who_spins_unfairly_is_given_up_the_turn() -> None:
    """A thread that counts while it waits is no livelock: the other only has to get a turn."""

    def program() -> None:
        ready = False

        def set_() -> None:
            nonlocal ready
            ready = True

        def spin() -> None:
            turns = 0
            while not ready:
                turns += 1

        together(spin, set_)

    assert schedules.check(program, operations=200, random=20).verdict == "proved"


def test_a_program_that_depends_on_chance_is_inconclusive() -> None:
    runs = itertools.count(1)

    def program() -> None:
        lock = Lock()
        together(*[lambda: lock.acquire() and lock.release()] * (next(runs) % 3))

    report = schedules.check(program)
    assert report.verdict == "inconclusive" and "depends on chance" in report.reason


def large() -> None:
    lock = Lock()

    def work() -> None:
        for _ in range(10):
            with lock:
                pass

    together(work, work, work, work)


def test_a_budget_that_is_too_small_is_said() -> None:
    report = schedules.check(large, seconds=0.3)
    assert report.verdict == "inconclusive" and "0.3 s were over" in report.reason
    assert "inconclusive" in str(report)


def test_an_exploration_can_be_cancelled_and_leaves_nothing_behind() -> None:
    control, before = Control(), threading.active_count()
    timer = threading.Timer(0.2, control.cancel)
    timer.start()
    with controlled(control), pytest.raises(Cancelled):
        schedules.check(large, seconds=60)
    timer.join()
    assert threading.active_count() == before
    assert (
        threading.Lock is type(_thread.allocate_lock()) or threading.Lock is _thread.allocate_lock
    )
    assert time.sleep.__module__ == "time" and Lock is threading.Lock


def test_the_rest_of_the_process_keeps_its_real_locks_meanwhile() -> None:
    made, stop = [], Event()

    def bystander() -> None:
        while not stop.is_set():
            made.append((Lock(), threading.Condition(), queue.Queue()))
            time.sleep(0.001)

    thread = Thread(target=bystander)
    thread.start()
    try:
        schedules.check(on_queue)
    finally:
        stop.set()
        thread.join(timeout=10)
    assert made
    assert all(type(lock) is type(_thread.allocate_lock()) for lock, _, _ in made)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preemptions": -1}, "preemptions=-1"),
        ({"seconds": 0}, "seconds=0"),
        ({"operations": 0}, "operations=0"),
        ({"random": 1.5}, "random=1.5"),
    ],
)
def test_impossible_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedules.check(lost_update, **options)


def test_only_a_python_function_can_be_explored() -> None:
    with pytest.raises(TypeError, match="Python function"):
        schedules.check(len)


@pytest.mark.parametrize("schedule", ["A", "main:x", "main:1 Z:3"])
def test_a_schedule_of_something_else_is_refused(schedule: str) -> None:
    with pytest.raises(ValueError, match="schedule"):
        schedules.replay(lost_update, schedule)


def test_always_does_nothing_outside_an_exploration() -> None:
    schedules.always(lambda: False)


def test_errors_of_locks_are_those_of_threading() -> None:
    def program() -> None:
        lock, reentrant = Lock(), RLock()
        for call, error in (
            (lock.release, RuntimeError),
            (reentrant.release, RuntimeError),
            (lambda: lock.acquire(False, 1), ValueError),
            (lambda: lock.acquire(timeout=-2), ValueError),
        ):
            with pytest.raises(error):
                call()
        assert lock.acquire(False) and not lock.acquire(False) and lock.locked()
        assert not lock.acquire(timeout=0.1)

    assert schedules.check(program).verdict == "proved"


def test_a_long_schedule_replays_in_one_go() -> None:
    report = schedules.check(polite, operations=2_000, seconds=60)
    assert report.failure is not None, str(report)
    again = schedules.replay(polite, report.failure.schedule, operations=2_000)
    assert again.kind == "livelock" and len(str(report)) < 500 < len(again.schedule)


def test_who_is_ended_still_tidies_up() -> None:
    tidied = []

    def program() -> None:
        tidied.clear()
        first, second = Lock(), Lock()

        def take(one: Lock, other: Lock) -> None:
            try:
                with one, other:
                    pass
            finally:
                places = {"tidied": True}
                tidied.append(places["tidied"])

        together(lambda: take(first, second), lambda: take(second, first))

    assert schedules.check(program).failure.kind == "deadlock"
    assert tidied == [True, True]


def test_one_who_will_not_end_is_put_to_sleep() -> None:
    """Nothing can end a thread that catches everything and goes on; it must not burn the core."""

    def program() -> None:
        def stubborn() -> None:
            lock = Lock()
            while True:
                try:
                    while True:
                        lock.acquire()
                        lock.release()
                except BaseException:
                    continue

        together(stubborn)

    assert schedules.check(program, operations=100).verdict == "inconclusive"
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.25
