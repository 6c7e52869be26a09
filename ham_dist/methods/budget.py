"""The budget of the kept columns: a number of columns or a number of bytes.

Shape letter: S columns under search.
"""

import torch

from ham_dist.config.schema import Target
from ham_dist.embedding.mask import ColumnLayout
from ham_dist.errors import TargetError

NEAR = 0.1
"""Share of the limit within which the open columns count as near it."""


class Budget:
    """The limit on the kept columns, and the cost of each column.

    Args:
        target: The limit, in columns or in bytes.
        layout: The columns to choose from, with the bytes of their numbers.
    Attributes:
        unit: "columns" or "bytes".
        costs: Cost of each column in `unit`, (S,) int64.
        limit: Most that the kept columns may cost together, in `unit`.
    Raises:
        TargetError: The limit is above the cost of all columns, or below the cost of the cheapest one.
    """

    def __init__(self, target: Target, layout: ColumnLayout) -> None:
        if target.columns is not None:
            self.unit, self.limit = "columns", target.columns
            self.costs = torch.ones(layout.size, dtype=torch.int64)
        else:
            assert target.bytes is not None, "a target has columns or bytes"
            self.unit, self.limit = "bytes", target.bytes
            per_table = [
                torch.full((dim,), layout.num_embeddings[table] * layout.number_bytes[table])
                for table, dim in layout.dims.items()
            ]
            self.costs = torch.cat(per_table)
        total, least = int(self.costs.sum()), int(self.costs.min())
        if self.limit > total:
            raise TargetError(
                f"search.targets: {self.unit} = {self.limit}: more {self.unit} than the {total} in the "
                "tables.\n"
                f"  Give a number from {least} to {total}."
            )
        if self.limit < least:
            raise TargetError(
                f"search.targets: {self.unit} = {self.limit}: too small for any column; the smallest takes "
                f"{least}.\n"
                f"  Give a number from {least} to {total}."
            )

    def used(self, mask: torch.Tensor) -> int:
        """Returns the cost of the open columns of a mask (S,), in `unit`."""
        return int(self.costs[mask.cpu() > 0].sum())

    def near(self, mask: torch.Tensor) -> bool:
        """Returns True if the open columns of a mask (S,) cost about the limit."""
        return abs(self.used(mask) - self.limit) <= max(1, NEAR * self.limit)

    def best(self, scores: torch.Tensor) -> torch.Tensor:
        """Returns the mask, (S,) float32, of the columns with the highest scores that fit into the limit.

        Where the limit is in columns, exactly `limit` columns are kept. Where it is in bytes, a column that
        does not fit is skipped, and cheaper ones with lower scores may still be kept. Equal scores: the lower
        column number first.

        Args:
            scores: (S,).
        """
        mask, left = torch.zeros(len(self.costs)), self.limit
        costs = self.costs.tolist()
        for column in torch.sort(scores.cpu(), descending=True, stable=True).indices.tolist():
            if costs[column] <= left:
                mask[column] = 1.0
                left -= costs[column]
        return mask
