"""A matrix that is mostly 0, as a module: what a factored layer is made of."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class SparseMap(nn.Module):
    """A matrix [R,C] in compressed rows; coefficients float, in the dtype of the model, not trained in this form.

    `rows` are the rows as {column: coefficient}. ValueError when a column lies outside [0, C).
    """

    offsets: Tensor
    columns: Tensor

    def __init__(self, rows: Sequence[Mapping[int, float]], width: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        entries = [sorted((column, x) for column, x in row.items() if x != 0) for row in rows]
        columns = [column for row in entries for column, _ in row]
        if columns and not 0 <= min(columns) <= max(columns) < width:
            raise ValueError(f"columns {min(columns)}..{max(columns)}: expected columns of a matrix of width {width}")
        self.width = width
        offsets = torch.tensor([0, *(len(row) for row in entries)]).cumsum(0)
        self.register_buffer("offsets", offsets)
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.int64))
        values = torch.tensor([x for row in entries for _, x in row], dtype=dtype)
        self.coefficients = nn.Parameter(values, requires_grad=False)

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], prefix: str, width: int) -> SparseMap:
        """The matrix whose tensors stand in a state dict under this prefix."""
        found = cls([], width)
        found.offsets, found.columns = state[f"{prefix}.offsets"], state[f"{prefix}.columns"]
        found.coefficients = nn.Parameter(state[f"{prefix}.coefficients"], requires_grad=False)
        return found

    @property
    def height(self) -> int:
        """R."""
        return self.offsets.numel() - 1

    def forward(self, x_CP: Tensor) -> Tensor:
        """M x, [R,P] of x [C,P]."""
        if not self.coefficients.numel():
            return x_CP.new_zeros(self.height, x_CP.shape[1])
        out: Tensor = self.matrix() @ x_CP
        return out

    def matrix(self) -> Tensor:
        """The matrix as a sparse CSR tensor [R,C]."""
        with _beta():
            return torch.sparse_csr_tensor(
                self.offsets, self.columns, self.coefficients, (self.height, self.width), check_invariants=False
            )

    def dense(self) -> Tensor:
        """The matrix [R,C] with its zeros."""
        out = self.coefficients.new_zeros(self.height, self.width)
        row = torch.repeat_interleave(torch.arange(self.height, device=out.device), self.offsets.diff())
        out[row, self.columns] = self.coefficients
        return out

    @torch.no_grad()
    def norm(self) -> float:
        """Spectral norm, from the Gram matrix of the smaller side without its zero rows."""
        if not self.coefficients.numel():
            return 0.0
        column, place = torch.unique(self.columns, return_inverse=True)
        row = torch.repeat_interleave(torch.arange(self.height, device=place.device), self.offsets.diff())
        index = torch.stack([row, place])
        compact = torch.sparse_coo_tensor(
            index, self.coefficients.double(), (self.height, column.numel()), check_invariants=False
        )
        small = compact if self.height <= column.numel() else compact.t()
        with _beta():
            gram = torch.sparse.mm(small, small.t()).to_dense()
        return float(torch.linalg.eigvalsh(gram)[-1].clamp(min=0).sqrt())


@contextmanager
def _beta() -> Iterator[None]:
    """Without torch's word, once in a process, that the layout is in beta."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support")
        yield
