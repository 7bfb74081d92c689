"""Frames survive every cut of the stream; torn ones, closed ends and time-outs are told."""

import multiprocessing
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.threads.channels import pipe as pipes
from utils.threads.channels.pipe import (
    NamedPipe,
    Pipe,
    Receiver,
    Sender,
    open_receiver,
    open_sender,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="platform: no poll for pipes")
SPAWN = multiprocessing.get_context("spawn")
DEADLINE = 20


@given(messages=st.lists(st.binary(max_size=300), max_size=12), cuts=st.data())
@settings(deadline=None, max_examples=80)
def test_messages_arrive_whole_however_the_stream_is_cut(messages: list[bytes], cuts) -> None:
    """The stream is fed in pieces of any size, with a look after each."""
    reading, writing = os.pipe()
    stream = b"".join(len(message).to_bytes(4, "big") + message for message in messages)
    arrived: list[bytes] = []
    with Receiver(reading) as receiver:
        while stream:
            size = cuts.draw(st.integers(1, len(stream)))
            os.write(writing, stream[:size])
            stream = stream[size:]
            try:
                while True:
                    arrived.append(receiver.recv_bytes(0))
            except TimeoutError:  # what came so far is kept
                pass
        assert arrived == messages
        os.close(writing)
        with pytest.raises(EOFError, match="all sending ends"):
            receiver.recv_bytes(0)


@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_messages_larger_than_the_pipe_between_threads(timeout: float | None) -> None:
    sizes = [0, 1, 4091, 4092, 4093, 65_531, 65_532, 65_536, 65_537, 1_000_000]
    messages = [bytes([number]) * size for number, size in enumerate(sizes)]
    with Pipe() as pipe:

        def send() -> None:
            with pipe.sender as sender:
                for message in messages:
                    sender.send_bytes(message, timeout)

        thread = threading.Thread(target=send)
        thread.start()
        assert [pipe.receiver.recv_bytes(timeout) for _ in messages] == messages
        with pytest.raises(EOFError):
            pipe.receiver.recv_bytes(timeout)
        thread.join()


def test_objects_if_you_say_so() -> None:
    with Pipe() as pipe:
        pipe.sender.send({"loss": [0.5, 0.25]})
        assert pipe.receiver.recv(1) == {"loss": [0.5, 0.25]}


def test_arrays_go_as_their_bytes_and_empty_ones_too() -> None:
    with Pipe() as pipe:
        for array in (np.arange(6.0).reshape(2, 3), np.zeros((0, 3))):
            pipe.sender.send_bytes(array)
            assert pipe.receiver.recv_bytes(1) == array.tobytes()


def test_several_threads_may_use_one_end() -> None:
    each, size = 40, 10_000  # more than is written atomically
    with Pipe() as pipe:

        def send(number: int) -> None:
            for _ in range(each):
                pipe.sender.send_bytes(bytes([number]) * size, DEADLINE)

        threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        got = [pipe.receiver.recv_bytes(DEADLINE) for _ in range(4 * each)]
        for thread in threads:
            thread.join()
    assert sorted(got) == sorted(bytes([number]) * size for number in range(4) for _ in range(each))


def test_a_torn_frame_is_not_a_message() -> None:
    for start in (b"\0\0", b"\0\0\0\5abc"):
        reading, writing = os.pipe()
        os.write(writing, start)
        os.close(writing)
        with Receiver(reading) as receiver, pytest.raises(EOFError, match="torn frame: .* 2 bytes"):
            receiver.recv_bytes(1)


def test_a_timeout_in_the_middle_closes_the_sender_and_before_it_loses_nothing() -> None:
    with Pipe() as pipe:
        with pytest.raises(TimeoutError) as raised:
            pipe.sender.send_bytes(bytes(10**6), 0.05)
        assert "of 1000004 bytes were written" in raised.value.__notes__[0]
        with pytest.raises(ValueError, match="sender of a pipe is closed"):
            pipe.sender.send_bytes(b"x")
        with pytest.raises(EOFError, match="torn"):
            pipe.receiver.recv_bytes(1)
    with Pipe() as pipe:
        full = pipes.capacity() - 4
        pipe.sender.send_bytes(bytes(full))
        with pytest.raises(TimeoutError):
            pipe.sender.send_bytes(b"later", 0.01)  # nothing of it was written
        assert len(pipe.receiver.recv_bytes(1)) == full
        pipe.sender.send_bytes(b"now", 1)
        assert pipe.receiver.recv_bytes(1) == b"now"


def test_closed_ends() -> None:
    pipe = Pipe()
    pipe.receiver.close()
    for timeout in (None, 1):
        with pytest.raises(BrokenPipeError):
            pipe.sender.send_bytes(b"x", timeout)
    pipe.close()
    pipe.close()
    for use in (pipe.receiver.recv_bytes, pipe.sender.fileno, lambda: pipe.sender.send_bytes(b"")):
        with pytest.raises(ValueError, match="of a pipe is closed"):
            use()


def test_a_descriptor_in_use_is_closed_by_its_user() -> None:
    """Its number may belong to another file as soon as it is closed."""
    with Pipe() as pipe:
        fd = pipe.receiver.fileno()
        caught: list[bytes] = []
        thread = threading.Thread(target=lambda: caught.append(pipe.receiver.recv_bytes(DEADLINE)))
        thread.start()
        while not pipe.receiver._turn.locked():
            time.sleep(0.001)
        pipe.receiver.close()
        os.fstat(fd)  # still open
        pipe.sender.send_bytes(b"the last")
        thread.join()
        assert caught == [b"the last"]
        with pytest.raises(OSError):
            os.fstat(fd)


def test_bad_input() -> None:
    with Pipe() as pipe:
        with pytest.raises(ValueError, match="timeout=-1"):
            pipe.receiver.recv_bytes(-1)
        with pytest.raises(TypeError):
            pipe.sender.send_bytes("text")  # type: ignore[arg-type]
        with pytest.raises(TimeoutError):
            pipe.receiver.recv_bytes(0)


def test_the_capacity_is_what_the_system_says() -> None:
    capacity = pipes.capacity()
    assert capacity >= 512  # PIPE_BUF is at least that (POSIX)
    if sys.platform == "linux":
        import fcntl

        reading, writing = os.pipe()
        assert capacity == fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ)
        os.close(reading)
        os.close(writing)


# ---------------------------------------------------------------- processes


def send_all(sender: Sender, sizes: list[int]) -> None:
    for size in sizes:
        sender.send_bytes(bytes(size), DEADLINE)


def tear(sender: Sender) -> None:
    sender.send_bytes(b"whole")
    os.write(sender.fileno(), b"\0\0\1\0half")
    os.kill(os.getpid(), signal.SIGKILL)


def take_one_and_die(receiver: Receiver) -> None:
    receiver.recv_bytes(DEADLINE)
    os.kill(os.getpid(), signal.SIGKILL)


def send_by_path(path: str) -> None:
    with open_sender(path, DEADLINE) as sender:
        sender.send({"from": "another process"})


def test_a_child_sends_and_its_end_is_the_end_of_the_stream() -> None:
    sizes = [0, 10, 100_000]
    with Pipe() as pipe:
        child = SPAWN.Process(target=send_all, args=(pipe.sender, sizes))
        child.start()
        pipe.sender.close()
        assert [len(pipe.receiver.recv_bytes(DEADLINE)) for _ in sizes] == sizes
        with pytest.raises(EOFError):
            pipe.receiver.recv_bytes(DEADLINE)
        child.join()


def test_a_killed_sender_leaves_a_torn_frame() -> None:
    with Pipe() as pipe:
        child = SPAWN.Process(target=tear, args=(pipe.sender,))
        child.start()
        pipe.sender.close()
        assert pipe.receiver.recv_bytes(DEADLINE) == b"whole"
        with pytest.raises(EOFError, match="torn frame: .* 252 bytes"):
            pipe.receiver.recv_bytes(DEADLINE)
        child.join()


def test_a_killed_receiver_breaks_the_pipe() -> None:
    with Pipe() as pipe:
        child = SPAWN.Process(target=take_one_and_die, args=(pipe.receiver,))
        child.start()
        pipe.receiver.close()
        with pytest.raises(BrokenPipeError):
            for _ in range(10):
                pipe.sender.send_bytes(bytes(50_000), DEADLINE)
        child.join()


def test_a_named_pipe_joins_processes_by_its_path_and_is_removed() -> None:
    with NamedPipe() as fifo, open_receiver(fifo.path) as receiver:
        with pytest.raises(TimeoutError):
            receiver.recv_bytes(0.01)  # no sender yet is not the end
        child = SPAWN.Process(target=send_by_path, args=(fifo.path,))
        child.start()
        assert receiver.recv(DEADLINE) == {"from": "another process"}
        with pytest.raises(EOFError):
            receiver.recv_bytes(DEADLINE)
        child.join()
    assert not os.path.exists(os.path.dirname(fifo.path))


def test_a_receiver_without_a_timeout_waits_for_the_first_sender_too() -> None:
    with NamedPipe() as fifo, open_receiver(fifo.path) as receiver:
        sender = threading.Timer(0.05, send_by_path, args=(fifo.path,))
        sender.start()
        try:
            assert receiver.recv() == {"from": "another process"}
        finally:
            sender.join()


def test_nobody_reads_a_named_pipe() -> None:
    with NamedPipe() as fifo, pytest.raises(TimeoutError, match="nobody has opened"):
        open_sender(fifo.path, 0.02)


def test_where_there_are_no_fifos_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "mkfifo")
    with pytest.raises(NotImplementedError, match="Windows has named pipes of its own"):
        NamedPipe()
