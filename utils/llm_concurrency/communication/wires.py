"""What carries a message from one process to another, and what it costs: α + β · bytes.

A message goes there and comes back, and half of that time is counted: unlike the streams of
`channel_costs`, so, as ranks wait for it. The line is fitted to the medians of a few rounds; fitted
again to rounds drawn at random from them (the bootstrap; Efron, "Bootstrap methods", 1979), it says
how far its two numbers can be trusted.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from typing import Annotated, Any

import numpy as np

from utils.core import bench, plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.threads.channels.channel_costs import MB, Cost, fit
from utils.threads.channels.ring import Ring

SIZES = (2**6, 2**12, 2**15, 2**18, 2**21)  # bytes
DEADLINE = 20.0  # seconds for any message
Ends = tuple[Any, Any]  # what one side sends with, and receives with
COLORS = {
    "pipe": plots.VERMILION,
    "local socket": plots.ORANGE,
    "TCP loopback": plots.PURPLE,
    "shared memory": plots.GREEN,
}


@dataclass(frozen=True)
class Wires:
    """`seconds[wire][i]`: one way, for a message of `SIZES[i]` bytes, in each round."""

    seconds: Mapping[str, tuple[tuple[float, ...], ...]]

    def cost(self, wire: str) -> Cost:
        return fit(SIZES, tuple(map(float, np.median(self.seconds[wire], axis=1))))

    def interval(self, wire: str, draws: int = 200) -> tuple[Cost, Cost]:
        """Between these two lie 90 of 100 fits to rounds drawn anew: first lows, then highs."""
        taken, dice = np.array(self.seconds[wire]), np.random.default_rng(0)
        rounds = dice.integers(taken.shape[1], size=(draws, *taken.shape))
        medians = np.median(np.take_along_axis(taken[None], rounds, axis=2), axis=2)
        fits = np.array([(c.per_message, c.per_megabyte) for c in (fit(SIZES, m) for m in medians)])
        low, high = np.quantile(fits, (0.05, 0.95), axis=0)
        return Cost(*low.tolist()), Cost(*high.tolist())


@contextmanager
def pipe() -> Iterator[tuple[Ends, Ends]]:
    there, back = (multiprocessing.Pipe(duplex=False) for _ in range(2))
    with there[0], there[1], back[0], back[1]:
        yield (there[1], back[0]), (back[1], there[0])


@contextmanager
def local_socket() -> Iterator[tuple[Ends, Ends]]:
    """Python's two-way pipe: a pair of UNIX sockets (on Windows, a named pipe)."""
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        yield (ours, ours), (theirs, theirs)


@contextmanager
def tcp() -> Iterator[tuple[Ends, Ends]]:
    """The way to another machine, only that it ends at this one (127.0.0.1).

    TCP holds small pieces back while earlier ones are not acknowledged, and the other side delays
    that by up to 40 ms (Nagle, RFC 896; delayed ACK, RFC 1122). Who waits for answers switches it
    off (tcp(7): TCP_NODELAY).
    """
    with (
        Listener(("127.0.0.1", 0)) as listener,
        Client(listener.address) as theirs,  # the system has room for one that waits
        listener.accept() as ours,
    ):
        for end in (ours, theirs):
            with socket.socket(fileno=os.dup(end.fileno())) as same:
                same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield (ours, ours), (theirs, theirs)


@contextmanager
def shared_memory() -> Iterator[tuple[Ends, Ends]]:
    with Ring() as there, Ring() as back:
        yield (there.sender, back.receiver), (back.sender, there.receiver)


WIRES: Mapping[str, Callable[[], Any]] = {
    "pipe": pipe,
    "local socket": local_socket,
    "TCP loopback": tcp,
    "shared memory": shared_memory,
}


@experiment
def run(rounds: Annotated[int, Range(3, 25)] = 9) -> Wires:
    """Send messages of all sizes there and back, over every wire in turn."""
    taken: dict[str, list[list[float]]] = {name: [[] for _ in SIZES] for name in WIRES}
    checkpoint(0, rounds, "starting a process")
    with echo() as ends:
        for round_ in range(-1, rounds):  # the first is a warm-up
            for place, size in enumerate(SIZES):
                message = bytes(size)
                for name, (sender, receiver) in ends.items():
                    checkpoint(max(0, round_), rounds, name)
                    seconds = _there_and_back(sender, receiver, message) / 2
                    if round_ >= 0:
                        taken[name][place].append(seconds)
    return Wires({name: tuple(map(tuple, sizes)) for name, sizes in taken.items()})


def _there_and_back(sender: Any, receiver: Any, message: bytes, times: int = 8) -> float:
    """Seconds of one; the mean of some, for a clock is coarse beside a small message."""
    start = time.perf_counter()
    for _ in range(times):
        sender.send_bytes(message)
        if len(_receive(receiver)) != len(message):
            raise AssertionError("another message came back")
    return (time.perf_counter() - start) / times


def _receive(receiver: Any) -> bytes:
    if not isinstance(receiver, Connection):
        return receiver.recv_bytes(DEADLINE)
    if not receiver.poll(DEADLINE):
        raise TimeoutError(f"no message within {DEADLINE:g} s")
    return receiver.recv_bytes()


@contextmanager
def echo() -> Iterator[dict[str, Ends]]:
    """Our ends of all wires to a new process, which sends back what it gets; it ends, too."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as opened:
        pairs = {name: opened.enter_context(make()) for name, make in WIRES.items()}
        theirs = {name: pair[1] for name, pair in pairs.items()}
        process = context.Process(target=_echo, args=(theirs,), name="echo", daemon=True)
        process.start()
        try:
            for ends in theirs.values():
                for end in ends:
                    if isinstance(end, Connection):
                        end.close()  # our copy: else we would not see that the process has died
            yield {name: pair[0] for name, pair in pairs.items()}
        finally:
            process.kill()  # it holds nothing that needs care
            process.join()


def _echo(wires: dict[str, Ends]) -> None:
    """One thread a wire, which waits there until the other side is gone."""
    import threading

    def serve(sender: Any, receiver: Any) -> None:
        with suppress(EOFError, OSError, TimeoutError):
            while True:
                sender.send_bytes(receiver.recv_bytes())

    threads = [threading.Thread(target=serve, args=ends) for ends in wires.values()]
    for thread in threads:
        thread.start()


def plot(result: Wires) -> plots.Picture:
    """Seconds one way over the size with the fitted lines, and the fits with their intervals."""
    fig, (ax, start, rate) = plots.figure(10.5, 3.4, cols=3, width_ratios=[5, 3, 3])
    names = list(result.seconds)
    for name in names:
        medians = 1e6 * np.median(result.seconds[name], axis=1)
        ax.plot(SIZES, medians, "o", color=COLORS[name], markersize=5, label=name)
        sizes = np.geomspace(SIZES[0], SIZES[-1], 60)
        ax.plot(sizes, [1e6 * result.cost(name).of(s) for s in sizes], color=COLORS[name], lw=1)
    ax.set(xscale="log", yscale="log")
    ax.set_xticks([2**6, 2**12, 2**18], ["64 B", "4 KiB", "256 KiB"])
    ax.minorticks_off()
    ax.set_title("µs one way", loc="left")
    ax.legend(frameon=False, fontsize=8)
    panels = (
        (start, "α: µs a message", [1e6 * result.cost(n).per_message for n in names], 1e6, 0),
        (rate, "β: µs a MB", [1e6 * result.cost(n).per_megabyte for n in names], 1e6, 1),
    )
    for axis, title, values, unit, part in panels:
        for row, (name, value) in enumerate(zip(names, values, strict=True)):
            ends = [(c.per_message, c.per_megabyte)[part] * unit for c in result.interval(name)]
            axis.barh(row, value, color=COLORS[name], height=0.6)
            axis.plot(ends, [row, row], color=plots.INK, linewidth=2)
        axis.set_yticks(range(len(names)), names if part == 0 else [""] * len(names))
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        axis.set_xlim(0)
        axis.set_title(title, loc="left")
    return fig


def about(result: Wires, wire: str) -> str:
    """The fit in words, with its interval."""
    cost, (low, high) = result.cost(wire), result.interval(wire)
    starts = " to ".join(bench.seconds(max(c.per_message, 1e-9)) for c in (low, high))
    rates = " to ".join(f"{MB / 1e9 / max(c.per_megabyte, 1e-9):.2g}" for c in (high, low))
    return (
        f"{wire:13} α = {bench.seconds(max(cost.per_message, 1e-9))} ({starts}), "
        f"1/β = {MB / 1e9 / max(cost.per_megabyte, 1e-9):.2g} GB/s ({rates})"
    )
