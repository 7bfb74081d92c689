"""Our collectives against gloo's, in one process: both let each rank be a thread."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from math import ceil, log2
from threading import Semaphore
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from utils.deep_learning.collectives import mesh as mesh_module
from utils.deep_learning.collectives.algorithms import ALL_REDUCE
from utils.deep_learning.collectives.mesh import MeshGroup, mesh

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
DTYPES = [*FLOATS, torch.int32, torch.int64]
GLOO_OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
SIZES = st.integers(1, 8)
SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple)


def in_threads(calls: list[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(30) for future in [pool.submit(call) for call in calls]]


@contextmanager
def groups(size: int) -> Iterator[list[MeshGroup]]:
    with mesh(size) as ends:
        yield [
            MeshGroup(rank, *own, deadline=20, report=print, stopped=bool)
            for rank, own in enumerate(ends)
        ]


def on_ranks(size: int, act: Callable[[MeshGroup], Any]) -> list[Any]:
    """What `act` returns on each rank; an error on one makes the others fail, too."""

    def rank(group: MeshGroup) -> Any:
        try:
            return act(group)
        finally:
            group.close()

    with groups(size) as ranks:
        return in_threads([lambda group=group: rank(group) for group in ranks])


@pytest.fixture(scope="module")
def gloo():
    """`gloo(size)`: a process group of gloo for each of `size` threads, made once."""
    store, made = dist.HashStore(), {}

    def join(rank: int, size: int) -> dist.ProcessGroupGloo:
        prefix = dist.PrefixStore(str(size), store)
        return dist.ProcessGroupGloo(prefix, rank, size, timedelta(seconds=30))

    def of(size: int) -> list[dist.ProcessGroupGloo]:
        if size not in made:
            made[size] = in_threads([lambda r=rank: join(r, size) for rank in range(size)])
        return made[size]

    return of


def whole_numbers(size: int, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Small enough that every sum of them is exact in every type."""
    source = torch.Generator().manual_seed(seed)
    return [torch.randint(-8, 9, shape, generator=source).to(dtype) for _ in range(size)]


def reduced_by_gloo(ranks: list[dist.ProcessGroupGloo], tensors: list[Tensor], op: str) -> Tensor:
    options = dist.AllreduceOptions()
    options.reduceOp = GLOO_OPS[op]
    results = [tensor.clone() for tensor in tensors]
    in_threads(
        [
            lambda g=group, t=tensor: g.allreduce([t], options).wait()
            for group, tensor in zip(ranks, results, strict=True)
        ]
    )
    return results[0]


@settings(max_examples=60, deadline=None)
@given(
    SIZES, SHAPES, st.sampled_from(DTYPES), st.sampled_from(list(GLOO_OPS)),
    st.sampled_from(list(ALL_REDUCE)), st.integers(0, 99),
)  # fmt: skip
def test_all_reduce_is_gloos(gloo, size, shape, dtype, op, algorithm, seed):
    tensors = whole_numbers(size, shape, dtype, seed)
    expected = reduced_by_gloo(gloo(size), tensors, op)
    ours = [tensor.clone() for tensor in tensors]
    on_ranks(size, lambda group: group.all_reduce(ours[group.rank], op, algorithm))
    for tensor in ours:
        assert torch.equal(tensor, expected)


@settings(max_examples=25, deadline=None)
@given(
    SIZES, st.integers(0, 3000), st.sampled_from(FLOATS),
    st.sampled_from(list(ALL_REDUCE)), st.integers(0, 99),
)  # fmt: skip
def test_sums_of_any_floats_agree_to_the_bit_and_are_as_near_as_gloos(
    gloo, size, length, dtype, algorithm, seed
):
    source = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(length, generator=source).to(dtype) for _ in range(size)]
    ours = [tensor.clone() for tensor in tensors]
    on_ranks(size, lambda group: group.all_reduce(ours[group.rank], "sum", algorithm))
    for tensor in ours:
        assert torch.equal(tensor, ours[0])
    bound = size * torch.finfo(dtype).eps * sum(tensor.double().abs() for tensor in tensors)
    truth = sum(tensor.double() for tensor in tensors)
    assert torch.all((ours[0].double() - truth).abs() <= bound)
    if length:
        theirs = reduced_by_gloo(gloo(size), tensors, "sum")
        assert torch.all((ours[0].double() - theirs.double()).abs() <= 2 * bound)


@settings(max_examples=30, deadline=None)
@given(SIZES, SHAPES, st.sampled_from(DTYPES), st.integers(0, 99))
def test_the_others_are_gloos_too(gloo, size, shape, dtype, seed):
    tensors = whole_numbers(size, shape, dtype, seed)
    rows = whole_numbers(size, (size * shape[0], *shape[1:]), dtype, seed + 1)
    source = seed % size

    def ours(group: MeshGroup) -> tuple[Tensor, Tensor, Tensor]:
        mine = tensors[group.rank].clone()
        group.broadcast(mine, source)
        gathered = group.all_gather(tensors[group.rank])
        return mine, gathered, group.reduce_scatter(rows[group.rank])

    def theirs(rank: int) -> tuple[Tensor, Tensor, Tensor]:
        group, options = gloo(size)[rank], dist.BroadcastOptions()
        options.rootRank = source
        mine, parts = tensors[rank].clone(), [torch.empty_like(tensors[0]) for _ in range(size)]
        group.broadcast([mine], options).wait()
        group.allgather([parts], [tensors[rank]]).wait()
        part = torch.empty_like(tensors[0])
        group.reduce_scatter([part], [list(rows[rank].chunk(size))]).wait()
        return mine, torch.cat(parts), part

    before = [row.clone() for row in rows]
    gloo(size)
    expected = in_threads([lambda r=rank: theirs(r) for rank in range(size)])
    for mine, other in zip(on_ranks(size, ours), expected, strict=True):
        for a, b in zip(mine, other, strict=True):
            assert torch.equal(a, b)
    assert all(map(torch.equal, rows, before))  # reduce_scatter leaves its argument alone


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(0, 5000), st.sampled_from(DTYPES))
def test_bytes_sent_are_those_of_the_formula(size, length, dtype):
    sent = {
        name: on_ranks(
            size,
            lambda group, name=name: (
                group.all_reduce(torch.zeros(length, dtype=dtype), algorithm=name),
                group.bytes_sent,
            )[1],
        )
        for name in ALL_REDUCE
    }
    total = length * dtype.itemsize
    assert sent["naive"] == [(size - 1) * total] + [total] * (size - 1)
    assert sum(sent["tree"]) == 2 * (size - 1) * total
    assert max(sent["tree"]) <= max(1, ceil(log2(size))) * total
    assert sum(sent["ring"]) == 2 * (size - 1) * total
    # 2(N−1)/N each; where the parts are unequal, by an element a step more or less.
    for of_rank in sent["ring"]:
        assert abs(of_rank - 2 * (size - 1) / size * total) <= 2 * (size - 1) * dtype.itemsize


def test_large_tensors_go_in_many_pieces():
    for size in (2, 3):
        numbers = torch.arange(2_500_001)  # 20 MB, more than a ring holds
        results = [numbers.clone() for _ in range(size)]
        for algorithm in ALL_REDUCE:
            on_ranks(
                size,
                lambda group, a=algorithm, r=results: group.all_reduce(r[group.rank], "max", a),
            )
        on_ranks(size, lambda group, r=results: group.all_reduce(r[group.rank]))
        assert all(torch.equal(result, size * numbers) for result in results)


@pytest.mark.parametrize("size", range(1, 9))
def test_shared_memory_is_bounded_and_pieces_fit(size):
    capacity = mesh_module._capacity(size)
    assert size * (size - 1) * capacity <= mesh_module.SHARED
    assert capacity % mesh_module.PIECES == 0 and capacity // mesh_module.PIECES % 64 == 0


def test_nobody_leaves_the_barrier_before_all_have_come():
    come, here = [], Semaphore(0)

    def act(group: MeshGroup) -> int:
        if group.rank == 3:  # the last one: only when all others stand at the barrier
            for _ in range(4):
                here.acquire(timeout=10)
        come.append(group.rank)
        here.release()
        group.barrier()
        return len(come)

    assert on_ranks(5, act) == [5] * 5


def mistakes(group: MeshGroup) -> dict[str, Callable[[], object]]:
    ones = torch.ones(4, 6)
    return {
        "op='mean' is not allowed: give one of 'sum', 'max', 'min'": lambda: group.all_reduce(
            ones, "mean"
        ),
        "algorithm='star' is not allowed: give one of 'naive', 'tree', 'ring'": lambda: (
            group.all_reduce(ones, algorithm="star")
        ),
        "source=3 is not allowed: give one of 0, 1, 2": lambda: group.broadcast(ones, 3),
        f"to={group.rank} is not allowed": lambda: group.send(ones, group.rank),
        "source=-1 is not allowed": lambda: group.recv(ones, -1),
        "4 rows cannot be shared by 3 ranks": lambda: group.reduce_scatter(ones),
        "shape (6, 4) is not contiguous": lambda: group.all_reduce(ones.t()),
    }


def test_mistakes_are_named_and_the_group_goes_on():
    def act(group: MeshGroup) -> list[float]:
        for message, call in mistakes(group).items():
            with pytest.raises(ValueError) as error:
                call()
            assert message in str(error.value)
        return group.gather_numbers(group.rank)

    assert on_ranks(3, act) == [[0, 1, 2]] * 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(10), torch.zeros(12)),
        (torch.zeros(10), torch.zeros(10, dtype=torch.int32)),  # as many bytes
        (torch.zeros(0), torch.zeros(1)),
    ],
)
@pytest.mark.parametrize("algorithm", ALL_REDUCE)
def test_different_tensors_are_an_error_on_every_rank(one, other, algorithm):
    def act(group: MeshGroup) -> Exception | None:
        try:
            group.all_reduce((one, other)[group.rank == 2].clone(), algorithm=algorithm)
        except (ValueError, EOFError, BrokenPipeError) as error:
            return error
        finally:
            group.close()
        return None

    errors = on_ranks(3, act)
    named = [str(error) for error in errors if isinstance(error, ValueError)]
    assert any("do all ranks call the same" in text and "torch." in text for text in named)
    if algorithm != "naive":  # there a rank may have had its own result by then
        assert all(errors)
