"""Nothing is lost, doubled or out of order; waiters are woken, and give way when they give up."""

import queue
import threading
import time
from collections import Counter
from operator import itemgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.core import trace
from utils.threads import schedules
from utils.threads.channels.message_queue import Closed, MessageQueue

DEADLINE = 20


@given(st.lists(st.none() | st.integers(0, 3)), st.integers(0, 4), st.booleans())
def test_in_one_thread_it_behaves_like_the_library_s(
    steps: list[int | None], maxsize: int, by_priority: bool
) -> None:
    """None takes, a number puts a message of that priority; numbered, so that no two are equal."""
    if by_priority:
        ours: MessageQueue = MessageQueue(maxsize, priority=itemgetter(0))
        library: queue.Queue = queue.PriorityQueue(maxsize)
    else:
        ours, library = MessageQueue(maxsize), queue.Queue(maxsize)

    def outcome(channel, step: int | None, number: int) -> object:
        try:
            if step is None:
                return channel.get_nowait()
            return channel.put_nowait((step, number))
        except (queue.Empty, queue.Full) as error:
            return type(error)

    for number, step in enumerate(steps):
        assert outcome(ours, step, number) == outcome(library, step, number)
        assert (ours.qsize(), ours.empty(), ours.full()) == (
            library.qsize(),
            library.empty(),
            library.full(),
        )


def test_equals_come_in_order_of_arrival_and_are_never_compared() -> None:
    messages: MessageQueue = MessageQueue(priority=itemgetter("urgency"))
    order = [1, 0, 1, 0, 1]
    for number, urgency in enumerate(order):
        messages.put({"urgency": urgency, "number": number})  # dicts cannot be compared
    assert [messages.get()["number"] for _ in order] == [1, 3, 0, 2, 4]


@pytest.mark.parametrize("maxsize", [0, 1, 7])
@pytest.mark.parametrize("by_priority", [False, True])
def test_many_producers_and_consumers_lose_and_double_nothing(
    maxsize: int, by_priority: bool
) -> None:
    producers, consumers, each = 4, 3, 300
    priority = (lambda message: message[1] % 3) if by_priority else None
    messages: MessageQueue = MessageQueue(maxsize, priority=priority)
    taken: list[list[tuple[int, int]]] = [[] for _ in range(consumers)]

    def produce(number: int) -> None:
        for step in range(each):
            while True:  # give up now and then, and try again
                try:
                    messages.put((number, step), timeout=0.001 if step % 5 == 0 else DEADLINE)
                    break
                except queue.Full:
                    pass

    def consume(number: int) -> None:
        while True:
            try:
                taken[number].append(messages.get(timeout=0.001))
            except queue.Empty:
                pass
            except Closed:
                return
            else:
                messages.task_done()

    senders = [threading.Thread(target=produce, args=(n,)) for n in range(producers)]
    takers = [threading.Thread(target=consume, args=(n,)) for n in range(consumers)]
    for thread in senders + takers:
        thread.start()
    for thread in senders:
        thread.join(DEADLINE)
    messages.join()
    messages.close()
    for thread in takers:
        thread.join(DEADLINE)
    everything = Counter(message for mine in taken for message in mine)
    assert everything == Counter((n, step) for n in range(producers) for step in range(each))
    if not by_priority:  # each producer's messages come to any one consumer in order
        for mine in taken:
            for number in range(producers):
                steps = [step for n, step in mine if n == number]
                assert steps == sorted(steps)


def test_a_bounded_put_waits_for_room_and_the_wait_is_recorded() -> None:
    messages: MessageQueue[int] = MessageQueue(1)
    messages.put(1)
    with trace.recording() as recorder:
        thread = threading.Thread(target=messages.put, args=(2, True, DEADLINE), name="producer")
        thread.start()
        while not messages._not_full._waiters:
            time.sleep(0.001)
        assert messages.qsize() == 1 and messages.full()
        assert messages.get() == 1
        thread.join()
    (wait,) = recorder.trace().select(lane="producer", category="queue").spans
    assert wait.name == "until not full" and wait.end > wait.start
    assert messages.get() == 2


def test_timeouts() -> None:
    messages: MessageQueue[int] = MessageQueue(1)
    for wait in (lambda: messages.get(timeout=0.01), messages.get_nowait):
        with pytest.raises(queue.Empty):
            wait()
    messages.put(1)
    for wait in (lambda: messages.put(2, timeout=0.01), lambda: messages.put_nowait(2)):
        with pytest.raises(queue.Full):
            wait()
    assert messages.get() == 1 and messages.empty()


def test_close_lets_what_is_there_be_taken_and_ends_every_wait() -> None:
    messages: MessageQueue[int] = MessageQueue(2)
    ends: list[str] = []

    def full() -> None:
        try:
            messages.put(3)
        except Closed:
            ends.append("producer")

    messages.put(1)
    messages.put(2)
    producer = threading.Thread(target=full, daemon=True)
    producer.start()
    while not messages._not_full._waiters:
        time.sleep(0.001)
    messages.close()
    producer.join(DEADLINE)
    assert ends == ["producer"]
    with pytest.raises(Closed, match="put in a closed queue"):
        messages.put(4)
    assert list(messages) == [1, 2]
    for block in (True, False):
        with pytest.raises(Closed, match="all messages are taken"):
            messages.get(block)
    messages.close()  # twice is once


def test_close_wakes_all_who_wait_for_a_message() -> None:
    messages: MessageQueue[int] = MessageQueue()
    threads = [threading.Thread(target=lambda: list(messages), daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(messages._not_empty._waiters) < 3:
        time.sleep(0.001)
    messages.close()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()


class Interrupted(BaseException):
    """Like Ctrl-C: comes out of a wait."""


def test_a_waiter_that_is_interrupted_passes_its_wake_up_on() -> None:
    """Two wait for a message; the one that is woken fails: the other must get the message."""
    messages: MessageQueue[int] = MessageQueue()
    original, first = messages._not_empty.wait, threading.Event()

    def wait(timeout: float | None = None) -> bool:
        mine = not first.is_set()
        first.set()
        woken = original(timeout)
        if mine:
            raise Interrupted
        return woken

    messages._not_empty.wait = wait  # type: ignore[method-assign]
    got: list[object] = []

    def take() -> None:
        try:
            got.append(messages.get(timeout=DEADLINE))
        except Interrupted:
            got.append("interrupted")

    threads = []
    for count in (1, 2):
        threads.append(threading.Thread(target=take))
        threads[-1].start()
        while len(messages._not_empty._waiters) < count:
            time.sleep(0.001)
    start = time.monotonic()
    messages.put(7)
    for thread in threads:
        thread.join(2 * DEADLINE)
    assert sorted(map(str, got)) == ["7", "interrupted"]
    assert time.monotonic() - start < DEADLINE / 2  # woken, not timed out


def test_a_priority_that_fails_leaves_the_queue_as_it_was() -> None:
    messages: MessageQueue = MessageQueue(priority=itemgetter(0))
    messages.put((1, "a"))
    for bad in [(0.5, "no whole number"), (None,), ()]:
        with pytest.raises((TypeError, IndexError)):
            messages.put(bad)
    messages.put((0, "b"))
    assert [messages.get()[1] for _ in range(2)] == ["b", "a"]
    assert messages.empty()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="maxsize=-1"):
        MessageQueue(-1)
    messages: MessageQueue[int] = MessageQueue(1)
    with pytest.raises(ValueError, match="timeout=-1"):
        messages.get(timeout=-1)
    with pytest.raises(ValueError, match="too many times"):
        messages.task_done()


def test_the_schedule_explorer_finds_no_way_to_break_it() -> None:
    def program() -> None:
        messages: MessageQueue[int] = MessageQueue(1)
        got: list[int] = []

        def produce() -> None:
            for number in range(2):
                messages.put(number)
            messages.close()

        threads = [threading.Thread(target=produce)]
        threads.append(threading.Thread(target=lambda: got.extend(messages)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == [0, 1]

    assert schedules.check(program, preemptions=1, seconds=60).verdict == "proved"


@pytest.mark.parametrize("kind", [MessageQueue, queue.Queue])
def test_a_negative_timeout_is_refused_even_if_there_is_no_need_to_wait(kind) -> None:
    waiting = kind(2)
    with pytest.raises(ValueError):
        waiting.put("x", timeout=-1)
    waiting.put("x")
    with pytest.raises(ValueError):
        waiting.get(timeout=-1)
    assert waiting.get(False, -1) == "x"  # who does not wait has no use for it
