"""Control: the longest columns of the pretrained tables."""

from typing import Literal

import torch

from ham_dist.config.schema import MethodSettings
from ham_dist.methods.method import Method


class MagnitudeSettings(MethodSettings):
    """Magnitude: the longest columns of the pretrained tables."""

    name: Literal["magnitude"] = "magnitude"


class Magnitude(Method):
    """The columns with the largest Euclidean norm over all rows of their table stay."""

    Settings = MagnitudeSettings
    searches = False

    def choice(self) -> torch.Tensor:
        """Columns by falling norm, as far as they fit."""
        return self.space.budget.best(self.space.column_norms())
