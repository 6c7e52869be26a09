"""MDE: dims by popularity, without training data: d_j is proportional to C_j^-temperature.

Ginart et al., "Mixed dimension embeddings with application to memory-efficient recommendation systems" (2019,
arXiv:1909.11810); the rule as in the authors' code, tricks/md_embedding_bag.py of facebookresearch/dlrm.

The rule follows from memory: a column of a small table costs few bytes. It is meant for targets in bytes. A
target in columns is met too, but there a column of every table costs the same, and most of them go to fields
such as gender.

Differences from the authors' code:
- The scale is the largest that fits into the target, after rounding. The code computes it before rounding, so
  its dims can be over or under the target. Columns that no longer fit are skipped, and what is left goes to
  the tables that would be next.
- Dims are at most d_j, the columns of the supernet. In the code they have no upper bound.
- Every lookup of a field counts once; the code can divide C_j by the number of lookups per sample.
- The map from d_j to a common dim belongs to the model (ham_dist/models/lift.py).

Only dims are chosen, so the first columns of a table are kept, and no column is better than another. As in
the paper, train the sliced model from scratch: `retrain.start = "scratch"`.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field

from ham_dist.config.schema import MethodSettings
from ham_dist.methods.method import Method


class MDESettings(MethodSettings):
    """MDE: dims proportional to a negative power of the number of rows; for targets in bytes."""

    name: Literal["mde"] = "mde"
    temperature: Annotated[float, Field(ge=0, le=4)] = 0.3
    """Exponent: d_j is proportional to C_j^-temperature. 0: the same dim for every field. The default is that
    of the authors' code."""
    powers_of_two: bool = False
    """Round dims to powers of two. A target in bytes is then met less closely. With one in columns, the last
    table to get columns may have another dim."""


class MDE(Method):
    """Keeps the first d_j columns of every table: d_j = scale * C_j^-temperature, rounded, at least 1.

    The scale is the largest that fits into the budget. As it grows, the columns open in a fixed order, so it
    is enough to know the scale at which each of them opens.
    """

    Settings = MDESettings
    settings: MDESettings
    searches = False

    def choice(self) -> torch.Tensor:
        """Returns the columns in the order in which they open, as many as fit into the budget."""
        opens = self._opens_at()
        if not self.settings.powers_of_two:
            return self.space.budget.greedy(-opens)
        return self._whole_steps(opens)

    def _opens_at(self) -> torch.Tensor:
        """The scale at which each column opens, (S,) float64.

        The first columns of all tables come before all others, the smallest table first: no table gets its
        second column before every table has one.
        """
        layout = self.space.layout
        rows = torch.tensor([layout.num_embeddings[table] for table in layout.dims], dtype=torch.float64)
        per_dim = dict(zip(layout.dims, (rows**self.settings.temperature).tolist(), strict=True))
        least, most = min(per_dim.values()), max(per_dim.values())
        opens = torch.empty(layout.size, dtype=torch.float64)
        for table, part in layout.slices.items():
            dims = [self._dim_that_opens(column) for column in range(2, layout.dims[table] + 1)]
            opens[part] = torch.tensor([least * per_dim[table] / most] + [d * per_dim[table] for d in dims])
        return opens

    def _dim_that_opens(self, column: int) -> float:
        """The smallest dim before rounding that opens column number 2, 3, ... of a table."""
        if not self.settings.powers_of_two:
            return column - 0.5
        # As in the authors' code, the dim is first rounded to an integer and then to a power of two; it is
        # rounded up to 2^p from the first integer above 2^(p - 1/2).
        power = math.ceil(math.log2(column))
        return math.floor(2.0 ** (power - 0.5)) + 0.5

    def _whole_steps(self, opens: torch.Tensor) -> torch.Tensor:
        """The choice in which a table goes from one power of two to the next, or stays as it is."""
        budget, layout = self.space.budget, self.space.layout
        steps = [
            (float(scale), table, part.start + torch.nonzero(opens[part] == scale).flatten())
            for table, part in layout.slices.items()
            for scale in opens[part].unique()
        ]
        mask, left, ended = torch.zeros(layout.size), budget.limit, set()
        for _, table, columns in sorted(steps, key=lambda step: step[0]):
            cost = int(budget.costs[columns].sum())
            if cost > left:
                ended.add(table)
            if table not in ended:
                mask[columns] = 1.0
                left -= cost
        if budget.unit == "bytes":
            return mask
        # A target in columns is met exactly: the next columns open one by one.
        return budget.greedy(torch.where(mask > 0, torch.inf, -opens))
