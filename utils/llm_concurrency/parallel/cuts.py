"""Four ways to cut the same work: by heads, by texts, by tokens, and by layers.

The work is attention (softmax(q kᵀ / √head_dim) v) of a layer of the real model. A worker that has
some heads, some texts or some queries needs nothing from the others. Layers are different: what
enters one is what leaves the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment, gather
from utils.core.trace import Recorder, Trace, now
from utils.core.workers import crew, intra_op, lanes
from utils.llm import weights
from utils.llm.decoder import Decoder, rotate, rotation
from utils.llm_concurrency.parallel.prompts import prompts

DEADLINE = 60  # s
DIMENSIONS = {"heads": 1, "batch": 0, "sequence": 2}  # of q, and of the result


def texts(batch: int, tokens: int) -> Tensor:
    """The course's questions, over and over: (batch, tokens)."""
    return torch.tensor([(prompt * tokens)[:tokens] for prompt in prompts(batch)])


def surroundings(model: Decoder, read: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """What a block needs beside its input: the turn of each position, and who sees whom."""
    tokens = read.shape[1]
    turn = rotation(torch.arange(tokens), model.config, model.norm.weight.dtype)
    return turn, torch.ones(tokens, tokens, dtype=torch.bool).tril()


@torch.inference_mode()
def enter(model: Decoder, read: Tensor, layer: int) -> tuple[Tensor, ...]:
    """q, k and v of `layer` for these (batch, tokens): (batch, heads or kv_heads, tokens, dim)."""
    turn, visible = surroundings(model, read)
    x = model.embed_tokens(read)
    for block in model.layers[:layer]:
        x = block(x, turn, visible, None)
    own, x = model.layers[layer].self_attn, model.layers[layer].input_layernorm(x)
    q, k, v = (
        project(x).unflatten(-1, (-1, model.config.head_dim)).transpose(1, 2)
        for project in (own.q_proj, own.k_proj, own.v_proj)
    )
    return rotate(q, *turn), rotate(k, *turn), v


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What the queries, of the last tokens that `k` and `v` have, make of all up to themselves."""
    places = torch.arange(k.shape[2])
    visible = places <= places[k.shape[2] - q.shape[2] :, None]
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)


def part(cut: str, some: slice, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    """The attention of some heads (of keys and values), texts of the batch, or tokens."""
    if cut == "heads":  # with a head of keys and values go the query heads that share it
        each = q.shape[1] // k.shape[1]
        mine = slice(some.start * each, some.stop * each)
        return partial(attend, q[:, mine], k[:, some], v[:, some])
    if cut == "batch":  # texts do not see each other
        return partial(attend, q[some], k[some], v[some])
    # queries do not either; but each needs keys and values from the first token on
    return partial(attend, q[:, :, some], k[:, :, : some.stop], v[:, :, : some.stop])


def stretches(total: int, workers: int) -> list[slice]:
    """`total` things in a row for at most as many workers."""
    cut = torch.arange(total).tensor_split(workers)
    return [slice(int(some[0]), int(some[-1]) + 1) for some in cut if len(some)]


@dataclass(frozen=True)
class Cuts:
    """By the name of the cut: who worked when, and the largest difference from the whole."""

    workers: int
    traces: dict[str, Trace]
    errors: dict[str, float]


@experiment
def run(
    workers: Annotated[int, Range(1, 3)] = 2,
    batch: Annotated[int, Range(1, 8, label="texts in the batch")] = 2,
    tokens: Annotated[int, Range(16, 1024, 16, label="tokens of a text")] = 384,
    layer: Annotated[int, Range(0, 29)] = 4,
) -> Cuts:
    """Cut one layer's attention three ways; and as many whole layers, one a worker."""
    model, read = weights.smollm2(), texts(batch, tokens)
    traces, errors = {}, {}
    with intra_op(1), crew(workers) as pool, torch.inference_mode():
        q, k, v = enter(model, read, layer)
        whole = attend(q, k, v)
        totals = {"heads": k.shape[1], "batch": batch, "sequence": tokens}
        for done, (name, dimension) in enumerate(DIMENSIONS.items()):
            checkpoint(done, len(DIMENSIONS) + 1, name)
            recorder = Recorder()
            futures = [
                pool.submit(_work, recorder, lane, part(name, some, q, k, v))
                for lane, some in zip(
                    lanes(workers), stretches(totals[name], workers), strict=False
                )
            ]
            made = torch.cat(gather(futures, timeout=DEADLINE), dimension)
            traces[name], errors[name] = recorder.trace(), (made - whole).abs().max().item()
        checkpoint(len(DIMENSIONS), len(DIMENSIONS) + 1, "layers")
        recorder, (turn, visible) = Recorder(), surroundings(model, read)
        whole = model.embed_tokens(read)
        before: Future[Tensor] = Future()
        before.set_result(whole)
        for lane, block in zip(lanes(workers), model.layers, strict=False):
            do = partial(block, turn=turn, visible=visible, cache=None)
            before = pool.submit(_work, recorder, lane, do, before)
        (made,) = gather([before], timeout=DEADLINE)
        for block in model.layers[:workers]:
            whole = block(whole, turn, visible, None)
        traces["layers"], errors["layers"] = recorder.trace(), (made - whole).abs().max().item()
    return Cuts(workers, traces, errors)


def _work(
    recorder: Recorder, lane: str, do: Callable[..., Tensor], before: Future[Tensor] | None = None
) -> Tensor:
    """`do`, with what the worker before makes, if there is one."""
    torch.set_num_threads(1)
    asked = now()
    came = () if before is None else (before.result(DEADLINE),)
    start = now()
    with torch.inference_mode():  # a matter of each thread
        made = do(*came)
    recorder.add(lane, "queue", "waits for the layer before", asked, start)
    recorder.add(lane, "compute", "its part", start, now())
    return made


def plot(result: Cuts) -> plots.Picture:
    """A timeline for each cut; the layers have a scale of their own."""
    fig, axes = plots.figure(10, 2.5 + 0.5 * result.workers, 2, 2)
    until = 1.05 * max(result.traces[name].duration for name in DIMENSIONS)
    for ax, (name, spans) in zip(axes.flat, result.traces.items(), strict=True):
        title = f"{name} (largest difference {result.errors[name]:.0e})"
        end = until if name in DIMENSIONS else 1.05 * spans.duration
        plots.timeline(ax, spans, lanes=lanes(result.workers), title=title, until=end)
    for ax in axes[0]:
        ax.set_xlabel("")
    names = {"compute": "computes its part", "queue": "waits for the layer before"}
    plots.legend(fig, list(names), names)
    return fig
