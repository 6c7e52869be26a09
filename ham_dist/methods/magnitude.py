"""Control: the longest columns of the pretrained tables."""

import torch

from ham_dist.methods.method import Method


class Magnitude(Method):
    """The columns with the largest Euclidean norm over all rows of their table stay."""

    searches = False

    def choice(self) -> torch.Tensor:
        """Columns by falling norm, as far as they fit."""
        return self.space.budget.best(self.space.column_norms())
