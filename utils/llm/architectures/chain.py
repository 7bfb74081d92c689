"""Why the Transformer took over: a recurrent network reads in a chain, a Transformer in layers.

A layer of the recurrent network needs its own result for the character before, so a text of T
characters is T steps one after another, in training too. A layer of the Transformer takes all T at
once. In writing both are chains; then the recurrent network has the smaller state (Vaswani et al.,
arXiv:1706.03762, section 4 and table 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from utils.core import bench, plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.trace import Recorder, Span, Trace
from utils.core.workers import intra_op
from utils.llm.architectures import characters
from utils.llm.architectures.learning import next_character
from utils.llm.architectures.networks import Recurrent, make
from utils.llm.decoder import Cache, Config, Decoder, rotation

WIDE = Config(
    characters.SIZE, layers=2, hidden=256, heads=4, kv_heads=4, head_dim=64, intermediate=512
)
LANES = ("RNN reads", "Transformer reads", "RNN writes", "Transformer writes")
CHARACTERS = 1024  # of a training step, whatever the length of its windows


@dataclass(frozen=True)
class Chain:
    """What each of the four lanes did; every lane begins at 0."""

    trace: Trace
    characters: int


@experiment
@torch.inference_mode()
def run(
    length: Annotated[int, Range(4, 256, 4, label="characters")] = 32,
) -> Chain:
    """Both read `length` characters, then both write as many: one thread, a span a step."""
    rnn, decoder = make(Recurrent, WIDE), make(Decoder, WIDE)
    text = characters.manual().exam(1, length)
    works: tuple[Callable[[Recorder, str], None], ...] = (
        lambda recorder, lane: _read_step_by_step(rnn, text, recorder, lane),
        lambda recorder, lane: _read_in_layers(decoder, text, recorder, lane),
        lambda recorder, lane: _write(_rnn_writer(rnn, text), length, recorder, lane),
        lambda recorder, lane: _write(_writer(decoder, text, length), length, recorder, lane),
    )
    traces = []
    with intra_op(1):
        for done, (lane, work) in enumerate(zip(LANES, works, strict=True)):
            checkpoint(done, len(LANES), lane)
            work(Recorder(), lane)  # warm up
            recorder = Recorder()
            work(recorder, lane)
            traces.append(_from_zero(recorder.trace()))
    return Chain(Trace.merge(traces), length)


def _read_step_by_step(rnn: Recurrent, text: torch.Tensor, recorder: Recorder, lane: str) -> None:
    state = None
    for place in range(text.shape[1]):
        with recorder.span("forward", f"character {place}", lane=lane):
            _, state = rnn.read(text[:, place : place + 1], state)


def _read_in_layers(decoder: Decoder, text: torch.Tensor, recorder: Recorder, lane: str) -> None:
    count = text.shape[1]
    visible = torch.ones(count, count, dtype=torch.bool).tril()
    turn = rotation(torch.arange(count), decoder.config, torch.float32)
    x = decoder.embed_tokens(text)
    for number, block in enumerate(decoder.layers):
        with recorder.span("forward", f"layer {number}", lane=lane):
            x = block(x, turn, visible, None)
    with recorder.span("forward", "head", lane=lane):
        decoder.lm_head(decoder.norm(x))


Writer = Callable[[torch.Tensor], torch.Tensor]  # the last character in, (1, 1); scores out


def _rnn_writer(rnn: Recurrent, text: torch.Tensor) -> Writer:
    state = rnn.read(text)[1]

    def write(token: torch.Tensor) -> torch.Tensor:
        nonlocal state
        scores, state = rnn.read(token, state)
        return scores

    return write


def _writer(decoder: Decoder, text: torch.Tensor, more: int) -> Writer:
    cache = Cache(decoder.config, 1, text.shape[1] + more)
    decoder(text, cache)
    return lambda token: decoder(token, cache)


def _write(write: Writer, count: int, recorder: Recorder, lane: str) -> None:
    token = torch.zeros(1, 1, dtype=torch.long)
    for place in range(count):
        with recorder.span("decode", f"character {place}", lane=lane):
            token = write(token).argmax(-1)


def _from_zero(trace: Trace) -> Trace:
    return Trace(
        Span(s.lane, s.category, s.name, s.start - trace.start, s.end - trace.start)
        for s in trace.spans
    )


def plot(result: Chain) -> plots.Picture:
    """A bar a step: the length of a row is the time of the whole chain."""
    fig, ax = plots.figure(10, 2.9)
    plots.timeline(
        ax, result.trace, lanes=LANES, title=f"{result.characters} characters, one thread"
    )
    plots.legend(fig, ["forward", "decode"], {"forward": "reads", "decode": "writes"})
    return fig


@dataclass(frozen=True)
class Lengths:
    """Seconds of a training step by name, for windows of so many characters each."""

    lengths: tuple[int, ...]
    seconds: dict[str, tuple[float, ...]]
    threads: int


@experiment
def lengths(longest: Literal[128, 512, 1024] = 512, threads: Literal[1, 2, 4, 8] = 1) -> Lengths:
    """Forward and backward over 1024 characters: many short windows, or few long ones."""
    models = {"RNN (GRU)": make(Recurrent, WIDE), "Transformer": make(Decoder, WIDE)}
    sizes = tuple(size for size in (8, 32, 128, 512, 1024) if size <= longest)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with intra_op(threads):
        for size in sizes:
            windows = characters.manual().exam(CHARACTERS // size, size + 1)
            works = {
                name: lambda model=model, windows=windows: next_character(model, windows).backward()
                for name, model in models.items()
            }
            for name, sample in bench.compare(works, repeats=2).items():
                seconds[name].append(sample.median)
    return Lengths(sizes, {name: tuple(times) for name, times in seconds.items()}, threads)


def plot_lengths(result: Lengths) -> plots.Picture:
    """The same number of characters in each point."""
    fig, ax = plots.figure(7.5, 3.4)
    for (name, times), color in zip(
        result.seconds.items(), (plots.ORANGE, plots.BLUE), strict=True
    ):
        ax.semilogx(result.lengths, times, marker="o", color=color, label=name)
    ax.set_xticks(result.lengths, [f"{CHARACTERS // n} × {n}" for n in result.lengths])
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    ax.set_xlabel("windows × characters each", fontsize=9)
    ax.set_ylabel("seconds of a training step", fontsize=9)
    ax.legend(frameon=False, fontsize=9)
    ax.set_title(f"{CHARACTERS} characters a step, threads: {result.threads}", loc="left")
    return fig
