"""Baseline: keeps the columns with the largest norms in the pretrained tables."""

from typing import Literal

import torch

from ham_dist.config.schema import MethodSettings
from ham_dist.methods.method import Method


class MagnitudeSettings(MethodSettings):
    """Magnitude: the columns with the largest norms in the pretrained tables."""

    name: Literal["magnitude"] = "magnitude"


class Magnitude(Method):
    """Keeps the columns with the largest Euclidean norm over all rows of their table."""

    Settings = MagnitudeSettings
    searches = False

    def choice(self) -> torch.Tensor:
        """Returns the columns in decreasing order of norm, as many as fit into the budget."""
        return self.space.budget.best(self.space.column_norms())
