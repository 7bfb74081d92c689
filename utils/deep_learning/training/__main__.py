"""The same training from the command line, and under torchrun, where each process is one rank.

    python -m utils.deep_learning.training "data parallel" --workers 2 --epochs 2
    torchrun --nproc-per-node 2 -m utils.deep_learning.training "data parallel" --epochs 2

torchrun may start the ranks on several machines. They then meet through gloo or, where there is a
GPU for each, nccl; our own collectives are for one machine.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from utils.deep_learning import digits, models
from utils.deep_learning.collectives.torch_group import torch_group
from utils.deep_learning.recipe import Recipe
from utils.deep_learning.training.job import Job, samples_per_second
from utils.deep_learning.training.train import STRATEGIES, run_rank, train

# Those whose ranks are all workers and exchange tensors only: the rest needs one machine's memory,
# or threads that share a link.
UNDER_TORCHRUN = ("data parallel", "overlapped", "accumulation", "local sgd", "zero", "ddp", "fsdp")


def main() -> None:
    parser = argparse.ArgumentParser(prog="utils.deep_learning.training")
    parser.add_argument("strategy", choices=STRATEGIES)
    parser.add_argument("--model", choices=models.MODELS, default="small")
    parser.add_argument("--workers", type=int, default=2, help="under torchrun: its processes")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, help="end before the last epoch does")
    parser.add_argument("--checkpoint", type=Path, help="continued from, if it is there")
    given = parser.parse_args()
    recipe = Recipe(epochs=given.epochs, batch=given.batch, shift=1)
    chosen = {"steps": given.steps, "checkpoint": given.checkpoint, "recipe": recipe}
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        result = train(given.strategy, given.model, given.workers, **chosen)
        _tell(result.losses, result.samples_per_second, result.accuracy)
        return
    if given.strategy not in UNDER_TORCHRUN:
        parser.error(f"under torchrun choose one of {', '.join(UNDER_TORCHRUN)}")
    if given.checkpoint and not STRATEGIES[given.strategy].resumable:
        parser.error(f"--checkpoint: with {given.strategy} no rank holds the whole state")
    _be_a_rank(given.strategy, given.model, **chosen)


def _be_a_rank(strategy: str, model: str, **chosen: object) -> None:
    torch.set_num_threads(1)
    each = int(os.environ["LOCAL_WORLD_SIZE"])
    device = "cuda" if torch.cuda.device_count() >= each else "cpu"
    with torch_group(device) as group, tempfile.TemporaryDirectory() as scratch:
        job = Job(model=model, workers=group.size, scratch=Path(scratch), **chosen)
        done = run_rank(group, STRATEGIES[strategy], job)
        rates = group.gather_numbers(samples_per_second([done.entries]))
        # A rank's entries are its parts of the losses; all parts together are the losses.
        parts = torch.tensor([entry.loss for entry in done.entries], dtype=torch.float64)
        parts = parts.to(group.device)
        group.all_reduce(parts)
    if done.state is not None:
        trained = models.make(model)
        trained.load_state_dict(done.state)
        _tell(parts.tolist(), sum(rates), models.accuracy(trained, digits.load()[1]))


def _tell(curve: Sequence[float], rate: float, accuracy: float) -> None:
    print(
        f"{len(curve)} steps, loss {curve[-1]:.6f}, {rate:.0f} digits/s, "
        f"{100 * accuracy:.1f} % of the held-out digits"
    )


if __name__ == "__main__":
    main()
