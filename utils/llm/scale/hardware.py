"""Roofs of devices in one picture: what a step of a model reaches at most on each.

Below the ridge (operations/s ÷ bytes/s) a step waits for memory, above it for the arithmetic units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from matplotlib.axes import Axes

from utils.core import plots
from utils.core.experiment import Range, experiment
from utils.llm.scale.catalogue import DEVICES, MODELS, this_machine
from utils.llm.scale.costs import Device, Step, step

COLOURS = (plots.BLUE, plots.GREEN, plots.VERMILION, plots.PURPLE, plots.ORANGE)


@dataclass(frozen=True)
class Hardware:
    """Steps by device, then by what they do."""

    model: str
    steps: Mapping[Device, Mapping[str, Step]]


@experiment
def hardware(
    model: Literal[*MODELS] = "SmolLM2 135M",  # type: ignore[valid-type]
    batch: Annotated[int, Range(2, 256, label="sequences in a batch")] = 32,
    prompt: Annotated[int, Range(64, 8192, 64, label="tokens of prompt")] = 512,
) -> Hardware:
    """Calculate steps on published devices in bfloat16, and on this machine, in float32."""
    shape, steps = MODELS[model].shape, {}
    cases = {"decode": (1, prompt, 1), f"decode, batch of {batch}": (1, prompt, batch),
             "prefill": (prompt, 0, 1)}  # fmt: skip
    for device in (this_machine(), *DEVICES):
        dtype = "float32" if device.source == "measured" else "bfloat16"
        steps[device] = {name: step(shape, *case, dtype) for name, case in cases.items()}
    return Hardware(model, steps)


def roof(ax: Axes, device: Device, color: str, low: float, high: float) -> None:
    """The roof of a device between two intensities, log-log."""
    corners = sorted({low, min(max(device.matrix / device.read, low), high), high})
    heights = [min(device.matrix, device.read * at) / 1e9 for at in corners]
    label = f"{device.name}: ridge at {device.matrix / device.read:.0f}"
    ax.plot(corners, heights, color=color, linewidth=1.6, label=label)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("operations a byte (arithmetic intensity)", fontsize=9)
    ax.set_ylabel("10⁹ operations/s", fontsize=9)


def plot(result: Hardware) -> plots.Picture:
    """Roofs, and on each the three kinds of step."""
    fig, ax = plots.figure(9.5, 4.4)
    every = [each.intensity for steps in result.steps.values() for each in steps.values()]
    low, high = min(every) / 2, 3 * max(max(every), 1000)
    marks = {}
    for (device, steps), color in zip(result.steps.items(), COLOURS, strict=True):
        roof(ax, device, color, low, high)
        for (name, each), shape in zip(steps.items(), "o^s", strict=True):
            rate = each.flops / each.least(device) / 1e9
            ax.plot(each.intensity, rate, shape, color=color, markersize=7)
            marks[name] = shape
    for name, shape in marks.items():
        ax.plot([], [], shape, color=plots.INK, label=name)
    ax.set_title(f"{result.model}: the most operations/s a step can reach", loc="left")
    ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return fig
