"""Our all-reduce against gloo's: the same two processes, the same tensors, in turns.

algbw is bytes ÷ time, busbw is algbw · 2(N−1)/N: what each link must carry at least. With two ranks
they are the same number.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from utils.core import bench
from utils.deep_learning.collectives.group import Group
from utils.deep_learning.collectives.launch import launch
from utils.deep_learning.collectives.torch_group import torch_group

RANKS, ROUNDS = 2, 15
SIZES = [4**power for power in range(5, 14)]  # bytes: 1 KB to 64 MB


def in_turns(mesh: Group, store: str) -> list[dict[str, bench.Sample]]:
    """Seconds of one all-reduce of each size by each group, seen by this rank."""
    with torch_group(rank=mesh.rank, size=mesh.size, store=store) as gloo:
        rows = []
        for size in SIZES:
            tensor, calls = torch.zeros(size // 4), max(1, 2**18 // size)

            def repeat(group: Group, tensor: torch.Tensor = tensor, calls: int = calls) -> None:
                for _ in range(calls):
                    group.all_reduce(tensor)

            def meet() -> None:
                mesh.barrier()
                gloo.barrier()

            works = {"meet": meet, "ours": lambda: repeat(mesh), "gloo": lambda: repeat(gloo)}
            taken = bench.compare(works, repeats=ROUNDS, warmup=3)
            rows.append(
                {
                    name: bench.Sample(tuple(s / calls for s in taken[name].values))
                    for name in ("ours", "gloo")
                }
            )
        return rows


def figures() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        ranks = launch(in_turns, RANKS, str(Path(folder, "store"))).results
    for size, of_ranks in zip(SIZES, zip(*ranks, strict=True), strict=True):
        samples = {  # a call has ended when it has on every rank
            name: bench.Sample(tuple(map(max, *(rank[name].values for rank in of_ranks))))
            for name in ("ours", "gloo")
        }
        bus = 2 * (RANKS - 1) / RANKS
        rates = {name: size / sample.median / 1e9 for name, sample in samples.items()}
        faster = statistics.median(bench.ratio(samples["gloo"], samples["ours"]).values)
        yield (
            f"{size / 1024:7.0f} KB, {RANKS} processes: ours {rates['ours']:.2f} GB/s algbw = "
            f"{rates['ours'] * bus:.2f} busbw, gloo {rates['gloo']:.2f}; {faster:.2f} × gloo's "
            f"speed (medians of {ROUNDS})"
        )
