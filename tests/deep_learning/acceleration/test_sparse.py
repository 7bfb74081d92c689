import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.deep_learning.acceleration import sparse
from utils.deep_learning.acceleration.sparse import COO, CSR

INDICES = {4: torch.int32, 8: torch.int64}


def holey(rows: int, columns: int, density: float, seed: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    keep = torch.rand(rows, columns, generator=source) < density
    return torch.randn(rows, columns, generator=source) * keep


matrices = st.builds(
    holey, st.integers(1, 20), st.integers(1, 20), st.sampled_from([0, 0.1, 0.5, 1]),
    st.integers(0, 999))  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(matrix=matrices, index=st.sampled_from([4, 8]))
def test_both_formats_come_back_and_take_the_bytes_of_the_formula(matrix, index) -> None:
    (rows, _), z = matrix.shape, matrix.count_nonzero().item()
    coo, csr = COO.of(matrix, INDICES[index]), CSR.of(matrix, INDICES[index])
    assert coo.dense().equal(matrix) and csr.dense().equal(matrix)
    assert coo.nbytes == z * (4 + 2 * index)
    assert csr.nbytes == z * (4 + index) + (rows + 1) * index
    assert csr.rows.tolist() == coo.rows.tolist()


@settings(max_examples=60, deadline=None)
@given(matrix=matrices, batch=st.integers(1, 5))
def test_the_product_is_the_dense_one(matrix, batch) -> None:
    matrix = matrix.double()
    right = torch.randn(matrix.shape[1], batch, dtype=torch.float64)
    torch.testing.assert_close(CSR.of(matrix) @ right, matrix @ right, rtol=1e-12, atol=1e-12)


def test_pytorch_builds_the_same_csr_without_a_warning() -> None:
    matrix = holey(7, 5, 0.4, 0)
    ours = CSR.of(matrix)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = ours.library()
    assert theirs.to_dense().equal(matrix)
    reference = matrix.to_sparse_csr()
    assert ours.starts.equal(reference.crow_indices().int())
    assert ours.columns.equal(reference.col_indices().int())
    assert theirs.values().data_ptr() == ours.values.data_ptr()  # shared, not copied


@pytest.mark.parametrize("index", [4, 8])
@pytest.mark.parametrize("rows, columns", [(20, 30), (50, 320), (3, 100)])
def test_below_the_break_even_csr_is_smaller(rows, columns, index) -> None:
    even = sparse.break_even(rows, columns, index) * rows * columns
    for z in (math.floor(even), math.floor(even) + 1):
        matrix = torch.zeros(rows * columns)
        matrix[:z] = 1
        csr = CSR.of(matrix.view(rows, columns), INDICES[index])
        assert (csr.nbytes <= 4 * rows * columns) == (z <= even)


def test_the_break_even_of_a_large_matrix_is_a_half_or_a_third() -> None:
    assert sparse.break_even(10**6, 10**6, 4) == pytest.approx(1 / 2, abs=1e-5)
    assert sparse.break_even(10**6, 10**6, 8) == pytest.approx(1 / 3, abs=1e-5)


@pytest.mark.parametrize("width, batch", [(256, 1), (512, 64)])
def test_the_experiment_is_drawn_at_both_ends(width, batch) -> None:
    result = sparse.run(width=width, batch=batch)
    assert list(result.times[sparse.DENSE]) == list(sparse.DENSITIES)
    assert result.crossover() in {None, *sparse.DENSITIES}
    assert sparse.plot(result)._repr_png_()


def test_without_a_kernel_pytorchs_csr_is_left_out(monkeypatch) -> None:
    monkeypatch.setattr(sparse, "_has_kernel", lambda *_: False)
    result = sparse.run(width=256, batch=1)
    assert sparse.CSR_LIBRARY not in result.times and result.crossover() is None
    assert sparse.plot(result)._repr_png_()
