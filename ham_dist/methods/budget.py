"""What the kept columns may cost together: a number of columns, or a number of bytes.

S columns under search
"""

import torch

from ham_dist.config.schema import Target
from ham_dist.embedding.mask import ColumnLayout
from ham_dist.errors import TargetError

NEAR = 0.1
"""Share of the limit that counts as near it."""


class Budget:
    """A limit, and what each column takes of it.

    Args:
        target: The limit, in columns or in bytes.
        layout: The columns that there are, and the bytes of their numbers.
    Attributes:
        costs: (S,) int64, what each column takes.
        limit: Columns or bytes.
    Raises:
        TargetError: The limit is more than all columns take, or less than the smallest column takes.
    """

    def __init__(self, target: Target, layout: ColumnLayout) -> None:
        if target.columns is not None:
            self.unit, self.limit = "columns", target.columns
            self.costs = torch.ones(layout.size, dtype=torch.int64)
        else:
            assert target.bytes is not None, "a target has columns or bytes"
            self.unit, self.limit = "bytes", target.bytes
            per_table = [
                torch.full((width,), layout.rows[table] * layout.number_bytes[table])
                for table, width in layout.dims.items()
            ]
            self.costs = torch.cat(per_table)
        total, least = int(self.costs.sum()), int(self.costs.min())
        if self.limit > total:
            raise TargetError(
                f"search.targets: {self.unit} = {self.limit}: more {self.unit} than the {total} that the tables have.\n"
                f"  Give a number from {least} to {total}."
            )
        if self.limit < least:
            raise TargetError(
                f"search.targets: {self.unit} = {self.limit}: not even one column fits; the smallest takes {least}.\n"
                f"  Give a number from {least} to {total}."
            )

    def used(self, mask: torch.Tensor) -> int:
        """What the open columns of a (S,) mask take."""
        return int(self.costs[mask.cpu() > 0].sum())

    def near(self, mask: torch.Tensor) -> bool:
        """Whether the open columns take about the limit."""
        return abs(self.used(mask) - self.limit) <= max(1, NEAR * self.limit)

    def best(self, scores: torch.Tensor) -> torch.Tensor:
        """The (S,) float32 mask of the columns with the highest scores that fit: exactly `limit` of them where the limit is in columns.

        In bytes a column that no longer fits is passed over and smaller ones may still follow. Ties go to the lower column number.
        """
        mask, left = torch.zeros(len(self.costs)), self.limit
        costs = self.costs.tolist()
        for column in torch.sort(scores.cpu(), descending=True, stable=True).indices.tolist():
            if costs[column] <= left:
                mask[column] = 1.0
                left -= costs[column]
        return mask
