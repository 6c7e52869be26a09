"""Whole-number codes with one scale and one offset per column.

A number is code * scale + offset, in float32. A scale per column costs 8 bytes a column. A scale per row, as
in FBGEMM's quantized tables, costs 4 to 8 bytes a row, which is more than int8 saves at dims of 1 to 4.

C rows, d columns of a table; n rows
"""

from abc import abstractmethod
from collections.abc import Mapping

import torch

from ham_dist.errors import BundleError
from ham_dist.export.codecs.codec import VALUES, Codec, Stored, TableRows, Tolerance

SCALE, OFFSET = "scale", "offset"


class ColumnCodec(Codec):
    """Codes 0 to 2^bits - 1 with one scale and one offset per column.

    The offset is the number of code 0, so a constant column (scale 0) is exact. Rows that share bytes are
    consecutive, so all columns of a row are next to each other at any dim and no bit is lost.

    Args:
        auc_tolerance: Largest allowed difference of the AUC from the live model's.
    """

    rows_per_group: int
    """Consecutive rows of a column that share bytes; divides 64."""

    def __init__(self, name: str, bits: int, auc_tolerance: float) -> None:
        self.name, self.bits = name, bits
        self.tolerance = Tolerance(auc=auc_tolerance)

    @property
    def largest_code(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def layout(self, num_embeddings: int, embedding_dim: int) -> dict[str, Stored]:
        """`scale` (d,), `offset` (d,), and `values` (groups of rows, bytes of a group)."""
        groups = -(-num_embeddings // self.rows_per_group)
        return {
            SCALE: Stored(torch.float32, (embedding_dim,)),
            OFFSET: Stored(torch.float32, (embedding_dim,)),
            VALUES: Stored(torch.uint8, (groups, self.rows_per_group * self.bits // 8 * embedding_dim)),
        }

    @abstractmethod
    def pack(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns codes (n, d) uint8 as `values` of consecutive rows; n is a multiple of rows_per_group."""

    @abstractmethod
    def unpack(self, values: torch.Tensor, ids: torch.Tensor, dim: int) -> torch.Tensor:
        """Returns the codes of the rows `ids`, (n, dim)."""

    def fit(self, table: TableRows) -> dict[str, torch.Tensor]:
        """Scale and offset of each column, (d,) float32."""
        if not table.num_embeddings:
            zeros = torch.zeros(table.embedding_dim)
            return {SCALE: zeros, OFFSET: zeros.clone()}
        bounds = [torch.stack([rows.amin(dim=0), rows.amax(dim=0)]) for rows in table.blocks()]
        low = torch.stack(bounds)[:, 0].amin(dim=0).double()
        high = torch.stack(bounds)[:, 1].amax(dim=0).double()
        widest = (high - low).max().item() if len(low) else 0.0
        if widest > torch.finfo(torch.float32).max / 2:
            raise BundleError(
                f"its numbers spread over {widest:g}, too much for {self.name}. Export with precision fp32."
            )
        low, scale = self.fit_within(table, low, (high - low) / self.largest_code)
        return {SCALE: scale.float(), OFFSET: low.float()}

    def fit_within(
        self, table: TableRows, low: torch.Tensor, scale: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns offset and scale of each column, (d,) float64.

        Args:
            low: Smallest number of each column, (d,) float64.
            scale: Scale at which the codes span the column's range, (d,) float64.
        """
        del table
        return low, scale

    def encode(self, rows: torch.Tensor, fitted: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The nearest codes, packed."""
        codes = nearest_codes(
            rows.double(), fitted[OFFSET].double(), fitted[SCALE].double(), self.largest_code
        )
        missing = -len(rows) % self.rows_per_group
        return self.pack(torch.nn.functional.pad(codes.to(torch.uint8), (0, 0, 0, missing)))

    def decode(self, stored: Mapping[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        """code * scale + offset, each step rounded to float32."""
        codes = self.unpack(stored[VALUES], ids, len(stored[SCALE]))
        return codes.float() * stored[SCALE] + stored[OFFSET]


def nearest_codes(
    rows: torch.Tensor, offset: torch.Tensor, scale: torch.Tensor, largest: int
) -> torch.Tensor:
    """Returns the codes nearest to `rows`, (n, d) float64; all 0 in a column of scale 0."""
    steps = (rows - offset) / torch.where(scale > 0, scale, torch.inf)
    return steps.round().clamp(0, largest)
