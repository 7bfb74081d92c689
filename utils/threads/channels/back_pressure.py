"""A producer that is faster than its consumer, with a queue between them, bounded or not.

Bounded, the producer soon waits in `put` and works at the consumer's pace: back-pressure.
Unbounded, it never waits, and the queue holds whatever it is ahead. Theory: while the producer
works, the queue grows by 1 - PRODUCE / CONSUME messages for each one made, up to the bound.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from threading import Thread
from typing import Annotated

from utils.core import plots, trace
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.trace import Trace, now
from utils.threads.channels.message_queue import Closed, MessageQueue

MESSAGES = 24
PRODUCE, CONSUME = 0.006, 0.018  # s of work a message; sleeping stands for the work


@dataclass(frozen=True)
class Flow:
    """What passed through a queue of `bound` messages (0: no bound), in order of arrival."""

    bound: int
    received: tuple[int, ...]
    lengths: tuple[tuple[int, int], ...]  # (ns of `now()`, messages in the queue)
    trace: Trace

    @property
    def longest(self) -> int:
        """Messages that were in the queue at most."""
        return max(length for _, length in self.lengths)

    @property
    def waited(self) -> float:
        """Seconds the producer waited for room."""
        return self.trace.total("queue", "producer")

    @property
    def expected_longest(self) -> int:
        ahead = round(MESSAGES * (1 - PRODUCE / CONSUME))
        return min(ahead, self.bound) if self.bound else ahead


@experiment
def back_pressure(
    bound: Annotated[int, Range(0, 16, label="bound (0: none)")] = 4,
) -> Flow:
    """Send `MESSAGES` from a fast producer to a slow consumer."""
    messages: MessageQueue[int] = MessageQueue(bound)
    lengths: list[tuple[int, int]] = [(now(), 0)]
    received: list[int] = []

    def produce() -> None:
        try:
            for number in range(MESSAGES):
                with trace.span("compute", f"make {number}"):
                    time.sleep(PRODUCE)
                messages.put(number, timeout=10)
                lengths.append((now(), messages.qsize()))
        except Closed:  # cancelled
            pass
        finally:
            messages.close()

    def consume() -> None:
        for number in messages:
            lengths.append((now(), messages.qsize()))
            with trace.span("compute", f"use {number}"):
                time.sleep(CONSUME)
            received.append(number)

    threads = [Thread(target=produce, name="producer"), Thread(target=consume, name="consumer")]
    with trace.recording() as recorder:
        for thread in threads:
            thread.start()
        try:
            while threads[1].is_alive():
                checkpoint(len(received), MESSAGES, f"{messages.qsize()} in the queue")
                threads[1].join(0.05)
        finally:
            messages.close()
            for thread in threads:
                thread.join()
    # A wait in the queue is a wait for a condition's lock, too; one of the two is enough.
    spans = (span for span in recorder.trace().spans if span.category != "lock")
    return Flow(bound, tuple(received), tuple(sorted(lengths)), Trace(spans))


def plot(result: Flow) -> plots.Picture:
    """What both threads did, and how many messages were between them."""
    fig, (lanes, queue) = plots.figure(9, 3.6, rows=2, height_ratios=[1, 1], sharex=True)
    bound = f"at most {result.bound} messages" if result.bound else "no bound"
    title = f"{bound}: the producer waited {1e3 * result.waited:.0f} ms"
    plots.timeline(lanes, result.trace, lanes=["producer", "consumer"], title=title)
    lanes.set_xlabel("")
    moments = [(moment - result.trace.start) / 1e9 for moment, _ in result.lengths]
    lengths = [length for _, length in result.lengths]
    queue.step(moments, lengths, where="post", color=plots.color("measured"))
    if result.bound:
        queue.axhline(result.bound, color=plots.color("theory"), linestyle="--")
    queue.set_ylim(bottom=0)
    queue.set_title("messages in the queue", loc="left")
    queue.set_xlabel("seconds", fontsize=9)
    plots.legend(fig, ["compute", "queue"], {"compute": "works", "queue": "waits for the queue"})
    return fig
