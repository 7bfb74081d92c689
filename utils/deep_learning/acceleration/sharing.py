"""Weight sharing: a layer's weights may take 2^bits values only; store which, not what.

k-means finds the values, the *codebook*, and each weight becomes an index of a few bits (Han, Mao
and Dally, "Deep Compression", 2016, who start from evenly spaced values, as here). Unlike integers
with a scale, the values need not be evenly spaced. To multiply, look them up again: sharing alone
saves bytes, not work.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from utils.core import plots
from utils.core.experiment import Range, checkpoint, experiment
from utils.core.workers import intra_op
from utils.deep_learning import digits, models, recipe
from utils.deep_learning.acceleration import prune

ROUNDS = 30  # of k-means at most; it ends when no weight moves


@dataclass(frozen=True)
class Shared:
    """A tensor of `shape` as a codebook (2^bits,) and the packed indices, uint8."""

    codebook: Tensor
    packed: Tensor
    shape: torch.Size

    @property
    def bits(self) -> int:
        return (len(self.codebook) - 1).bit_length()

    @property
    def nbytes(self) -> int:
        return self.codebook.nbytes + self.packed.nbytes

    @property
    def indices(self) -> Tensor:
        """Which value each weight has: (n,), uint8."""
        return unpack(self.packed, self.bits, self.shape.numel())

    def decode(self) -> Tensor:
        return self.codebook[self.indices.long()].view(self.shape)


def share(weight: Tensor, bits: int) -> Shared:
    """Give `weight` at most 2^bits values. ValueError: not 1 to 8 bits."""
    if not 1 <= bits <= 8:
        raise ValueError(f"bits={bits} is not allowed: give 1 to 8")
    codebook, indices = cluster(weight.detach().flatten(), 2**bits)
    return Shared(codebook, pack(indices, bits), weight.shape)


def cluster(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """k-means of (n,) numbers: the centres (count,), ascending, and each one's nearest (n,), int64.

    On a line, the border between two centres is half-way between them.
    """
    centres = torch.linspace(values.min().item(), values.max().item(), count, dtype=values.dtype)
    nearest = torch.full(values.shape, -1)
    for _ in range(ROUNDS):
        before, nearest = nearest, torch.bucketize(values, (centres[1:] + centres[:-1]) / 2)
        if nearest.equal(before):
            break
        members = nearest.bincount(minlength=count)
        sums = nearest.bincount(values, minlength=count).to(values.dtype)
        centres = torch.where(members > 0, sums / members.clamp(min=1), centres)
    return centres, torch.bucketize(values, (centres[1:] + centres[:-1]) / 2)


def pack(indices: Tensor, bits: int) -> Tensor:
    """(n,) numbers below 2^bits → ⌈n · bits / 8⌉ bytes, uint8, without a gap between them."""
    digits_ = indices.numpy().astype(np.uint8)[:, None] >> np.arange(bits, dtype=np.uint8) & 1
    return torch.from_numpy(np.packbits(digits_, bitorder="little"))


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """What `pack` was given: (count,), uint8."""
    digits_ = np.unpackbits(packed.numpy(), count=count * bits, bitorder="little")
    weights = (1 << np.arange(bits)).astype(np.uint8)
    return torch.from_numpy((digits_.reshape(count, bits) * weights).sum(1, dtype=np.uint8))


def shared(model: nn.Module, bits: int) -> tuple[nn.Module, dict[str, Shared]]:
    """A copy of `model` with shared weights, decoded, and how each layer's weight is stored."""
    decoded = copy.deepcopy(model)
    stored = {}
    for name, layer in prune.weighted(decoded).items():
        stored[name] = share(layer.weight, bits)
        with torch.no_grad():
            layer.weight.copy_(stored[name].decode())
    return decoded, stored


@dataclass(frozen=True)
class Result:
    """By bits a weight: accuracy, 0 to 1, and bytes of all weights; `fc1` at the chosen `bits`."""

    bits: int
    accuracy: dict[int, float]
    nbytes: dict[int, int]
    weights: Tensor
    fc1: Shared


@experiment
def run(bits: Annotated[int, Range(1, 8, label="bits a weight")] = 4) -> Result:
    """Share the weights of the trained CNN's layers, 2 to 256 values a layer."""
    model, held_out = recipe.trained(), digits.load()[1]
    accuracy, nbytes = {}, {}
    with intra_op(1):  # so small a network gains nothing by more threads
        for each in range(1, 9):
            checkpoint(each, 8, "sharing")
            decoded, stored = shared(model, each)
            accuracy[each] = models.accuracy(decoded, held_out)
            nbytes[each] = sum(layer.nbytes for layer in stored.values())
    return Result(bits, accuracy, nbytes, model.fc1.weight, share(model.fc1.weight, bits))


def plot(result: Result) -> plots.Picture:
    """Left, right answers and size over bits; right, where the shared values lie."""
    fig, (curve, values) = plots.figure(10, 3.6, cols=2)
    right = {bits: 100 * accuracy for bits, accuracy in result.accuracy.items()}
    full = sum(layer.weight.nbytes for layer in prune.weighted(recipe.trained()).values())
    size = {bits: 100 * nbytes / full for bits, nbytes in result.nbytes.items()}
    curve.plot(right.keys(), right.values(), "o-", color=plots.BLUE, label="right answers")
    curve.plot(size.keys(), size.values(), "s-", color=plots.PURPLE, label="bytes of the weights")
    curve.axvline(result.bits, color=plots.GREY, linewidth=1)
    curve.set(xlabel="bits a weight", ylabel="%", ylim=(0, 104))
    curve.legend(frameon=False, fontsize=9, loc="center right")
    heights, _, _ = values.hist(result.weights.flatten().numpy(), 120, color=plots.SKY)
    places, below = result.fc1.codebook.numpy(), -0.06 * max(heights)
    values.plot(places, [below] * len(places), "|", color=plots.VERMILION, markersize=10)
    values.set_ylim(2 * below, None)
    values.set(xlabel="weight of fc1", ylabel="how many")
    values.set_title(f"{len(result.fc1.codebook)} values for {result.weights.numel()} weights")
    return fig
