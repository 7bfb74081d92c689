"""The same training, started by PyTorch's own launcher."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from utils.deep_learning.recipe import Recipe
from utils.deep_learning.training.train import train

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(sys.platform == "win32", reason="platform: torchrun's store needs libuv there")
def test_two_ranks_under_torchrun_do_what_two_threads_do():
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "utils.deep_learning.training", "data parallel", "--epochs", "1", "--steps", "12",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = re.findall(r"(\d+) steps, loss ([\d.]+)", done.stdout)
    ours = train("data parallel", recipe=Recipe(epochs=1, shift=1), steps=12, on="threads")
    assert len(told) == 1 and told[0][0] == "12"  # only one rank speaks
    assert float(told[0][1]) == pytest.approx(ours.losses[-1], abs=1e-5)
