"""The networks of chapter 4: the article's small one, a deeper one, and a row of equal layers."""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.deep_learning.digits import Digits


class SmallCNN(nn.Module):
    """The article's network: two convolutions, two linear layers, 21 840 parameters.

    (n, 1, 28, 28) → logits (n, 10). So little work that overheads show.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.fc1 = nn.Linear(320, 50)
        self.fc2 = nn.Linear(50, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(images), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


class DeepCNN(nn.Sequential):
    """Six convolutions, where computing dominates everything else: (n, 1, 28, 28) → (n, 10)."""

    def __init__(self) -> None:
        widths = (1, 32, 32, 64, 64, 128, 128)
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(zip(widths, widths[1:], strict=False), start=1):
            layers += [nn.Conv2d(before, after, kernel_size=3, padding=1), nn.ReLU()]
            if number % 2 == 0:
                layers.append(nn.MaxPool2d(2))
        super().__init__(*layers, nn.Flatten(), nn.Linear(128 * 3 * 3, 10))


class Tower(nn.Sequential):
    """`depth` equal hidden layers of `width`, to be cut anywhere: (n, 1, 28, 28) → (n, 10)."""

    def __init__(self, depth: int = 6, width: int = 256) -> None:
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(784, width), nn.ReLU()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.ReLU()]
        super().__init__(*layers, nn.Linear(width, 10))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "small": SmallCNN,
    "deep": DeepCNN,
    "tower": Tower,
}

# Must be held while torch's random numbers, which all threads share, are the model's.
_drawing = allocate_lock()


def make(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A new model by name; the same seed gives the same parameters. ValueError: unknown name.

    The caller's random numbers stay as they are, and threads may call this at the same time.
    """
    if name not in MODELS:
        raise ValueError(f"name={name!r} is no model: choose one of {', '.join(MODELS)}")
    with _drawing, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name]().to(dtype)


@torch.inference_mode()
def accuracy(model: nn.Module, digits: Digits, batch: int = 250) -> float:
    """Share of `digits` that `model` names rightly, 0 to 1; its training mode is put back."""
    training = model.training
    model.eval()
    try:
        right = sum(
            (model(digits.images[start : start + batch]).argmax(1))
            .eq(digits.labels[start : start + batch])
            .sum()
            .item()
            for start in range(0, len(digits), batch)
        )
    finally:
        model.train(training)
    return right / len(digits)
