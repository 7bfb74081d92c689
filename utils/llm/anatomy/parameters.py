"""Where the learnt numbers of a decoder are: counted in the model itself, part by part."""

from __future__ import annotations

from collections import Counter

from utils.core import plots
from utils.llm.decoder import Decoder

COLOURS = {"attention": plots.BLUE, "MLP": plots.GREEN, "norms": plots.VERMILION,
           "embedding": plots.ORANGE, "head": plots.PURPLE}  # fmt: skip


def part_of(name: str) -> str:
    """The part of the model that a parameter or module of this name belongs to."""
    words = {"self_attn": "attention", "mlp": "MLP", "norm": "norms", "embed_tokens": "embedding",
             "lm_head": "head"}  # fmt: skip
    return next(part for word, part in words.items() if word in name)


def by_layer(model: Decoder) -> dict[str, Counter[str]]:
    """Learnt numbers by layer ("embedding", "0", "1", …, "end"), then by part.

    A tied head is the embedding, and counts once.
    """
    layers = ["embedding", *map(str, range(model.config.layers)), "end"]
    counts: dict[str, Counter[str]] = {layer: Counter() for layer in layers}
    for name, parameter in model.named_parameters():  # names each tensor once
        words = name.split(".")
        edge = "embedding" if words[0] == "embed_tokens" else "end"
        layer = words[1] if words[0] == "layers" else edge
        counts[layer][part_of(name)] += parameter.numel()
    return counts


def total(counts: dict[str, Counter[str]]) -> Counter[str]:
    """By part."""
    return sum(counts.values(), Counter())


def plot(counts: dict[str, Counter[str]]) -> plots.Picture:
    """A bar for each layer, and the sums in the legend."""
    fig, ax = plots.figure(9.5, 3.4)
    parts, layers = total(counts), list(counts)
    bottom = [0.0] * len(layers)
    for part, count in sorted(parts.items(), key=lambda entry: list(COLOURS).index(entry[0])):
        heights = [layer[part] / 1e6 for layer in counts.values()]
        share = f"{part}: {count / 1e6:.4g} M, {100 * count / parts.total():.3g} %"
        ax.bar(range(len(layers)), heights, bottom=bottom, color=COLOURS[part], label=share)
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    ax.set_xticks(range(len(layers)), ["emb.", *layers[1:-1], "end"], fontsize=8)
    ax.set_xlabel("layer", fontsize=9)
    ax.set_title(f"millions of parameters, {parts.total() / 1e6:.1f} in all", loc="left")
    ax.legend(frameon=False, fontsize=9)
    return fig
