"""Our primitives under every schedule with few preemptions, time-outs and exceptions included."""

import contextlib
import queue as standard
import threading

import pytest

from utils.threads import schedules
from utils.threads.bugs import together
from utils.threads.channels.message_queue import MessageQueue
from utils.threads.primitives.condition import Condition
from utils.threads.primitives.mutex import Mutex
from utils.threads.primitives.rendezvous import Barrier, Event, Latch
from utils.threads.primitives.rwlock import RWLock
from utils.threads.primitives.semaphore import BoundedSemaphore, Semaphore


def mutex_excludes() -> None:
    mutex, count = Mutex("mutex"), 0

    def add() -> None:
        nonlocal count
        with mutex:
            count += 1

    together(add, add)
    assert count == 2 and not mutex.locked() and mutex.acquired == 2


def mutex_is_free_after_an_exception_or_a_timeout() -> None:
    mutex, entered = Mutex("mutex"), []

    def fail() -> None:
        try:
            with mutex:
                raise OSError
        except OSError:
            entered.append("failed")

    def give_up() -> None:
        if mutex.acquire(timeout=1):
            mutex.release()
        entered.append("gave up or got it")

    together(fail, give_up)
    assert len(entered) == 2 and not mutex.locked()


def condition_hands_over() -> None:
    condition, items, got = Condition(), [], []

    def take() -> None:
        with condition:
            condition.wait_for(lambda: items)
            got.append(items.pop())

    def put() -> None:
        with condition:
            items.append("x")
            condition.notify()

    together(take, put)
    assert got == ["x"]


def condition_loses_no_notification_to_a_timeout() -> None:
    """Who gives up must not have swallowed the notification that was meant for the other."""
    condition, items, got = Condition(threading.Lock()), [], []

    def take(timeout) -> None:
        with condition:
            if condition.wait_for(lambda: items, timeout):
                got.append(items.pop())

    def put() -> None:
        with condition:
            items.append("x")
            condition.notify()

    together(lambda: take(1), put)
    assert len(got) + len(items) == 1 and not condition._waiters


def semaphore_lets_so_many_in() -> None:
    semaphore, inside = Semaphore(1), 0

    def enter() -> None:
        nonlocal inside
        with semaphore:
            inside += 1
            assert inside == 1
            inside -= 1

    together(enter, enter)


def bounded_semaphore_refuses_under_every_schedule() -> None:
    semaphore, refused = BoundedSemaphore(1), []

    def release() -> None:
        try:
            semaphore.release()
        except ValueError:
            refused.append(1)

    semaphore.acquire()
    together(release, release)
    assert len(refused) == 1


def barrier_meets() -> None:
    barrier, here = Barrier(2), [False, False]

    def meet(me: int) -> None:
        here[me] = True
        barrier.wait()
        assert all(here)

    together(lambda: meet(0), lambda: meet(1))


def barrier_breaks_for_everybody() -> None:
    barrier, ends = Barrier(2), []

    def meet() -> None:
        try:
            barrier.wait()
        except threading.BrokenBarrierError:
            ends.append("broken")

    together(meet, barrier.abort)
    assert ends == ["broken"] and barrier.broken


def event_publishes() -> None:
    event, value = Event(), 0

    def set_() -> None:
        nonlocal value
        value = 1
        event.set()

    def read() -> None:
        assert event.wait()
        assert value == 1

    together(set_, read)


def latch_opens_after_the_last() -> None:
    latch, done = Latch(2), []

    def work() -> None:
        done.append(1)
        latch.count_down()

    def wait() -> None:
        assert latch.wait()
        assert len(done) == 2

    together(work, lambda: (work(), wait()))


def readers_and_a_writer(preference: str):
    def program() -> None:
        lock, readers, writing = RWLock(preference), 0, 0

        def read() -> None:
            nonlocal readers
            with lock.read():
                assert not writing

        def write() -> None:
            nonlocal writing
            with lock.write():
                writing += 1
                assert writing == 1
                writing -= 1

        together(read, write)

    return program


def queue_passes_on_in_order() -> None:
    queue, got = MessageQueue(1), []

    def put() -> None:
        queue.put(1)
        queue.put(2)

    def take() -> None:
        got.append(queue.get())
        got.append(queue.get())

    together(put, take)
    assert got == [1, 2]


def queue_closes_without_losing_anything() -> None:
    queue, got = MessageQueue(), []

    def put() -> None:
        queue.put("x")
        queue.close()

    together(put, lambda: got.extend(queue))
    assert got == ["x"]


def queue_loses_no_message_to_a_timeout() -> None:
    queue, got = MessageQueue(1), []

    def take() -> None:
        with contextlib.suppress(standard.Empty):
            got.append(queue.get(timeout=1))

    together(take, lambda: queue.put("x"))
    assert len(got) + queue.qsize() == 1


@pytest.mark.parametrize(
    "program",
    [
        mutex_excludes,
        mutex_is_free_after_an_exception_or_a_timeout,
        condition_hands_over,
        condition_loses_no_notification_to_a_timeout,
        semaphore_lets_so_many_in,
        bounded_semaphore_refuses_under_every_schedule,
        barrier_meets,
        barrier_breaks_for_everybody,
        event_publishes,
        latch_opens_after_the_last,
        pytest.param(readers_and_a_writer("reader"), id="rwlock-readers-first"),
        pytest.param(readers_and_a_writer("writer"), id="rwlock-writers-first"),
        queue_passes_on_in_order,
        queue_closes_without_losing_anything,
        queue_loses_no_message_to_a_timeout,
    ],
)
def test_no_schedule_breaks_it(program) -> None:
    report = schedules.check(program, seconds=60, random=50)
    assert report.verdict == "proved", report


def test_a_broken_mutex_would_be_found(monkeypatch) -> None:
    """The same programs do fail when a primitive is wrong: here two may hold the mutex."""
    monkeypatch.setattr(Mutex, "_wait", lambda self, timeout: True)
    assert schedules.check(mutex_excludes).verdict == "failed"
