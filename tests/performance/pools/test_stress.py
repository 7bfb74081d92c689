"""Many submitters, cancels, errors and a shutdown in their midst: every future ends, once."""

import collections
import random
import threading
import time

import pytest

from utils.performance.pools.future import Future
from utils.performance.pools.thread_pool import ThreadPool
from utils.performance.pools.work_stealing import WorkStealingPool
from utils.threads.life.switching import switch_interval

LIMIT = 30  # s


@pytest.mark.parametrize("make", [ThreadPool, WorkStealingPool])
@pytest.mark.parametrize("max_pending", [0, 5])
@pytest.mark.parametrize("cancel_futures", [False, True])
def test_every_future_ends_once(make, max_pending: int, cancel_futures: bool) -> None:
    pool = make(4, max_pending=max_pending, submit_timeout=LIMIT)
    ran, ended = collections.Counter(), collections.Counter()
    futures, refused = {}, []

    def task(name, source) -> str:
        ran[name] += 1
        if source.random() < 0.1 and len(name) < 5 and make is WorkStealingPool:
            submit((*name, "child"), source)
        if source.random() < 0.2:
            raise KeyError(name)
        return name

    def submit(name, source) -> None:
        try:
            future = pool.submit(task, name, random.Random(repr(name)))
        except RuntimeError:
            refused.append(name)
            return
        futures[name] = future
        future.add_done_callback(lambda future: ended.update([name]))
        if source.random() < 0.2:
            future.cancel()

    def submitter(number: int) -> None:
        for turn in range(300):
            submit((number, turn), random.Random(turn))

    with switch_interval(1e-5):
        crew = [threading.Thread(target=submitter, args=(number,)) for number in range(6)]
        for thread in crew:
            thread.start()
        time.sleep(0.05)
        pool.shutdown(cancel_futures=cancel_futures)
        for thread in crew:
            thread.join(LIMIT)
    assert not any(thread.is_alive() for thread in [*crew, *pool._threads])
    assert ended == collections.Counter(futures.keys()) and not pool.pending()
    cancelled = {name for name, future in futures.items() if future.cancelled()}
    assert ran == collections.Counter(futures.keys() - cancelled)
    assert not set(refused) & futures.keys()
    for name in futures.keys() - cancelled:
        error = futures[name].exception(0)
        assert isinstance(error, KeyError) or futures[name].result(0) == name


def test_fork_and_join_in_many_workers_loses_nothing() -> None:
    def total(pool, low: int, high: int) -> int:
        if high - low == 1:
            return low
        middle = (low + high) // 2
        left = pool.submit(total, pool, low, middle)
        return total(pool, middle, high) + left.result(LIMIT)

    with switch_interval(1e-5), WorkStealingPool(6) as pool:
        sums = [pool.submit(total, pool, 0, 200) for _ in range(10)]
        assert [future.result(LIMIT) for future in sums] == [200 * 199 // 2] * 10
    assert not pool.pending()


def test_who_helps_itself_makes_room_too() -> None:
    """A worker that waits for a result runs the one task that was pending: there is room again."""
    began, help_now, go_on = (threading.Event() for _ in range(3))
    with WorkStealingPool(2, max_pending=1, submit_timeout=LIMIT) as pool:

        def child() -> None:
            began.set()
            go_on.wait(LIMIT)

        def parent() -> None:
            stolen = pool.submit(child)
            help_now.wait(LIMIT)
            stolen.result(LIMIT)

        waiting = pool.submit(parent)
        assert began.wait(LIMIT)
        pool.submit(int)  # pending: one worker is busy, the other about to wait
        late: list[Future] = []
        submitter = threading.Thread(target=lambda: late.append(pool.submit(int)))
        submitter.start()
        end = time.monotonic() + LIMIT
        while not pool._room._waiters and time.monotonic() < end:
            time.sleep(0.001)
        help_now.set()
        submitter.join(LIMIT / 3)  # at once; after `submit_timeout` it would look by itself
        assert not submitter.is_alive()
        go_on.set()
        assert waiting.result(LIMIT) is None and late[0].result(LIMIT) == 0
