"""Everything sent arrives, whole and in order; a dead or closed side is told; nothing is left."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.threads.channels.ring import SLOTS, Receiver, Ring, Sender

SPAWN = multiprocessing.get_context("spawn")
DEADLINE = 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="platform: /dev/shm is Linux's")


def names(ring: Ring) -> list[Path]:
    """What the ring has in the file system: its memory and two semaphores."""
    semaphores = (ring.receiver._filled, ring.receiver._freed)
    semaphore_names = ["sem." + s._semlock.name.lstrip("/") for s in semaphores]
    return [Path("/dev/shm", name) for name in (ring.name, *semaphore_names)]


def pattern(number: int, size: int) -> bytes:
    return bytes([number % 251]) * size


# ---------------------------------------------------------------- one process


@given(
    capacity=st.integers(1, 700),
    steps=st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=60),
)
@settings(deadline=None, max_examples=60)
def test_any_sizes_in_any_order_arrive_whole_and_in_order(
    capacity: int, steps: list[float | None]
) -> None:
    """None receives; a number sends a message of that share of the ring."""
    with Ring(capacity) as ring:
        under_way: deque[bytes] = deque()
        for number, step in enumerate(steps):
            if step is None:
                if under_way:
                    assert ring.receiver.recv_bytes(0) == under_way.popleft()
                else:
                    with pytest.raises(TimeoutError):
                        ring.receiver.recv_bytes(0)
                continue
            message = pattern(number, int(step * ring.capacity))
            try:
                ring.sender.send_bytes(message, 0)
            except TimeoutError:
                assert under_way, "a message fits into an empty ring"
            else:
                under_way.append(message)
                assert sum(map(len, under_way)) <= ring.capacity
        ring.sender.close()
        while under_way:
            assert ring.receiver.recv_bytes(0) == under_way.popleft()
        for _ in range(2):  # the end stays the end
            with pytest.raises(EOFError, match="has closed"):
                ring.receiver.recv_bytes(0)


def test_empty_messages_and_the_largest_ones() -> None:
    with Ring(128) as ring:
        for message in (b"", b"x" * 128, b"", b"y" * 128):
            ring.sender.send_bytes(message, 1)
            assert ring.receiver.recv_bytes(1) == message


def test_the_table_is_a_bound_as_well() -> None:
    with Ring(SLOTS * 128) as ring:
        for _ in range(SLOTS):
            ring.sender.send_bytes(b"")
        with pytest.raises(TimeoutError):
            ring.sender.send_bytes(b"", 0)
        ring.receiver.recv_bytes()
        ring.sender.send_bytes(b"", 0)


def test_arrays_and_tensors_look_into_the_ring_without_a_copy() -> None:
    import torch  # here: the processes below import this module, and need not wait for it

    with Ring(4096) as ring:
        with ring.sender.reserve(80) as room:
            row = np.frombuffer(room, np.float64)
            row[:] = np.arange(10)
            del row
        with ring.receiver.receive(1) as message:
            tensor = torch.from_numpy(np.frombuffer(message, np.float64))
            message[:8] = np.float64(100).tobytes()
            assert tensor.tolist() == [100, *range(1, 10)]  # the same memory
            del tensor
        ring.sender.send_bytes(np.arange(6, dtype=np.int32).reshape(2, 3))
        assert np.frombuffer(ring.receiver.recv_bytes(1), np.int32).tolist() == list(range(6))


def test_what_points_into_the_ring_must_not_outlive_the_block() -> None:
    with Ring(4096) as ring:
        ring.sender.send_bytes(bytes(8))
        with pytest.raises(BufferError, match="still points"), ring.receiver.receive(1) as message:
            kept = np.frombuffer(message, np.uint8)
        with pytest.raises(ValueError):  # the view itself is dead
            message[0]
        with pytest.raises(BufferError), ring.sender.reserve(8) as room:
            part = room[2:4]
        del kept, part
        ring.sender.send_bytes(b"next")  # neither end is stuck, and the dropped one is not there
        assert ring.receiver.recv_bytes(1) == b"next"


def test_an_exception_in_the_block_drops_what_was_reserved_and_gives_back_what_was_taken() -> None:
    with Ring(64) as ring:
        with pytest.raises(KeyError), ring.sender.reserve(64):
            raise KeyError
        ring.sender.send_bytes(b"a" * 64, 0)
        with pytest.raises(KeyError), ring.receiver.receive(0) as message:
            array = np.frombuffer(message, np.uint8)
            raise KeyError
        del array
        ring.sender.send_bytes(b"b", 0)
        assert ring.receiver.recv_bytes(0) == b"b"


def test_bad_input_says_what_is_allowed() -> None:
    for capacity in (0, -1):
        with pytest.raises(ValueError, match=f"capacity={capacity}"):
            Ring(capacity)
    with pytest.raises(TypeError):
        Ring(1.5)  # type: ignore[arg-type]
    with Ring(100) as ring:
        assert ring.capacity == 128  # whole cache lines
        with pytest.raises(ValueError, match="a message of 129 bytes in a ring of 128"):
            ring.sender.send_bytes(bytes(129))
        with pytest.raises(ValueError, match="size=-1"), ring.sender.reserve(-1):
            pass
        with pytest.raises(ValueError, match="timeout=-1"):
            ring.receiver.recv_bytes(-1)
        with pytest.raises(TypeError):
            ring.sender.send_bytes("text")  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="inheritance"):
            multiprocessing.reduction.ForkingPickler.dumps(ring.sender)
    for use in (lambda: ring.sender.send_bytes(b""), lambda: ring.receiver.recv_bytes(0)):
        with pytest.raises(ValueError, match="closed"):
            use()
    ring.close()


def test_one_thread_at_an_end() -> None:
    two = pytest.raises(RuntimeError, match="two threads")
    with Ring(64) as ring, ring.sender.reserve(1), two:
        ring.sender.send_bytes(b"x")


def in_a_thread(
    work: Callable[[], object], waiting: threading.Event
) -> tuple[threading.Thread, list[BaseException]]:
    caught: list[BaseException] = []

    def run() -> None:
        waiting.set()
        try:
            work()
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, caught


@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_closing_wakes_the_other_side(side: str) -> None:
    with Ring(64) as ring:
        ring.sender.send_bytes(bytes(64))
        waiting = threading.Event()
        if side == "receiver":  # the sender waits for room
            thread, caught = in_a_thread(lambda: ring.sender.send_bytes(b"x", DEADLINE), waiting)
        else:
            ring.receiver.recv_bytes()
            thread, caught = in_a_thread(lambda: ring.receiver.recv_bytes(DEADLINE), waiting)
        waiting.wait()
        time.sleep(0.02)
        getattr(ring, side).close()
        thread.join(DEADLINE)
        assert [type(error) for error in caught] == [
            {"receiver": BrokenPipeError, "sender": EOFError}[side]
        ]


# ---------------------------------------------------------------- two processes


def echo(receiver: Receiver, sender: Sender) -> None:
    with receiver, sender:
        while True:
            try:
                with receiver.receive(DEADLINE) as message:
                    sender.send_bytes(message, DEADLINE)
            except EOFError:
                return


def test_two_processes_pass_on_what_they_get() -> None:
    sizes = [int(size) for size in np.random.default_rng(1).integers(0, 5000, 400)]
    with Ring(5000) as there, Ring(5000) as back:
        process = SPAWN.Process(target=echo, args=(there.receiver, back.sender))
        process.start()

        def send() -> None:
            for number, size in enumerate(sizes):
                there.sender.send_bytes(pattern(number, size), DEADLINE)
            there.sender.close()

        thread = threading.Thread(target=send)
        thread.start()
        for number, size in enumerate(sizes):
            assert back.receiver.recv_bytes(DEADLINE) == pattern(number, size)
        with pytest.raises(EOFError):
            back.receiver.recv_bytes(DEADLINE)
        thread.join(DEADLINE)
        process.join(DEADLINE)
        assert process.exitcode == 0
        if sys.platform == "linux":
            assert not Path("/dev/shm", there.name).exists()  # while the ring is still open


def send_and_die(sender: Sender, count: int) -> None:
    for number in range(count):
        sender.send_bytes(pattern(number, 100))
    with sender.reserve(100) as room:
        room[:50] = bytes(50)
        os.kill(os.getpid(), signal.SIGKILL)


def take_and_die(receiver: Receiver) -> None:
    with receiver.receive(DEADLINE):
        os.kill(os.getpid(), signal.SIGKILL)


def forget(sender: Sender) -> None:
    sender.send_bytes(b"the last")  # and ends without closing


killing = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="platform: no SIGKILL")


@killing
def test_what_a_killed_sender_had_sent_arrives_and_nothing_half_written() -> None:
    with Ring() as ring:
        paths = names(ring)
        process = SPAWN.Process(target=send_and_die, args=(ring.sender, 3))
        process.start()
        for number in range(3):
            assert ring.receiver.recv_bytes(DEADLINE) == pattern(number, 100)
        for _ in range(2):
            with pytest.raises(EOFError, match="ended without closing"):
                ring.receiver.recv_bytes(DEADLINE)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    del ring
    assert not any(path.exists() for path in paths)


@killing
def test_a_sender_learns_that_its_receiver_was_killed() -> None:
    with Ring(1000) as ring:
        process = SPAWN.Process(target=take_and_die, args=(ring.receiver,))
        process.start()
        with pytest.raises(BrokenPipeError, match="ended without closing"):
            for _ in range(10):
                ring.sender.send_bytes(bytes(400), DEADLINE)
        process.join()


def test_a_process_that_ends_hangs_up() -> None:
    with Ring() as ring:
        process = SPAWN.Process(target=forget, args=(ring.sender,))
        process.start()
        assert ring.receiver.recv_bytes(DEADLINE) == b"the last"
        with pytest.raises(EOFError, match="has closed"):
            ring.receiver.recv_bytes(DEADLINE)
        process.join()
        assert process.exitcode == 0


def test_an_end_has_one_owner() -> None:
    with Ring() as ring:
        process = SPAWN.Process(target=forget, args=(ring.sender,))
        process.start()
        with pytest.raises(ValueError, match="given to another process"):
            ring.sender.send_bytes(b"x")
        with pytest.raises(ValueError, match="given to another process"):
            SPAWN.Process(target=forget, args=(ring.sender,)).start()
        ring.sender.close()  # only this process's handle: the child's stays open
        assert ring.receiver.recv_bytes(DEADLINE) == b"the last"
        with pytest.raises(ValueError, match="used already"):
            SPAWN.Process(target=take_and_die, args=(ring.receiver,)).start()
        process.join()


_LEFT_ALONE = """
import sys, time
from utils.threads.channels.ring import Ring
ring = Ring()
print(ring.name, ring.sender._filled._semlock.name.lstrip("/"), flush=True)
time.sleep(60)
"""


@linux
def test_a_killed_creator_leaves_nothing_behind() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _LEFT_ALONE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    memory, semaphore = process.stdout.readline().decode().split()
    paths = [Path("/dev/shm", memory), Path("/dev/shm", "sem." + semaphore)]
    assert all(path.exists() for path in paths)
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + DEADLINE
    while any(path.exists() for path in paths) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(path.exists() for path in paths)
