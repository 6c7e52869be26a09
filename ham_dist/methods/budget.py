"""The budget of the kept columns: a number of columns or a number of bytes.

Shape letter: S columns under search.
"""

import math

import torch

from ham_dist.config.target import Target
from ham_dist.embedding.mask import ColumnLayout
from ham_dist.errors import TargetError
from ham_dist.methods.fill import best_within

FULL = 0.99
"""Share of a limit in bytes from which it counts as met."""

WORTH = 0.95
"""Share of the greedy choice's score that a choice must keep to be worth meeting the limit."""

LARGEST_SCORE = 1e30
"""Scores above it count as equal, so that their sums stay finite."""

NEAR = 0.1
"""Share of the limit within which the open columns count as near it."""


class Budget:
    """The limit on the kept columns, and the cost of each column.

    Args:
        target: The limit, in columns or in bytes.
        layout: The columns to choose from, with their bytes.
    Attributes:
        unit: "columns" or "bytes".
        costs: Cost of each column in `unit`, (S,) int64.
        limit: Most that the kept columns may cost together, in `unit`: the target less the padding of all
            tables.
    Raises:
        TargetError: The limit is above the cost of all columns, or below the cost of the cheapest one.
    """

    def __init__(self, target: Target, layout: ColumnLayout) -> None:
        padding = 0
        if target.columns is not None:
            self.unit, self.limit = "columns", target.columns
            self.costs = torch.ones(layout.size, dtype=torch.int64)
        else:
            assert target.bytes is not None, "a target has columns or bytes"
            padding = layout.padding_bytes * len(layout.dims)
            self.unit, self.limit = "bytes", target.bytes - padding
            self.costs = torch.cat(
                [torch.full((dim,), layout.column_bytes[table]) for table, dim in layout.dims.items()]
            )
        given = self.limit + padding
        total, least = int(self.costs.sum()) + padding, int(self.costs.min()) + padding
        if given > total:
            raise TargetError(
                f"search.targets: {self.unit} = {given}: more {self.unit} than the {total} in the "
                "tables.\n"
                f"  Give a number from {least} to {total}."
            )
        if given < least:
            raise TargetError(
                f"search.targets: {self.unit} = {given}: too small for any column; the smallest takes "
                f"{least}.\n"
                f"  Give a number from {least} to {total}."
            )

    @property
    def full(self) -> int:
        """Least cost that counts as the whole limit."""
        return self.limit if self.unit == "columns" else math.ceil(FULL * self.limit)

    def used(self, mask: torch.Tensor) -> int:
        """Returns the cost of the open columns of a mask (S,), in `unit`."""
        return int(self.costs[mask.cpu() > 0].sum())

    def near(self, mask: torch.Tensor) -> bool:
        """Returns True if the open columns of a mask (S,) cost about the limit."""
        return abs(self.used(mask) - self.limit) <= max(1, NEAR * self.limit)

    def best(self, scores: torch.Tensor, *, per_cost: bool = False) -> torch.Tensor:
        """Returns the mask, (S,) float32, of the columns with the highest scores that fit into the limit.

        Where the limit is in columns, exactly `limit` columns are kept. Where it is in bytes, columns are
        taken as in `greedy`. If they take less than 99 % of the limit, some are exchanged for others, so that
        the kept ones take 99 % to 100 % with as much score as possible. The greedy choice stays if that would
        give up more than 5 % of its score: where one column takes a large share of the limit, it could
        replace many cheap ones.

        Args:
            scores: (S,).
            per_cost: Rank by score per cost, for scores that add up.
        """
        scores = scores.detach().cpu().double()
        mask = self.greedy(scores, per_cost=per_cost)
        if self.unit == "columns" or self.used(mask) >= self.full:
            return mask
        return self._filled(scores, mask, per_cost=per_cost)

    def greedy(self, scores: torch.Tensor, *, per_cost: bool = False) -> torch.Tensor:
        """Returns the mask (S,) of columns taken in decreasing order of score while they fit into the limit.

        A column that does not fit is skipped, and cheaper ones with lower scores may still be kept. Equal
        scores: the lower column number first.

        Args:
            scores: (S,).
            per_cost: As in `best`.
        """
        return self._added(torch.zeros(len(self.costs)), self._order(scores, per_cost=per_cost))

    def _order(self, scores: torch.Tensor, *, per_cost: bool) -> torch.Tensor:
        """Column numbers in the order in which they are taken."""
        ranks = scores.detach().cpu()
        ranks = ranks.double() / self.costs if per_cost else ranks
        return torch.sort(ranks, descending=True, stable=True).indices

    def _added(self, mask: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """`mask` with the columns of `order` that still fit, in that order."""
        mask, left = mask.clone(), self.limit - self.used(mask)
        costs = self.costs.tolist()
        for column in order.tolist():
            if not mask[column] and costs[column] <= left:
                mask[column] = 1.0
                left -= costs[column]
        return mask

    def _filled(self, scores: torch.Tensor, mask: torch.Tensor, *, per_cost: bool) -> torch.Tensor:
        """The mask that costs 99 % to 100 % of the limit with most score; `mask` if none is worth it.

        Columns next to the last one taken are exchanged if that is enough, otherwise any. Scores count from
        the lowest one, so that they are not negative.
        """
        order = self._order(scores, per_cost=per_cost)
        kept, left = order[mask[order] > 0], order[mask[order] == 0]
        values = (scores - scores[scores.isfinite()].min()).clamp(0.0, LARGEST_SCORE)
        enough, size = WORTH * float(values[kept].sum()), 8
        while True:
            window = torch.cat([kept[-size:], left[:size]])
            fixed = int(self.costs[kept[:-size]].sum())
            least = self.full - fixed
            chosen = best_within(values[window], self.costs[window], least, self.limit - fixed)
            if chosen is not None:
                filled = mask.clone()
                filled[window] = chosen.float()
                if float(values[filled > 0].sum()) >= enough:
                    return self._added(filled, order)
            if size >= max(len(kept), len(left)):
                return mask
            size *= 2
