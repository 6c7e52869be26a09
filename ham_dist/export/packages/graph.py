"""The exported model as one graph of tensors: it checks the ids, decodes the rows and returns probabilities.

A compiled graph runs where ham_dist is not, so the check of the ids is a part of it. A graph cannot raise an
error: the probability of a record with an id outside its table is NaN.

B records, d columns of a table, n values of a multi-valued field, L values of a record with padding
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ham_dist.export.compact import CompactModel, Ids, StoredTable
from ham_dist.export.manifest import FieldEntry

PAD = -1
"""In a padded input, the place of no value."""
VALUES_INPUT, OFFSETS_INPUT = "{}.values", "{}.offsets"
"""Names of the inputs of a multi-valued field that is not padded."""
OUTPUT = "probability"
"""Name of the output, (B,) float32."""


class _Single:
    """A field with one id for each record.

    Args:
        ids: (B,) int64.
        rows: C_j.
    """

    def __init__(self, ids: torch.Tensor, rows: int) -> None:
        self.wrong = (ids < 0) | (ids >= rows)
        self._ids = torch.where(self.wrong, 0, ids)

    def pooled(self, table: StoredTable) -> torch.Tensor:
        found: torch.Tensor = table(self._ids)
        return found


class _Padded:
    """A multi-valued field with the same number of places for each record.

    Args:
        ids: (B, L) int64, PAD in places of no value.
        rows: C_j.
    """

    def __init__(self, ids: torch.Tensor, rows: int) -> None:
        outside = (ids < PAD) | (ids >= rows)
        self.wrong = outside.any(dim=1)
        self._known = (ids >= 0) & ~outside
        self._ids = torch.where(self._known, ids, 0)

    def pooled(self, table: StoredTable) -> torch.Tensor:
        rows = table(self._ids.reshape(-1)).reshape(self._ids.shape[0], self._ids.shape[1], -1)
        total = torch.where(self._known.unsqueeze(2), rows, 0.0).sum(dim=1)
        return total / self._known.sum(dim=1, keepdim=True).clamp(min=1)


class _Ragged:
    """A multi-valued field of which record i has values[offsets[i] : offsets[i + 1]].

    All records are wrong if the offsets do not rise from 0 to n.

    Args:
        values: (n,) int64.
        offsets: (B + 1,) int64.
        rows: C_j.
    """

    def __init__(self, values: torch.Tensor, offsets: torch.Tensor, rows: int) -> None:
        count, self._records = values.shape[0], offsets.shape[0] - 1
        lengths = offsets[1:] - offsets[:-1]
        misplaced = (offsets[:1] != 0) | (offsets[-1:] != count) | (lengths < 0).any().reshape(1)
        # The record of value i is the number of records that end at i or before. (A search in the offsets has
        # no ONNX operator, and EmbeddingBag becomes a loop over the records.)
        ends = torch.zeros(count + 1, dtype=torch.int64).scatter_add(
            0, offsets[1:].clamp(0, count), torch.ones_like(lengths)
        )
        self._record = torch.minimum(ends.cumsum(0)[:count], torch.full_like(values, self._records - 1))
        outside = (values < 0) | (values >= rows)
        self._values = torch.where(outside, 0, values)
        wrong = torch.zeros_like(lengths).scatter_add(0, self._record, outside.to(torch.int64))
        self.wrong = (wrong > 0) | misplaced
        self._counts = lengths.clamp(min=1).unsqueeze(1)

    def pooled(self, table: StoredTable) -> torch.Tensor:
        rows = table(self._values)
        place = self._record.unsqueeze(1).expand(-1, rows.shape[1])
        total = torch.zeros(self._records, rows.shape[1]).scatter_add(0, place, rows)
        return total / self._counts


class ServedGraph(nn.Module):
    """Probabilities of ids, with one positional input for each name in `names`.

    Args:
        model: The exported model.
        fields: The entries of the fields that it reads, in any order.
        padded: True: a multi-valued field is one input (B, L), padded with PAD at the end or anywhere. False:
            two inputs, values (n,) and offsets (B + 1,).
    """

    def __init__(self, model: CompactModel, fields: Sequence[FieldEntry], *, padded: bool) -> None:
        super().__init__()
        self.model, self.padded = model, padded
        by_name = {field.name: field for field in fields}
        self.fields = [by_name[name] for name in model.read_fields]

    @property
    def names(self) -> list[str]:
        """Names of the inputs, in their order."""
        return [name for field in self.fields for name in self._names_of(field)]

    def _names_of(self, field: FieldEntry) -> list[str]:
        if field.multi_valued and not self.padded:
            return [VALUES_INPUT.format(field.name), OFFSETS_INPUT.format(field.name)]
        return [field.name]

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Returns the probabilities (B,) float32; NaN for a record with an id outside its table."""
        given = iter(inputs)
        read = {field.name: self._read(field, given) for field in self.fields}
        first, *others = read.values()
        wrong = first.wrong
        for field in others:
            wrong = wrong | field.wrong
        columns = [
            read[name].pooled(self._table(table))
            for name, table in zip(self.model.fields, self.model.tables, strict=True)
        ]
        logits = self.model.interaction(torch.cat(columns, dim=1))
        for name, table in zip(self.model.first_order_fields, self.model.first_order, strict=True):
            logits = logits + read[name].pooled(self._table(table)).squeeze(1)
        return torch.where(wrong, torch.nan, torch.sigmoid(logits))

    @staticmethod
    def _table(table: nn.Module) -> StoredTable:
        assert isinstance(table, StoredTable)
        return table

    def _read(self, field: FieldEntry, given: Iterator[torch.Tensor]) -> _Single | _Padded | _Ragged:
        if not field.multi_valued:
            return _Single(next(given), field.num_embeddings)
        if self.padded:
            return _Padded(next(given), field.num_embeddings)
        return _Ragged(next(given), next(given), field.num_embeddings)

    def inputs(self, ids: Mapping[str, Ids]) -> dict[str, torch.Tensor]:
        """Returns ids by field, as `CompactModel.forward` takes them, as inputs by name."""
        found: dict[str, torch.Tensor] = {}
        for field in self.fields:
            of_field = ids[field.name]
            parts = (of_field,) if isinstance(of_field, torch.Tensor) else of_field
            if field.multi_valued and self.padded:
                parts = (padded(*parts),)
            found |= zip(self._names_of(field), parts, strict=True)
        return found

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """Returns the dimensions of the inputs that vary, in their order, for torch.export."""
        batch = torch.export.Dim("batch")
        shapes: list[dict[int, Any]] = []
        for place, field in enumerate(self.fields):
            if not field.multi_valued:
                shapes.append({0: batch})
            elif self.padded:
                shapes.append({0: batch, 1: torch.export.Dim(f"length_{place}")})
            else:
                shapes += [{0: torch.export.Dim(f"values_{place}")}, {0: batch + 1}]
        return tuple(shapes)


def padded(values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Returns the values of a multi-valued field as (B, L), with PAD at the end; L is at least 1."""
    lengths = offsets[1:] - offsets[:-1]
    longest = max(1, int(lengths.max())) if len(lengths) else 1
    places = torch.arange(longest).unsqueeze(0) < lengths.unsqueeze(1)
    rows = torch.full((len(lengths), longest), PAD, dtype=torch.int64)
    rows[places] = values
    return rows
