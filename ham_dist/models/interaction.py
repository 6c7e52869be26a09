"""The interface of interactions, which read the columns of all fields and declare which weights read which.

Shape letters: B rows, F fields, d_j columns of field j, D = sum of d_j.
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
    """One dimension of a weight: it runs over the fields' columns, or has a block of entries per field.

    Attributes:
        fields: The fields, in their order along the dimension.
        block: Entries per field if the dimension runs over lifted fields; None if it runs over the fields'
            columns.
        bands: With `block`: the columns of each field that its block reads; the block is kept if one of them
            is. None: all columns of the field.
        tail: Entries after those of the fields, which slicing keeps. (In a linear over [cross, deep], these
            read the deep units.)
    """

    fields: tuple[str, ...]
    block: int | None = None
    tail: int = 0
    bands: tuple[slice, ...] | None = None

    def kept(self, dims: Mapping[str, int], columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the indices of this dimension that are kept when only `columns` of each field are kept.

        Args:
            dims: d_j before slicing.
            columns: Kept column numbers of each field, ascending, int64; an empty tensor for a field that is
                removed.
        Returns:
            int64 indices, ascending.
        """
        kept, start = [], 0
        for number, field in enumerate(self.fields):
            if self.block is None:
                kept.append(columns[field] + start)
                start += dims[field]
            else:
                band = slice(0, dims[field]) if self.bands is None else self.bands[number]
                if bool(((columns[field] >= band.start) & (columns[field] < band.stop)).any()):
                    kept.append(torch.arange(start, start + self.block))
                start += self.block
        kept.append(torch.arange(start, start + self.tail))
        return torch.cat(kept)


class Interaction(nn.Module, ABC):
    """The part of a CTR model above the tables, in plain torch.

    Args:
        dims: d_j by field, in the order of the columns in `forward`; 0 for a removed field that still has a
            slot.
        settings: The model's own settings.
    Raises:
        TargetError: No field has a column.
    """

    Settings: ClassVar[type[ModelSettings]]
    """Class of the settings in [model]; the default of its `name` is the model's name."""

    is_linear_in_columns: ClassVar[bool] = False
    """True if only linear maps read the columns: the weights in `axes` with dimensions without a block. Then
    a rotation of a table's columns can be multiplied into them, as `search.rotate` does."""

    keeps_slots: ClassVar[bool] = False
    """True if a field without columns remains as a vector of zeros; False if it is dropped from `dims`."""

    def __init__(self, dims: Mapping[str, int], settings: ModelSettings) -> None:
        super().__init__()
        self.dims = {field: dim for field, dim in dims.items() if dim or self.keeps_slots}
        if not any(self.dims.values()):
            raise TargetError(
                f"{type(self).__name__}: no field has a column left; a model needs at least 1. Raise the "
                "target."
            )

    @classmethod
    def has_first_order_tables(cls, settings: ModelSettings) -> bool:
        """Returns True if the first-order term comes from tables of dim 1 per field, outside this module."""
        return False

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights, the columns and the logits."""
        return next(self.parameters()).dtype

    @abstractmethod
    def forward(self, columns: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the logits, (B,).

        Args:
            columns: Columns of all fields, (B, D), with the fields in the order of `dims`.
            mask: (D,), multiplied into the columns, or, with the same result and fewer products, into the
                only weights that read them. None: all ones.
        """

    def bands(self) -> dict[str, list[slice]] | None:
        """Returns the columns of each field that open and close together, of which slicing keeps one group.

        None if every column is chosen on its own.
        """
        return None

    @abstractmethod
    def axes(self) -> dict[str, dict[int, Axis]]:
        """Returns the dimensions that run over columns, for each weight that has any, by parameter name.

        A weight or a dimension that is not named is unchanged by slicing. A weight of which nothing is kept
        is removed.
        """
