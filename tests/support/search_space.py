"""A search space of three tables, for tests of methods."""

from collections.abc import Callable
from typing import Any

import torch

from ham_dist.config.target import Target
from ham_dist.embedding.mask import ColumnLayout
from ham_dist.methods.budget import Budget
from ham_dist.methods.method import MaskLoss, Method, SearchSpace
from ham_dist.methods.registry import METHODS

DIMS = {"user": 4, "gender": 2, "movie": 4}
ROWS = {"user": 100, "gender": 3, "movie": 50}
LAYOUT = ColumnLayout(DIMS, ROWS)
BANDS = {
    "user": [slice(0, 1), slice(1, 4)],
    "gender": [slice(0, 1), slice(1, 2)],
    "movie": [slice(0, 1), slice(1, 4)],
}
"""Bands for methods that choose one of each table: one column, or the rest."""


def space(
    target: Target, *, norms: torch.Tensor | None = None, seed: int = 0, bands: bool = False
) -> SearchSpace:
    """Ten columns; `norms` of them, ones by default; with BANDS if `bands` is true."""
    return SearchSpace(
        LAYOUT,
        Budget(target, LAYOUT),
        lambda: torch.ones(LAYOUT.size) if norms is None else norms,
        seed,
        torch.device("cpu"),
        BANDS if bands else None,
        lambda weights: {table: torch.eye(dim, dtype=torch.float64) for table, dim in DIMS.items()},
    )


def method(
    name: str, target: Target, *, norms: torch.Tensor | None = None, seed: int = 0, **settings: Any
) -> Method:
    """A method on that space."""
    kind = METHODS[name]
    columns = space(target, norms=norms, seed=seed, bands=kind.chooses_bands)
    return kind(columns, kind.Settings.model_validate(settings))


def with_gradient(gradient_at: Callable[[torch.Tensor], torch.Tensor]) -> MaskLoss:
    """A loss of which only the gradient is known."""

    def unknown(mask: torch.Tensor) -> float:
        raise AssertionError("the method is not to use the loss itself")

    return MaskLoss(gradient_at, unknown, rows=1)
