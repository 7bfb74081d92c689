"""Save a training so that a kill at any moment loses at most the steps since, and nothing else.

The order of the digits and the learning rate are functions of the recipe and the step, so the step
stands for them; what is left are parameters and optimiser. The file is written beside the old one
and takes its name when it is complete on the disk: whoever looks sees the old one or the new one.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from utils.deep_learning.training.job import Job


def save(
    path: Path, job: Job, step: int, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write that `step` steps of `job` are done. Only one rank may: all hold the same."""
    document = {
        "training": _identity(job),
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    unfinished = path.with_name(path.name + ".part")
    with open(unfinished, "wb") as file:
        torch.save(document, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def load(path: Path, job: Job, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put `model` and `optimizer` where they were; how many steps are done (0: no file yet).

    ValueError: the file is of another training.
    """
    if not path.exists():
        return 0
    document = torch.load(path, weights_only=True)
    if document["training"] != _identity(job):
        raise ValueError(f"{path} is of another training: {document['training']}")
    model.load_state_dict(document["model"])
    optimizer.load_state_dict(document["optimizer"])
    return document["step"]


def _identity(job: Job) -> dict[str, Any]:
    """What must be equal for the rest of the training to be the rest of *this* one."""
    recipe = asdict(job.recipe)
    return {"model": job.model, "digits": len(job.digits), "parts": list(job.parts), **recipe}
