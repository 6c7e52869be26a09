"""Control: the same width for every field."""

from typing import Literal

import torch

from ham_dist.config.schema import MethodSettings
from ham_dist.methods.method import Method


class UniformSettings(MethodSettings):
    """Uniform: the same width for every field."""

    name: Literal["uniform"] = "uniform"


class Uniform(Method):
    """Columns are dealt to the fields in rounds, one each, until the budget is spent; a field that has all its own is passed over.

    What the last round cannot give to all goes to the fields with most rows. Within a field the first columns stay: none is special.
    """

    Settings = UniformSettings
    searches = False

    def choice(self) -> torch.Tensor:
        """The first columns of every field."""
        layout = self.space.layout
        scores = torch.empty(layout.size)
        by_rows = sorted(layout.dims, key=lambda table: -layout.rows[table])
        for place, table in enumerate(by_rows):
            # Column k is dealt in round k; in a round the field with most rows comes first.
            scores[layout.slices[table]] = -(torch.arange(layout.dims[table]) * len(by_rows) + place).float()
        return self.space.budget.best(scores)
