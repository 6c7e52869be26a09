"""What all interactions share: they read the columns of all fields, and say which of their weights read which columns.

B rows, F fields, d_j columns of field j, D = sum of d_j
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ham_dist.config.schema import ModelSettings
from ham_dist.errors import TargetError


@dataclass(frozen=True)
class Axis:
    """What one dimension of a weight runs over: the columns of some fields one after the other, or a fixed block of entries for each field.

    fields: the fields in the order in which the dimension holds them.
    block:  entries for each field where the dimension does not run over columns (a lifted field); None: it runs over the field's columns.
    tail:   entries after those of the fields, which slicing keeps (a linear over [cross, deep] reads the deep units there).
    """

    fields: tuple[str, ...]
    block: int | None = None
    tail: int = 0

    def kept(self, dims: Mapping[str, int], columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Indices of this dimension that stay when only `columns` of each field stay.

        dims:   d_j before slicing.
        columns:  kept column numbers of each field, ascending, int64; an empty tensor for a field that leaves.
        returns:  int64 indices, ascending.
        """
        kept, start = [], 0
        for field in self.fields:
            if self.block is None:
                kept.append(columns[field] + start)
                start += dims[field]
            else:
                if len(columns[field]):
                    kept.append(torch.arange(start, start + self.block))
                start += self.block
        kept.append(torch.arange(start, start + self.tail))
        return torch.cat(kept)


class Interaction(nn.Module, ABC):
    """The part of a CTR model above the tables, plain torch.

    Args:
        dims: d_j by field, in the order in which forward's columns stand; 0 for a field that has left the model but still has a slot.
        settings: The model's own settings.
    """

    Settings: ClassVar[type[ModelSettings]]
    """Its keys in [model]; the default of `name` is the model's name."""

    keeps_slots: ClassVar[bool] = False
    """Whether a field without columns still stands in the model, as a vector of zeros; elsewhere it is dropped from `dims`."""

    def __init__(self, dims: Mapping[str, int], settings: ModelSettings) -> None:
        super().__init__()
        self.dims = {field: width for field, width in dims.items() if width or self.keeps_slots}
        if not any(self.dims.values()):
            raise TargetError(
                f"{type(self).__name__}: no field has a column left; a model needs at least 1. Raise the target."
            )

    @classmethod
    def has_first_order_tables(cls, settings: ModelSettings) -> bool:
        """Returns True if a first-order term comes from tables of width 1, one a field, outside of this module."""
        return False

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights, and so of the columns that it takes and the logits that it gives."""
        return next(self.parameters()).dtype

    @abstractmethod
    def forward(self, columns: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B,) of the columns of all fields, (B, D), fields in the order of `dims`.

        mask: (D,), multiplied into the columns; or, to the same effect and for less, into the weights that alone read them. None: all ones.
        """

    @abstractmethod
    def axes(self) -> dict[str, dict[int, Axis]]:
        """For each weight that reads columns, by its name in `named_parameters()`: which of its dimensions run over columns.

        A weight (or a dimension) that is not named does not change when columns are sliced away. A weight whose kept size is 0 leaves the model.
        """
