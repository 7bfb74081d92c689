"""The trained CNN, pruned and compressed in each way, as variants to be measured side by side."""

from __future__ import annotations

from torch import nn

from utils.deep_learning import models
from utils.deep_learning.acceleration import (
    low_rank,
    measure,
    prune,
    semi_structured,
    sharing,
    sparse,
    structured,
)
from utils.deep_learning.acceleration.measure import Variant


def variants(
    model: models.SmallCNN, *, zeros: float = 0.9, kept: float = 0.5, rank: int = 12, bits: int = 4
) -> dict[str, Variant]:
    """For the Pareto picture: `model` itself first, then what became of it; none shares a tensor.

    The share of zeros and the channels kept are fine-tuned for an epoch (a second each, once a
    process); the 2:4 pattern costs so little that it stays as cut.
    `bytes` count what a file or an idle model holds. Where no kernel here reads the format (CSR in
    a convolution, 2:4, a codebook), the answers come from the decoded, dense weights, and `macs`
    and time are the dense ones.
    """
    holey = prune.pruned(model, zeros, "global", 1)
    half = prune.masked(model, {"fc1": semi_structured.two_of_four(model.fc1.weight)})
    decoded, values = sharing.shared(model, bits)
    return {
        "float32": measure.of(model),
        f"{zeros:.0%} zeros": stored(holey, as_csr(holey)),
        "2:4 in fc1": stored(half, {"fc1": semi_structured.pack(half.fc1.weight).nbytes}),
        f"{kept:.0%} of channels": measure.of(structured.thinned(model, kept, 1)),
        f"rank {rank}": measure.of(low_rank.narrowed(model, rank)),
        f"{2**bits} values": stored(decoded, {name: v.nbytes for name, v in values.items()}),
    }


def stored(model: nn.Module, weights: dict[str, int]) -> Variant:
    """`model` as a variant some of whose weights, by layer, are stored in so many bytes."""
    saved = sum(model.get_submodule(name).weight.nbytes - n for name, n in weights.items())
    return Variant(model, measure.stored_bytes(model) - saved, measure.multiply_adds(model))


def as_csr(model: nn.Module) -> dict[str, int]:
    """Bytes of each layer's weight as CSR with int32 indices, or dense where that is less."""
    layers = prune.weighted(model).items()
    sizes = {name: (sparse.CSR.of(layer.weight.flatten(1)).nbytes, layer) for name, layer in layers}
    return {name: min(size, layer.weight.nbytes) for name, (size, layer) in sizes.items()}
