"""Many readers or one writer, always; who goes first; and who would wait for itself is told."""

import threading
import time
from collections.abc import Callable

import pytest

from utils.core import trace
from utils.core.experiment import gather
from utils.core.workers import crew
from utils.threads.primitives.rwlock import Preference, RWLock

both = pytest.mark.parametrize("preference", ["reader", "writer"])


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@both
def test_many_readers_or_one_writer(preference: Preference) -> None:
    lock, rows, sums = RWLock(preference), [0, 0, 0], []
    met = threading.Event()
    together = threading.Barrier(3, action=met.set)

    def read() -> None:
        with lock.read():
            together.wait(20)  # passes only if three read at once
        for _ in range(100):
            with lock.read(timeout=20):
                assert not lock.writing and 1 <= lock.readers <= 3
                seen = list(rows)
                time.sleep(0)
                assert seen == rows
            sums.append(len(set(seen)))

    def write() -> None:
        assert met.wait(20)  # a writer that waits would keep the readers from meeting
        for _ in range(100):
            with lock.write(timeout=20):
                assert lock.writing and lock.readers == 0
                for place in range(3):
                    rows[place] += 1
                    time.sleep(0)

    with crew(5) as pool:
        gather([pool.submit(work) for work in (read, read, read, write, write)], timeout=60)
    assert rows == [200, 200, 200] and set(sums) == {1}
    assert lock.readers == 0 and not lock.writing


def test_readers_that_keep_coming_starve_a_writer_if_they_are_preferred() -> None:
    lock = RWLock("reader")
    with crew(1) as inside, crew(1) as outside, crew(1) as third:
        inside.submit(lock.acquire_read).result(20)
        writer = third.submit(lock.acquire_write, 20)
        until(lambda: lock._waiting_writers)
        for _ in range(50):  # one comes, the other leaves, and the writer still waits
            assert outside.submit(lock.acquire_read, 20).result(20)
            inside.submit(lock.release_read).result(20)
            assert lock.readers == 1 and not writer.done()
            inside, outside = outside, inside
        inside.submit(lock.release_read).result(20)
        assert writer.result(20) is True and lock.writing


def test_a_waiting_writer_goes_before_new_readers_if_it_is_preferred() -> None:
    lock = RWLock("writer")
    order: list[str] = []

    def write() -> None:
        with lock.write(timeout=20):
            order.append("writer")

    def read() -> None:
        with lock.read(timeout=20):
            order.append("reader")

    lock.acquire_read()
    with crew(4) as pool:
        works = [pool.submit(write)]
        until(lambda: lock._waiting_writers == 1)
        assert pool.submit(lock.acquire_read, 0).result(20) is False
        works += [pool.submit(read), pool.submit(read)]
        until(lambda: lock._waiting_readers == 2)
        lock.release_read()
        gather(works, timeout=20)
    assert order == ["writer", "reader", "reader"]


def test_waiting_readers_go_before_a_waiting_writer_if_they_are_preferred() -> None:
    lock, both_inside = RWLock("reader"), threading.Barrier(2)
    order: list[str] = []

    def write() -> None:
        with lock.write(timeout=20):
            order.append("writer")

    def read() -> None:
        with lock.read(timeout=20):
            both_inside.wait(20)  # the one writer that leaves wakes all readers
            order.append("reader")

    lock.acquire_write()
    with crew(3) as pool:
        works = [pool.submit(write)]
        until(lambda: lock._waiting_writers == 1)
        works += [pool.submit(read), pool.submit(read)]
        until(lambda: lock._waiting_readers == 2)
        lock.release_write()
        gather(works, timeout=20)
    assert order == ["reader", "reader", "writer"]


def test_nobody_writes_between_the_waking_of_a_reader_and_its_entry() -> None:
    lock = RWLock("reader")
    with crew(1) as pool:
        for _ in range(50):
            lock.acquire_write()
            reader = pool.submit(lock.acquire_read, 20)
            until(lambda: lock._waiting_readers)
            lock.release_write()
            assert lock.acquire_write(timeout=0) is False  # it is on its way, or in
            assert reader.result(20) is True
            pool.submit(lock.release_read).result(20)


def test_a_writer_that_gives_up_lets_the_readers_behind_it_in() -> None:
    lock = RWLock("writer")
    lock.acquire_read()
    with crew(2) as pool:
        writer = pool.submit(lock.acquire_write, 0.2)
        until(lambda: lock._waiting_writers)
        reader = pool.submit(lock.acquire_read, 20)
        assert writer.result(20) is False
        assert reader.result(20) is True
    assert lock.readers == 2 and lock._waiting_writers == lock._waiting_readers == 0


def test_a_reader_that_is_interrupted_lets_the_writer_behind_it_in() -> None:
    lock = RWLock("reader")

    def interrupted(predicate: Callable, timeout: float) -> bool:
        lock._can_read.wait(timeout)
        raise InterruptedError

    lock._can_read.wait_for = interrupted
    lock.acquire_write()
    with crew(2) as pool:
        reader = pool.submit(lock.acquire_read, 20)
        until(lambda: lock._waiting_readers)
        writer = pool.submit(lock.acquire_write, 20)
        until(lambda: lock._waiting_writers)
        lock.release_write()
        with pytest.raises(InterruptedError):
            reader.result(20)
        assert writer.result(5) is True
    assert lock._waiting_readers == lock._waiting_writers == 0


@both
def test_timeouts_leave_nothing_behind(preference: Preference) -> None:
    lock = RWLock(preference)

    def try_both() -> list[bool]:
        return [lock.acquire_read(timeout=0.01), lock.acquire_write(timeout=0.01)]

    with crew(1) as pool:
        with lock.write():
            assert pool.submit(try_both).result(20) == [False, False]
            with pytest.raises(TimeoutError, match="could not read within 0.01 s"):
                pool.submit(lock.read(0.01).__enter__).result(20)
            with pytest.raises(TimeoutError, match="could not write within 0.01 s"):
                pool.submit(lock.write(0.01).__enter__).result(20)
        assert lock._waiting_readers == lock._waiting_writers == 0
        with lock.write(), pytest.raises(KeyError):
            raise KeyError
        with pytest.raises(KeyError), lock.read():
            raise KeyError
    assert lock.acquire_write(timeout=0)
    lock.release_write()


@both
def test_bad_use_is_refused(preference: Preference) -> None:
    lock = RWLock(preference, name="index")
    with pytest.raises(RuntimeError, match="cannot release index: this thread does not read"):
        lock.release_read()
    with pytest.raises(RuntimeError, match="cannot release index: this thread does not write"):
        lock.release_write()
    with crew(1) as pool:
        with lock.read(), pytest.raises(RuntimeError, match="does not read"):
            pool.submit(lock.release_read).result(20)
        with lock.write(), pytest.raises(RuntimeError, match="does not write"):
            pool.submit(lock.release_write).result(20)
    with lock.read():
        with pytest.raises(RuntimeError, match="would wait for itself"):
            lock.acquire_write()
        assert lock.acquire_write(timeout=0.01) is False
    with lock.write():
        for again in (lock.acquire_read, lock.acquire_write):
            with pytest.raises(RuntimeError, match="would wait for itself"):
                again()
    assert lock.readers == 0 and not lock.writing


def test_reading_again_behind_a_waiting_writer_is_refused() -> None:
    lock = RWLock("writer")
    with crew(1) as pool, lock.read():
        writer = pool.submit(lock.acquire_write, 20)
        until(lambda: lock._waiting_writers)
        with pytest.raises(RuntimeError, match="would wait for itself"):
            lock.acquire_read()
        lock.release_read()
        assert writer.result(20)
        pool.submit(lock.release_write).result(20)
        lock.acquire_read()


def test_an_unknown_preference_is_refused() -> None:
    with pytest.raises(ValueError, match="preference='fair': give 'reader' or 'writer'"):
        RWLock("fair")


def test_reads_writes_and_waits_are_recorded() -> None:
    lock = RWLock(name="index")
    with trace.recording() as recorder, crew(1) as pool:
        with lock.write():
            assert pool.submit(lock.acquire_read, 0.01).result(20) is False
        with lock.read():
            pass
    spans = [(span.category, span.name) for span in recorder.trace().spans]
    assert spans == [
        ("hold", "index: write"),
        ("lock", "index: to read"),
        ("hold", "index: read"),
    ]
