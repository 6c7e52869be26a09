"""Baseline: the same dim for every field."""

from typing import Literal

import torch

from ham_dist.config.schema import MethodSettings
from ham_dist.methods.method import Method


class UniformSettings(MethodSettings):
    """Uniform: the same dim for every field."""

    name: Literal["uniform"] = "uniform"


class Uniform(Method):
    """Gives columns to the fields in rounds, one each, until the budget is spent; full fields are skipped.

    If the last round is incomplete, its columns go to the fields with the most rows. Within a field the first
    columns are kept: no column is special.
    """

    Settings = UniformSettings
    searches = False

    def choice(self) -> torch.Tensor:
        """Returns the first columns of every field."""
        layout = self.space.layout
        scores = torch.empty(layout.size)
        by_rows = sorted(layout.dims, key=lambda table: -layout.num_embeddings[table])
        for place, table in enumerate(by_rows):
            # Column k is given in round k; within a round the field with the most rows comes first.
            scores[layout.slices[table]] = -(torch.arange(layout.dims[table]) * len(by_rows) + place).float()
        return self.space.budget.best(scores)
