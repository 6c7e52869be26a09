"""Cosines between the columns of tables (HAM paper, Fig. 5)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cosines:
    """The cosines between the columns of one table.

    Attributes:
        field: Field of the table.
        matrix: (d, d) float64, 1 on the diagonal; NaN for a column of zeros.
    """

    field: str
    matrix: Floats

    @property
    def mean(self) -> float | None:
        """Mean absolute cosine of two different columns; None with fewer than two columns that are not 0."""
        off = np.abs(self.matrix[~np.eye(len(self.matrix), dtype=bool)])
        known = off[np.isfinite(off)]
        return float(known.mean()) if len(known) else None


def column_cosines(table: "torch.Tensor") -> Floats:
    """Returns v_i'v_j / (|v_i| |v_j|) for all columns v of a table (C, d), as (d, d) float64.

    Only the Gram matrix is computed in float64, a block of rows at a time.
    """
    import torch

    from ham_dist.distributed.sharding.gram import gram  # imports TorchRec

    products = gram(table.detach(), torch.float64).numpy()
    norms = np.sqrt(np.diagonal(products))
    with np.errstate(invalid="ignore", divide="ignore"):
        return products / np.outer(norms, norms)


def cosines_of(tables: Mapping[str, "torch.Tensor"]) -> dict[str, Cosines]:
    """Returns the cosines of every table with at least two columns, by field."""
    return {
        field: Cosines(field, column_cosines(table)) for field, table in tables.items() if table.shape[1] >= 2
    }


def cosines_of_bundle(bundle: str | Path) -> dict[str, Cosines]:
    """Returns the cosines of the tables in a bundle, by field.

    Raises:
        BundleError: The bundle is damaged or incomplete.
    """
    from ham_dist.export.bundle import open_bundle

    return cosines_of(open_bundle(bundle).tables())
