"""Pipeline parallelism: each rank has some of the layers and does what a schedule says.

Activations go forward and their gradients backward, by send and receive; parameters and their
gradients stay where they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.core import trace
from utils.deep_learning.collectives.group import Group
from utils.deep_learning.digits import Digits
from utils.deep_learning.model_parallel.schedules import Action, Schedule
from utils.deep_learning.model_parallel.simulate import CATEGORIES
from utils.deep_learning.models import SmallCNN


def chain(model: nn.Module) -> list[nn.Module]:
    """The layers of a model in the order in which they are used; the modules are the model's own.

    TypeError: the order cannot be known.
    """
    if isinstance(model, nn.Sequential):
        return list(model)
    if isinstance(model, SmallCNN):
        pool, relu = nn.MaxPool2d(2), nn.ReLU()
        linear = [nn.Flatten(), model.fc1, relu, model.fc2]
        return [model.conv1, pool, relu, model.conv2, pool, relu, *linear]
    raise TypeError(f"a {type(model).__name__} is no chain of layers: give an nn.Sequential")


def cut(model: nn.Module, stages: int) -> list[list[nn.Module]]:
    """Cut a model into `stages` with as many layers with parameters each, or nearly.

    Layers without parameters stay with the one before. ValueError: more stages than layers.
    """
    blocks: list[list[nn.Module]] = [[]]
    for layer in chain(model):
        has = any(True for _ in layer.parameters())
        if has and any(True for known in blocks[-1] for _ in known.parameters()):
            blocks.append([])
        blocks[-1].append(layer)
    if stages > len(blocks):
        raise ValueError(
            f"stages={stages} is not allowed: the model has {len(blocks)} layers with parameters"
        )
    ends = [len(blocks) * number // stages for number in range(stages + 1)]
    return [sum(blocks[a:b], []) for a, b in zip(ends, ends[1:], strict=False)]


@dataclass
class _Kept:
    """What a stage needs for the backward of one micro-batch."""

    entered: Tensor
    left: Tensor  # what it sent on, or the loss
    outputs: list[tuple[nn.Module, Tensor]]  # of the layers with parameters
    gradients: tuple[Tensor, ...] = ()  # of those outputs, once known


class Stage:
    """Consecutive layers, with the activations of the micro-batches that are under way."""

    def __init__(self, layers: list[nn.Module], split: bool) -> None:
        self.layers, self.split = layers, split
        self.kept: dict[int, _Kept] = {}

    def forward(self, micro: int, x: Tensor, labels: Tensor | None, batch: int) -> Tensor:
        """What the layers make of `x`. With `labels`: this micro-batch's share of the loss.

        The share is the sum over the samples ÷ `batch`, not the micro-batch's mean: so that shares
        add up to the mean over the batch, also when micro-batches differ in size.
        """
        left, outputs = x, []
        for layer in self.layers:
            left = layer(left)
            if any(True for _ in layer.parameters()):
                outputs.append((layer, left))
        if labels is not None:
            left = F.cross_entropy(left, labels, reduction="sum") / batch
        self.kept[micro] = _Kept(x, left, outputs)
        return left.detach()

    def backward(self, micro: int, gradient: Tensor | None) -> Tensor | None:
        """From the gradient of what left to that of what entered, and to those of the weights.

        Where the schedule splits the two, the weights' wait for `weights`.
        """
        if not self.split:
            kept = self.kept.pop(micro)
            kept.left.backward(gradient)
            return kept.entered.grad
        kept = self.kept[micro]
        wanted = [output for _, output in kept.outputs]
        if kept.entered.requires_grad:
            wanted.append(kept.entered)
        found = torch.autograd.grad(kept.left, wanted, gradient, retain_graph=True)
        kept.gradients = found[: len(kept.outputs)]
        return found[-1]

    def weights(self, micro: int) -> None:
        """Add to the weights' gradients, layer by layer, from the gradients of the outputs."""
        kept = self.kept.pop(micro)
        for (layer, output), gradient in zip(kept.outputs, kept.gradients, strict=True):
            output.backward(gradient, inputs=list(layer.parameters()))


class Pipeline:
    """One rank of a pipeline that trains `model` by `schedule`. All ranks are given the same.

    `sample` (any number, …) shows what enters the model. The rank keeps its own layers only.
    ValueError: the model has fewer layers than the schedule stages, or the group another size.
    """

    def __init__(self, group: Group, model: nn.Module, schedule: Schedule, sample: Tensor) -> None:
        if group.size != len(schedule.ranks):
            raise ValueError(
                f"{schedule.name} is for {len(schedule.ranks)} ranks, the group has {group.size}"
            )
        self.group, self.schedule = group, schedule
        self.stages: dict[int, Stage] = {}
        self.shapes: list[torch.Size] = []  # of one sample, as it enters each stage
        self.peak = 0  # the most forwards that waited for their backward at once
        x = sample[:1]
        for number, layers in enumerate(cut(model, schedule.stages)):
            self.shapes.append(x.shape[1:])
            with torch.no_grad():
                x = nn.Sequential(*layers)(x)
            if schedule.rank_of(number) == group.rank:
                self.stages[number] = Stage(layers, schedule.split)

    def parameters(self) -> list[nn.Parameter]:
        """Those of this rank's stages."""
        layers = [layer for stage in self.stages.values() for layer in stage.layers]
        return [parameter for layer in layers for parameter in layer.parameters()]

    def step(self, batch: Digits) -> float:
        """Do forward and backward for `batch`, in micro-batches: the mean loss, on every rank.

        Gradients are added to what the parameters have. Micro-batches differ by one sample at most.
        """
        images = batch.images.tensor_split(self.schedule.micro)
        labels = batch.labels.tensor_split(self.schedule.micro)
        loss = torch.zeros(1, dtype=torch.float64)
        with _Post(self.group, self.schedule, self.shapes, images) as post:
            for action in self.schedule.ranks[self.group.rank]:
                stage = self.stages[action.stage]
                last = action.stage == self.schedule.stages - 1
                came = post.take(action)
                with trace.span(CATEGORIES[action.kind], str(action), **action._asdict()):
                    if action.kind == "F":
                        truth = labels[action.micro] if last else None
                        made = stage.forward(action.micro, came, truth, len(batch))
                        loss += made if last else 0
                    elif action.kind == "B":
                        made = stage.backward(action.micro, came)
                    else:
                        made = stage.weights(action.micro)
                self.peak = max(self.peak, sum(len(each.kept) for each in self.stages.values()))
                post.hand_on(action, made)
        self.group.all_reduce(loss)
        return loss.item()


class _Post:
    """Activations and gradients on their way between this rank and the others.

    Two ranks may exchange several kinds of messages, as with interleaved stages. No message has to
    say what it is: everybody knows the schedule, so also in which order the others send.

    A thread of its own sends. Were a rank to wait until what it sends is received, two neighbours
    that send to each other would wait for ever (`schedules.validate` says when).
    """

    def __init__(
        self, group: Group, schedule: Schedule, shapes: list[torch.Size], images: Sequence[Tensor]
    ) -> None:
        self.group, self.schedule = group, schedule
        self.shapes, self.images = shapes, images
        self.here: dict[Action, Tensor] = {}  # by the action that needs it
        self.coming: dict[int, deque[Action]] = {}
        for source, actions in enumerate(schedule.ranks):
            messages = [message for action in actions if (message := schedule.message(action))]
            self.coming[source] = deque(what for to, what in messages if to == group.rank)
        self.sender = ThreadPoolExecutor(1, f"{group.lane} sends")
        self.sent: list[Future[None]] = []

    def __enter__(self) -> _Post:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait until all is sent; after an error drop what is left."""
        self.sender.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for future in self.sent:
                future.result()

    def take(self, action: Action) -> Tensor | None:
        """What `action` works on: activations, or their gradient; None if nothing has to come."""
        kind, stage, micro = action
        if kind == "F" and stage == 0:
            return self.images[micro]
        if kind == "W" or (kind == "B" and stage == self.schedule.stages - 1):
            return None
        source = self.schedule.rank_of(stage + (1 if kind == "B" else -1))
        while action not in self.here:
            what = self.coming[source].popleft()
            shape = self.shapes[what.stage + (what.kind == "B")]
            tensor = self.images[0].new_empty(len(self.images[what.micro]), *shape)
            self.group.recv(tensor, source)
            self.here[what] = tensor
        tensor = self.here.pop(action)
        return tensor.requires_grad_() if kind == "F" else tensor

    def hand_on(self, action: Action, made: Tensor | None) -> None:
        """Give what `action` made to who works on it: another rank, this one, or nobody."""
        if message := self.schedule.message(action):
            self.sent.append(self.sender.submit(self.group.send, made.contiguous(), message[0]))
        elif fed := self.schedule.feeds(action):
            self.here[fed] = made
