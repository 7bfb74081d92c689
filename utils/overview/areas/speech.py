"""Real-time speech (S1.3-e): features of many voices, each due 20 ms after its sound arrived.

A recogniser hears 25 ms frames, a new one every 10 ms, and turns each into 80 log-mel numbers
(Davis & Mermelstein, 1980, without their cosine transform). Here a frame must be done 20 ms
after its last sample, on the wall clock: throughput is not enough, a late frame is a miss.
**The sound is synthetic**: a buzz with moving pitch, two resonances and pauses.

While the work that arrives is less than the workers can do (load below 1), next to nothing is
late. Above 1 the backlog grows without bound: nobody recovers, and adding workers up to the
number of cores is what helps. `frames_back` is how much each hop computes anew, as a word
spotter does that looks at its whole window every time (150 is 1.5 seconds). With 1 a task is a
few small operations: Python is most of it, the GIL lets one worker at a time do that, and a
second worker can make things slower. A larger task spends more of its time in kernels that
release the GIL, and there workers help.
"""

from __future__ import annotations

import functools
import threading
import time
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.core import machine, plots
from utils.core.experiment import Range, checkpoint, experiment, gather
from utils.core.trace import Recorder, Trace, now
from utils.core.workers import crew, intra_op, lanes

RATE, FRAME, HOP, MELS = 16_000, 400, 160, 80  # samples a second, 25 ms, 10 ms, numbers a frame
DEADLINE = 0.020  # seconds after the frame's arrival
HOPS = 50  # hops a run: half a second of sound
_PAST = 150  # hops that were heard before the run begins
_PATIENCE = 60.0  # seconds until a run is given up


class Due(NamedTuple):
    """A hop of a stream and when its last sample arrived, in ns of `now()`."""

    stream: int
    hop: int
    arrived: int


@dataclass(frozen=True)
class Stream:
    """One run: how late each frame was and what it holds."""

    workers: int
    latency: np.ndarray  # seconds from arrival to features, [streams, HOPS]
    features: np.ndarray  # float32 [streams, HOPS, MELS]
    trace: Trace

    @property
    def missed(self) -> float:
        """Share of the frames that were done after their deadline."""
        return float((self.latency > DEADLINE).mean())

    @property
    def work(self) -> float:
        """Seconds the workers spent on frames, added up."""
        return self.trace.total("compute") + self.trace.total("late")


@dataclass(frozen=True)
class ListenResult:
    """The same streams with one worker and with all."""

    one: Stream
    many: Stream
    error: float  # largest |streamed - computed offline| of any feature
    data: str = "synthetic sound: a buzz with moving pitch, resonances and pauses"

    @property
    def task(self) -> float:
        """Mean seconds that one worker, alone, needed for a frame."""
        return self.one.work / self.one.latency.size

    def load(self, run: Stream) -> float:
        """Work arriving over work that can be done; above 1 the backlog grows."""
        streams = len(run.latency)
        return streams * self.task / (HOP / RATE) / min(run.workers, machine.cores())

    def theory(self, run: Stream) -> float:
        """Share missed if work flowed like water: nothing up to load 1, then from when on?

        At load r > 1 a frame that arrives at t waits (r - 1) t; it is late once that and its
        own work pass the deadline.
        """
        load = self.load(run)
        if load <= 1:
            return float(self.task > DEADLINE)
        on_time = max(0.0, DEADLINE - self.task) / (load - 1)
        return max(0.0, 1 - on_time / (HOPS * HOP / RATE))


@experiment
def listen(
    workers: Annotated[int, Range(1, 8)] = 2,
    streams: Annotated[int, Range(1, 120, label="people speaking")] = 20,
    frames_back: Literal[1, 50, 150] = 150,
) -> ListenResult:
    """Compute features of `streams` live voices, on one worker and on `workers`."""
    sound = voices(streams)
    with intra_op(1):
        offline = log_mel(sound, HOPS)
        runs = [
            _stream(sound, count, frames_back, done)
            for done, count in enumerate(dict.fromkeys((1, workers)))
        ]
    error = max(float(np.abs(run.features - offline.numpy()).max()) for run in runs)
    return ListenResult(runs[0], runs[-1], error)


def log_mel(sound: Tensor, frames: int) -> Tensor:
    """Features `[..., frames, 80]` of the last `frames` frames of `sound` `[..., samples]`."""
    recent = sound[..., -(FRAME + (frames - 1) * HOP) :].unfold(-1, FRAME, HOP)
    power = torch.fft.rfft(recent * torch.hann_window(FRAME), 512).abs().square()
    return (power @ _mel_bank()).clamp(min=1e-10).log()


def _stream(sound: Tensor, workers: int, frames_back: int, run: int) -> Stream:
    """Let the frames arrive on the clock while `workers` compute them."""
    latency = np.full((len(sound), HOPS), np.inf)
    features = np.zeros((len(sound), HOPS, MELS), np.float32)
    inbox: SimpleQueue[Due | None] = SimpleQueue()
    recorder, stopped = Recorder(), threading.Event()

    def serve() -> None:
        lane = threading.current_thread().name
        while not stopped.is_set() and (due := inbox.get(timeout=_PATIENCE)) is not None:
            start = now()
            heard = _heard(sound[due.stream], due.hop)
            # Each frame has its own place in the result: no order of workers can mix them up.
            features[due.stream, due.hop] = log_mel(heard, frames_back)[-1]
            end = now()
            latency[due.stream, due.hop] = (end - due.arrived) / 1e9
            late = end - due.arrived > DEADLINE * 1e9
            recorder.add(lane, "late" if late else "compute", "features", start, end)

    with crew(workers) as pool:
        servers = [pool.submit(serve) for _ in range(workers)]
        try:
            _speak(inbox, len(sound), run)
            for _ in servers:
                inbox.put(None)  # no more: each worker takes one of these and goes home
            gather(servers, timeout=_PATIENCE, note="finishing the backlog")
        finally:
            stopped.set()
            for _ in servers:
                inbox.put(None)
    return Stream(workers, latency, features, recorder.trace())


def _speak(inbox: SimpleQueue[Due | None], streams: int, run: int) -> None:
    """Deliver every frame at its time, the streams evenly staggered within a hop.

    A frame's arrival is when it was due here, even if this thread comes late: otherwise a
    machine too busy to deliver would look punctual ("coordinated omission").
    """
    start, hop_ns = now() + 10_000_000, HOP * 10**9 // RATE
    for hop in range(HOPS):
        checkpoint(run * HOPS + hop, 2 * HOPS, "listening")
        for stream in range(streams):
            arrives = start + hop * hop_ns + stream * hop_ns // streams
            if (early := arrives - now()) > 0:
                time.sleep(early / 1e9)
            inbox.put(Due(stream, hop, arrives))


def _heard(sound: Tensor, hop: int) -> Tensor:
    """The part of a stream that has arrived with its frame number `hop`."""
    return sound[: FRAME + (_PAST + hop) * HOP]


def voices(streams: int) -> Tensor:
    """Sound `[streams, samples]`: a pulse train with moving pitch through two resonances."""
    samples = FRAME + (_PAST + HOPS - 1) * HOP
    generator = np.random.default_rng(0)
    t = np.arange(samples) / RATE
    out = np.zeros((streams, samples), np.float32)
    for sound in out:
        pitch = generator.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * 3 * t))
        phase = 2 * np.pi * np.cumsum(pitch) / RATE
        first, second = generator.uniform(300, 800), generator.uniform(900, 2500)
        partials = range(1, 20)
        for k in partials:  # each partial is as loud as the two resonances let it through
            gain = sum(1 / (1 + ((k * pitch - f) / 120) ** 2) for f in (first, second))
            sound += gain * np.sin(k * phase)
        sound *= np.sin(2 * np.pi * generator.uniform(2, 4) * t).clip(min=0)  # syllables, pauses
        sound += generator.normal(0, 0.01, samples)
    return torch.from_numpy(out)


@functools.cache
def _mel_bank() -> Tensor:
    """Triangular filters `[257, 80]`, evenly spaced on the mel scale m = 2595 log10(1 + f/700)."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, MELS + 2) / 2595) - 1)
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    f = np.linspace(0, RATE / 2, 257)[:, None]
    bank = np.minimum((f - low) / (middle - low), (high - f) / (high - middle)).clip(min=0)
    return torch.from_numpy(bank.astype(np.float32))


def plot(result: ListenResult) -> plots.Picture:
    """Who computed which frames when, how late they were, and the share that missed."""
    fig, (left, middle, right) = plots.figure(11, 3.6, cols=3, width_ratios=[1.8, 1.5, 1.1])
    many = result.many
    streams = len(many.latency)
    # The run of one worker alone is drawn above the other, both from their own beginning.
    shift = many.trace.start - result.one.trace.start
    alone = Trace(
        span._replace(lane="alone", start=span.start + shift, end=span.end + shift)
        for span in result.one.trace.spans
    )
    rows = ["alone", *lanes(many.workers)] if many.workers > 1 else ["alone"]
    both = Trace.merge([alone, many.trace])
    plots.timeline(left, both, lanes=rows, title=f"{streams} voices (synthetic)")
    runs = {"1 worker": (result.one, plots.GREY)}
    if many.workers > 1:
        runs[f"{many.workers} workers"] = (many, plots.color("measured"))
    hop = HOP / RATE
    arrived = hop * (np.arange(HOPS) + np.arange(streams)[:, None] / streams)
    for column, (run, colour) in enumerate(runs.values()):
        middle.plot(arrived.ravel(), 1e3 * run.latency.ravel(), ".", color=colour, markersize=2)
        p50, p99 = 1e3 * np.percentile(run.latency, (50, 99))
        right.bar(column, 100 * run.missed, width=0.6, color=colour)
        theory = 100 * result.theory(run)
        right.plot([column - 0.38, column + 0.38], [theory] * 2, "--", color=plots.INK)
        right.text(
            column, 109, f"{run.missed:.0%} missed\nload {result.load(run):.2f}\n"
            f"P50 {p50:.0f} ms\nP99 {p99:.0f} ms", fontsize=8, ha="center", va="bottom",
        )  # fmt: skip
    middle.axhline(1e3 * DEADLINE, color=plots.VERMILION, linewidth=1.2)
    middle.text(
        0.99, 1e3 * DEADLINE, "deadline", color=plots.VERMILION, fontsize=8, ha="right",
        va="top", transform=middle.get_yaxis_transform(),
    )  # fmt: skip
    middle.set_yscale("log")
    middle.set_xlabel("seconds: when the frame arrived", fontsize=9)
    middle.set_title("Milliseconds until it was done", loc="left")
    right.set_xticks(range(len(runs)), list(runs))
    right.set_xlim(-0.6, len(runs) - 0.4)
    right.set_ylim(0, 170)
    right.set_yticks(range(0, 101, 25))
    right.set_title("Missed, % (dashes: theory)", loc="left")
    plots.legend(
        fig, ["compute", "late"], {"compute": "frame in time", "late": "frame past its deadline"}
    )
    return fig
