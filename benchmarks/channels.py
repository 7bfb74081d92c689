"""The ring beside `multiprocessing.Queue` and a memory copy; `MessageQueue` beside `queue.Queue`.

Each number is the median over rounds in which the alternatives take turns. Bandwidth is bytes of
messages a second; a memory copy's is that of NumPy's `copyto` from 64 blocks of 1 MiB to 64 others.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from utils.core import bench
from utils.core.bench import Sample
from utils.threads.channels import channel_costs
from utils.threads.channels.carriers import CHANNELS
from utils.threads.channels.far_end import Channel, far_end
from utils.threads.channels.message_queue import MessageQueue
from utils.threads.channels.ring import Receiver, Ring

SIZE, COUNT, ROUNDS = 2**20, 128, 11  # bytes a message, messages a turn
MESSAGES = 20_000  # through a queue between threads


def figures() -> Iterator[str]:
    yield from _ring()
    yield from _queues()
    for between in ("threads", "processes"):
        result = channel_costs.costs(between)
        for channel in result.seconds:
            cost = result.fit(channel)
            yield (
                f"between {between}, {channel}: {bench.seconds(cost.per_message)} a message "
                f"+ {bench.seconds(cost.per_megabyte)} a megabyte"
            )


class _InPlace:
    """Takes a message by looking at it where it lies."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def __call__(self) -> range:
        with self.receiver.receive(20) as message:
            return range(len(message))  # all that is asked of it is its length


@contextmanager
def _ring_in_place() -> Iterator[Channel]:
    with Ring() as ring:
        yield Channel(ring.sender.send_bytes, _InPlace(ring.receiver))


def _ring() -> Iterator[str]:
    makers: dict[str, Any] = {
        "multiprocessing.Queue": CHANNELS["processes"]["multiprocessing.Queue"],
        "multiprocessing.Pipe": CHANNELS["processes"]["multiprocessing.Pipe"],
        "Ring": CHANNELS["processes"]["Ring"],
        "Ring, in place": _ring_in_place,
    }
    # As for the copy, 64 different blocks: one alone would be read from the cache.
    messages = [bytes([number]) * SIZE for number in range(64)] * (COUNT // 64)
    taken: dict[str, list[float]] = {name: [] for name in [*makers, "copy"]}
    with far_end("processes", makers) as there:
        for name in makers:
            there.transfer(name, messages)
        for _ in range(ROUNDS):
            for name in makers:
                start = time.perf_counter()
                there.transfer(name, messages)
                taken[name].append((time.perf_counter() - start) / COUNT)
            taken["copy"].append(SIZE / channel_costs.copy_bandwidth())
    times = {name: Sample(tuple(values)) for name, values in taken.items()}
    for name, sample in times.items():
        yield f"1 MiB, {name}: {sample}, {SIZE / sample.median / 1e9:.2f} GB/s"
    for name in ("Ring", "Ring, in place"):
        faster = bench.ratio(times["multiprocessing.Queue"], times[name])
        share = bench.ratio(times["copy"], times[name])
        yield f"{name}: {faster} the speed of multiprocessing.Queue, {share} of a memory copy"


def _queues() -> Iterator[str]:
    for bound in (0, 16):
        for pairs in (0, 1, 4):
            times = bench.compare(
                {
                    "ours": _through(lambda bound=bound: MessageQueue(bound), pairs),
                    "library": _through(lambda bound=bound: queue.Queue(bound), pairs),
                },
                repeats=ROUNDS,
            )
            who = f"{pairs} producers and consumers" if pairs else "one thread"
            faster = bench.ratio(times["library"], times["ours"])
            each = bench.seconds(times["ours"].median / MESSAGES)
            yield f"MessageQueue({bound}), {who}: {each} a message, {faster} queue.Queue's speed"


def _through(make: Callable[[], Any], pairs: int) -> Callable[[], None]:
    def alone() -> None:
        channel = make()
        for number in range(MESSAGES):
            channel.put(number)
            channel.get()

    def together() -> None:
        channel = make()

        def put() -> None:
            for number in range(MESSAGES // pairs):
                channel.put(number)

        def get() -> None:
            for _ in range(MESSAGES // pairs):
                channel.get()

        threads = [threading.Thread(target=work) for work in [put, get] * pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return together if pairs else alone
