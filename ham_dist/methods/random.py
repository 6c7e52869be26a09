"""Control: columns by chance."""

import torch

from ham_dist.methods.method import Method


class Random(Method):
    """Every column has the same chance to stay; drawn from the run's seed."""

    searches = False

    def choice(self) -> torch.Tensor:
        """Columns in an order drawn once for the seed, as far as they fit."""
        generator = torch.Generator().manual_seed(self.space.seed)
        return self.space.budget.best(torch.rand(self.space.layout.size, generator=generator))
