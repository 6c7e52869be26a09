"""Soft thresholds of sharded tables: S(V, s) = sign(V) relu(|V| - sigmoid(s)), and the gradient of s.

Shape letters: T tables, S columns of all tables.
"""

from typing import Literal

import torch

from ham_dist.distributed.planning.placement import Placement
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.ranks.rounding import FLOAT32_BITS, rounded
from ham_dist.distributed.sharding.local_table import LocalTable
from ham_dist.distributed.sharding.model import TABLES, ShardedModel

Granularity = Literal["table", "column", "element"]
"""Numbers that share a threshold."""


class Thresholds:
    """The thresholds s of all tables under search.

    Args:
        model: The tables.
        granularity: Numbers that share a threshold.
        start: Initial value of every s.
    Attributes:
        shared: s of every table (T,) or column (S,), the same on every rank; empty for `element`.
        own: s of the numbers of this rank's shards, by table, with the shape of `LocalTable.values`; empty
            unless `element`.
    Source: Kusupati et al., "Soft threshold weight reparameterization for learnable sparsity" (2020), Eq. 3;
        Liu et al., "Learnable embedding sizes for recommender systems" (PEP, 2021), Eq. 4.
    """

    def __init__(self, model: ShardedModel, granularity: Granularity, start: float) -> None:
        self.model = model
        self.granularity = granularity
        layout = model.mask.layout
        sizes = {"table": len(layout.dims), "column": layout.size, "element": 0}
        self.shared = torch.full((sizes[granularity],), start, device=model.device)
        self.own = (
            {field: torch.full_like(local.values, start) for field, local in model.local.items()}
            if granularity == "element"
            else {}
        )

    def of(self, field: str, local: LocalTable) -> torch.Tensor:
        """Returns s of this rank's shard of a table, to be broadcast over its columns in use."""
        if self.granularity == "element":
            return self.own[field][:, : local.columns.shape[1]]
        if self.granularity == "column":
            return self.shared[self.model.mask.layout.slices[field]][local.in_use]
        return self.shared[list(self.model.mask.layout.dims).index(field)]

    def applied_to(self, field: str, local: LocalTable, values: torch.Tensor) -> torch.Tensor:
        """Returns S(V, s) of this rank's `values`, (rows, columns in use)."""
        threshold = torch.sigmoid(self.of(field, local))
        return torch.sign(values) * torch.relu(values.abs() - threshold)

    def gradients(self, signs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns dL/ds of `shared` and of `own`. A collective.

        Args:
            signs: For each table on this rank, dL/dS times -sign(V) where |V| is above the threshold, and 0
                elsewhere: (rows, columns in use).
        """
        layout, own = self.model.mask.layout, dict[str, torch.Tensor]()
        sums = torch.zeros(layout.size, dtype=torch.float64, device=self.model.device)
        for field, local in self.model.local.items():
            slope = torch.sigmoid(self.of(field, local))
            slope = slope * (1 - slope)
            if self.granularity == "element":
                own[field] = torch.zeros_like(local.values)
                own[field][:, : local.columns.shape[1]] = signs[field] * slope
            elif _counts_here(self.model.plan.groups[TABLES][field]):
                sums[layout.slices[field]][local.in_use] = (signs[field].double() * slope).sum(dim=0)
        if self.granularity == "element":
            return self.shared.new_zeros(0), own
        summed = rounded(process_group.sum_over_ranks(sums), FLOAT32_BITS)
        if self.granularity == "table":
            summed = torch.stack([summed[part].sum() for part in layout.slices.values()])
        return summed.float(), own


def _counts_here(placement: Placement) -> bool:
    """True on one rank for a table with a copy on every rank, whose gradient is the same on all of them."""
    return not placement.replicated or placement.shards[0].rank == process_group.rank()
