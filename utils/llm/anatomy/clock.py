"""Where the time of a decoder goes: the same modules in a prefill and in a step of decoding.

Hooks before and after each module read the clock. What attention does besides its four products
(rotation, cache, the scores) has no module of its own: it is the rest of `self_attn`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Annotated

import torch

from utils.core import machine, plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.workers import intra_op
from utils.llm import weights
from utils.llm.decoder import Cache, Decoder

PARTS = ("embedding", "norms", "q, k, v, o", "attention itself", "MLP", "head", "all else")
MODULES = {"embed_tokens": PARTS[0], "self_attn": PARTS[3], "mlp": PARTS[4], "lm_head": PARTS[5]}


def label(name: str) -> str | None:
    """What the time of a module of this name counts as: a part, a layer's number, or nothing."""
    last = name.rpartition(".")[2]
    if "self_attn." in name:
        return "q, k, v, o"
    if last.endswith("norm"):
        return "norms"
    return last if last.isdigit() else MODULES.get(last)


@dataclass(frozen=True)
class Phase:
    """A pass through the model: seconds by part, and of each layer; they add up to `seconds`."""

    tokens: int
    parts: dict[str, float]
    layers: tuple[float, ...]

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Anatomy:
    prefill: Phase
    decode: Phase  # one token


@contextmanager
def stopwatch(model: Decoder) -> Iterator[dict[str, float]]:
    """Seconds by `label` while the block runs."""
    spent: dict[str, float] = defaultdict(float)

    def begin(what: str, *_: object) -> None:
        spent[what] -= time.perf_counter()

    def end(what: str, *_: object) -> None:
        spent[what] += time.perf_counter()

    hooks = []
    for name, module in model.named_modules():
        if what := label(name):
            hooks.append(module.register_forward_pre_hook(partial(begin, what)))
            hooks.append(module.register_forward_hook(partial(end, what)))
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def measure(model: Decoder, tokens: torch.Tensor, cache: Cache) -> Phase:
    """One pass of (1, new) tokens: its time by part and layer. The last token goes to the head."""
    with stopwatch(model) as spent:
        start = time.perf_counter()
        model.lm_head(model.hidden(tokens, cache)[:, -1])
        whole = time.perf_counter() - start
    parts = {part: spent[part] for part in PARTS[:-1]}
    parts["attention itself"] -= parts["q, k, v, o"]
    parts["all else"] = whole - sum(parts.values())
    layers = tuple(spent[str(layer)] for layer in range(model.config.layers))
    return Phase(tokens.shape[1], parts, layers)


@experiment
def run(
    prompt: Annotated[int, Range(8, 1024, 8, label="tokens of prompt")] = 200,
    steps: Annotated[int, Range(1, 32, label="steps of decoding")] = 8,
    threads: Annotated[int, Range(1, machine.cores(), label="torch threads")] = machine.cores(),
) -> Anatomy:
    """Two prefills of the same prompt, the first to warm up; then steps. Medians by part."""
    model = weights.smollm2()
    tokens = torch.arange(1000, 1000 + prompt)[None]
    prefills, decodes = [], []
    with intra_op(threads), torch.inference_mode():
        for turn in range(2):
            checkpoint(turn, 3 + steps, "prefill")
            cache = Cache(model.config, 1, prompt + steps + 1)
            prefills.append(measure(model, tokens, cache))
        for step in range(steps + 1):
            checkpoint(2 + step, 3 + steps, "decode")
            decodes.append(measure(model, tokens[:, :1], cache))
    return Anatomy(prefills[-1], _middle(decodes[1:]))


def _middle(phases: list[Phase]) -> Phase:
    parts = {part: median(phase.parts[part] for phase in phases) for part in PARTS}
    layers = tuple(map(median, zip(*(phase.layers for phase in phases), strict=True)))
    return Phase(phases[0].tokens, parts, layers)


def plot(result: Anatomy) -> plots.Picture:
    """Left the parts of both phases, as shares; right each layer, in milliseconds a token."""
    fig, (left, right) = plots.figure(10, 3.8, cols=2)
    both = {"prefill": result.prefill, "decode": result.decode}
    for number, (name, phase) in enumerate(both.items()):
        color = plots.color(name)
        shares = [100 * seconds / phase.seconds for seconds in phase.parts.values()]
        rows = [place + 0.4 * (number - 0.5) for place in range(len(PARTS))]
        said = (
            f"{name}: {phase.tokens} token{'s' * (phase.tokens > 1)}, {1e3 * phase.seconds:.0f} ms"
        )
        bars = left.barh(rows, shares, 0.38, color=color, label=said)
        left.bar_label(bars, fmt="%.0f %%", fontsize=8, padding=3)
        each = [1e3 * seconds / phase.tokens for seconds in phase.layers]
        right.plot(each, "o-", color=color, markersize=4, label=name)
    left.set_yticks(range(len(PARTS)), PARTS)
    left.invert_yaxis()
    left.margins(x=0.15)
    left.set_title("% of the time, by part", loc="left")
    right.set_ylim(0)
    right.set_xlabel("layer", fontsize=9)
    right.set_title("milliseconds a token, by layer", loc="left")
    left.legend(frameon=False, fontsize=9, loc="lower right")
    right.legend(frameon=False, fontsize=9)
    left.grid(visible=False)
    return fig
