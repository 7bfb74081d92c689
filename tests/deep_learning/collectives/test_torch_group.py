"""The same calls over gloo: in processes of `launch`, and under torchrun."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.distributed as dist

from utils.deep_learning.collectives.launch import launch
from utils.deep_learning.collectives.torch_group import TorchGroup, torch_group


def tour(group):
    """Every operation once, on numbers that tell ranks apart."""
    mine = torch.arange(6.0).view(3, 2) + 10 * group.rank
    reduced, greatest, sent = mine.clone(), mine.clone(), mine.clone()
    group.all_reduce(reduced)
    group.all_reduce(greatest, "max")
    group.broadcast(sent, 1)
    gathered = group.all_gather(mine)
    part = group.reduce_scatter(torch.arange(4.0) * (group.rank + 1))
    message = torch.full((2,), float(group.rank))
    (group.send if group.rank == 0 else group.recv)(message, 1 - group.rank)
    group.barrier()
    group.report(group.lane)
    numbers = torch.tensor(group.gather_numbers(group.rank))
    return [reduced, greatest, sent, gathered, part, message, numbers]


def over_gloo(mesh, store):
    """The tour over gloo; afterwards one rank leaves, and the other notices."""
    with torch_group(
        rank=mesh.rank, size=mesh.size, store=store, deadline=20, report=mesh.report
    ) as group:
        results = tour(group)
        with pytest.raises(ValueError, match="op='mean' is not allowed"):
            group.all_reduce(torch.zeros(1), "mean")
        with pytest.raises(ValueError, match="3 rows cannot be shared by 2 ranks"):
            group.reduce_scatter(torch.zeros(3))
        with pytest.raises(RuntimeError, match="in a default process group already"):
            torch_group(rank=0, size=1, store=store + "2").__enter__()
        if mesh.rank == 1:
            dist.destroy_process_group()
            mesh.barrier()
        else:
            mesh.barrier()
            with pytest.raises(BrokenPipeError):
                group.all_reduce(torch.zeros(1))
    assert not dist.is_initialized()
    return results


def test_gloo_and_our_mesh_are_interchangeable(tmp_path):
    heard = []
    theirs = launch(
        over_gloo, 2, str(tmp_path / "store"), hear=lambda rank, lane: heard.append((rank, lane))
    )
    assert sorted(heard) == [(0, "rank 0"), (1, "rank 1")]
    ours = launch(tour, 2, on="threads")
    for mine, other in zip(ours.results, theirs.results, strict=True):
        assert all(map(torch.equal, mine, other))
    names = {span.name for span in theirs.trace.select(category="communicate").spans}
    assert {"all-reduce", "broadcast", "all-gather", "reduce-scatter", "send", "recv"} <= names


def test_under_torchruns_environment():
    program = """
        import torch
        from utils.deep_learning.collectives.torch_group import torch_group
        if __name__ == "__main__":
            with torch_group() as group:
                tensor = torch.tensor([group.rank + 1.0])
                group.all_reduce(tensor)
                print(group.rank, group.size, tensor.item())
    """
    environment = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    output = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert output.stdout.split() == ["0", "1", "1.0"], output.stderr


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="rank=0, size=None, store=None: give all three"):
        torch_group(rank=0).__enter__()
    with pytest.raises(ValueError, match="init_process_group was not called"):
        TorchGroup()
    if torch.cuda.device_count() < 99:
        with pytest.raises(ValueError, match="rank 98: this machine has"):
            torch_group("cuda", rank=98, size=99, store=tmp_path / "store").__enter__()


def test_a_rank_that_never_comes_is_an_error(tmp_path):
    with (
        pytest.raises(TimeoutError),
        torch_group(rank=0, size=2, store=tmp_path / "store", deadline=1),
    ):
        pass
    assert not dist.is_initialized()
