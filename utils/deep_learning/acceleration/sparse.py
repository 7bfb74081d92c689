"""Sparse storage: write down what is not zero, and where. Worth it if there is little of it.

Of a float32 matrix m × n with z non-zeros and indices of i bytes, dense storage takes 4 m n bytes;
COO, a row and a column for each value, z (4 + 2 i); CSR, which sorts by rows and notes where each
row starts, z (4 + i) + (m + 1) i. PyTorch calls the latter `torch.sparse_csr`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from utils.core import bench, plots
from utils.core.bench import Sample
from utils.core.experiment import Range, experiment
from utils.core.workers import intra_op


@dataclass(frozen=True)
class COO:
    """`values` (z,) and for each its row and column (z,), in the order of rows, then columns."""

    values: Tensor
    rows: Tensor
    columns: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, matrix: Tensor, index: torch.dtype = torch.int32) -> COO:
        rows, columns = matrix.nonzero(as_tuple=True)
        return cls(matrix[rows, columns], rows.to(index), columns.to(index), matrix.shape)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.rows.nbytes + self.columns.nbytes

    def dense(self) -> Tensor:
        matrix = torch.zeros(self.shape, dtype=self.values.dtype)
        return matrix.index_put_((self.rows.long(), self.columns.long()), self.values)


@dataclass(frozen=True)
class CSR:
    """`values` and `columns` (z,); those of row r are from `starts[r]` to `starts[r + 1]`."""

    values: Tensor
    columns: Tensor
    starts: Tensor  # (m + 1,)
    shape: torch.Size

    @classmethod
    def of(cls, matrix: Tensor, index: torch.dtype = torch.int32) -> CSR:
        coo = COO.of(matrix, index)
        counts = coo.rows.bincount(minlength=len(matrix))
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        return cls(coo.values, coo.columns, starts.to(index), matrix.shape)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.columns.nbytes + self.starts.nbytes

    @property
    def rows(self) -> Tensor:
        """The row of each value (z,)."""
        return torch.arange(len(self.starts) - 1).repeat_interleave(self.starts.diff())

    def dense(self) -> Tensor:
        return COO(self.values, self.rows, self.columns, self.shape).dense()

    def __matmul__(self, right: Tensor) -> Tensor:
        """This matrix times (n, batch): one product a non-zero, added up by rows."""
        products = self.values[:, None] * right[self.columns.long()]
        sums = products.new_zeros(self.shape[0], right.shape[1])
        return sums.index_add_(0, self.rows, products)

    def library(self) -> Tensor:
        """The same matrix as PyTorch's own, which shares the memory."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            parts = self.starts, self.columns, self.values, self.shape
            return torch.sparse_csr_tensor(*parts, check_invariants=True)


def break_even(rows: int, columns: int, index: int = 4) -> float:
    """The density, 0 to 1, below which CSR takes fewer bytes than dense float32.

    `index` is in bytes. For a large matrix that is 4 / (4 + index): a half, or with int64 a third.
    """
    return (4 * rows * columns - (rows + 1) * index) / ((4 + index) * rows * columns)


DENSITIES = (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
OURS_UP_TO = 0.1  # it writes down every product, which is too much for a matrix with many


@dataclass(frozen=True)
class Result:
    """Times by density of each way to multiply a `width` × `width` matrix with `batch` columns."""

    width: int
    batch: int
    times: dict[str, dict[float, Sample]]

    def crossover(self) -> float | None:
        """The highest density measured at which PyTorch's CSR beat the dense product."""
        dense, csr = (self.times.get(name, {}) for name in (DENSE, CSR_LIBRARY))
        return max((d for d in csr if csr[d].median < dense[d].median), default=None)


DENSE, ROWS, CSR_LIBRARY, CSR_OURS = "zeros in a dense matrix", "fewer rows", "CSR", "CSR, ours"
_COLORS = {DENSE: plots.BLUE, ROWS: plots.GREEN, CSR_LIBRARY: plots.VERMILION, CSR_OURS: plots.GREY}


@experiment
def run(
    width: Annotated[int, Range(256, 1024, 256)] = 1024,
    batch: Annotated[int, Range(1, 64)] = 16,
) -> Result:
    """Multiply matrices with fewer and fewer non-zeros, in turns, on one thread.

    PyTorch's CSR is left out where its build has no kernel for it on this processor.
    """
    source = torch.Generator().manual_seed(0)
    full, right = (torch.randn(width, n, generator=source) for n in (width, batch))
    order = torch.rand(full.shape, generator=source)
    times: dict[str, dict[float, Sample]] = {}
    with torch.inference_mode(), intra_op(1):
        for density in DENSITIES:
            holey = full * (order < density)
            csr = CSR.of(holey)
            works = {DENSE: (holey, right), ROWS: (full[: round(density * width)], right)}
            if _has_kernel(csr, right):
                works[CSR_LIBRARY] = (csr.library(), right)
            if density <= OURS_UP_TO:
                works[CSR_OURS] = (csr, right)
            calls = {name: lambda pair=pair: pair[0] @ pair[1] for name, pair in works.items()}
            for name, sample in bench.compare(calls, repeats=7).items():
                times.setdefault(name, {})[density] = sample
    return Result(width, batch, times)


def _has_kernel(csr: CSR, right: Tensor) -> bool:
    try:
        csr.library() @ right
    except RuntimeError:
        return False
    return True


def plot(result: Result) -> plots.Picture:
    """Time of a product over the share of non-zeros, both logarithmic."""
    fig, ax = plots.figure(9, 3.8)
    for name, samples in result.times.items():
        ax.plot(
            [100 * density for density in samples],
            [1e3 * sample.median for sample in samples.values()],
            "o-",
            color=_COLORS[name],
            label=name,
        )
    even = 100 * break_even(result.width, result.width)
    ax.axvline(even, color=plots.INK, linewidth=1, linestyle="--", label="CSR as large as dense")
    ax.set(xscale="log", yscale="log", xlabel="non-zeros, %", ylabel="ms a product")
    ax.invert_xaxis()
    ticks = [100 * density for density in DENSITIES]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_title(f"{result.width} × {result.width} times {result.width} × {result.batch}")
    fig.legend(loc="outside right upper", frameon=False, fontsize=9)
    return fig
