"""One context and many candidates as a batch: the fields of the context are read once.

n candidates
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ham_dist.errors import DataError
from ham_dist.serving.cells import WrongCell, type_name
from ham_dist.serving.fields import FieldReader
from ham_dist.serving.fields_encoder import FieldIds, FieldsEncoder, Place, Record, offsets_of
from ham_dist.serving.id_batch import IdBatch
from ham_dist.serving.vocabulary import Ids


def candidates_batch(
    encoder: FieldsEncoder, context: Record, candidates: Sequence[Record] | pa.Table | pa.RecordBatch
) -> IdBatch:
    """Returns the records that each candidate makes up with the context, in the order of the candidates.

    Args:
        encoder: The encoder.
        context: Columns that all records share.
        candidates: The other columns: a dict for each candidate, or an Arrow table.
    Raises:
        DataError: A column is in both, or one that a field is made from in neither; or a value has another
            type or is not a finite number.
    """
    if not isinstance(context, Mapping):
        raise DataError(f"context: is {type_name(context)}; expected a dict of column name -> value")
    read: Callable[[FieldReader], tuple[list[int], Place]]
    if isinstance(candidates, pa.Table | pa.RecordBatch):
        rows = candidates.num_rows
        _require_apart(context, candidates.schema.names, "the candidates")
        read = _OfTable(encoder, candidates)
    else:
        candidates = candidates if isinstance(candidates, list | tuple) else list(candidates)
        rows = len(candidates)
        for number, candidate in enumerate(candidates):
            if not isinstance(candidate, Mapping):
                raise DataError(
                    f"{_name(number)}: is {type_name(candidate)}; expected a dict of column name -> value"
                )
            if not context.keys().isdisjoint(candidate):
                _require_apart(context, candidate, _name(number))
        read = partial(_of_dicts, candidates)
    return encoder.as_batch(
        encoder.ids_of(
            _of_context(reader, context[reader.column], rows) if reader.column in context else read(reader)
            for reader in encoder.readers
        ),
        rows,
    )


def _name(number: int) -> str:
    return f"candidate {number:,} (from 0)"


def _require_apart(context: Record, columns: Any, where: str) -> None:
    if shared := [column for column in columns if column in context]:
        raise DataError(
            f"{where}: has the column {shared[0]}, which the context has too\n  Give it in one of them."
        )


def _of_context(reader: FieldReader, cell: Any, rows: int) -> tuple[list[int], Place]:
    """Keys of one cell, and their place in all records."""
    try:
        if reader.key is not None:
            return [reader.key(cell)], lambda ids: ids.repeat(rows)
        assert reader.keys is not None, "one of both is set"
        return reader.keys(cell), partial(_tiled, rows)
    except WrongCell as error:
        raise DataError(f"context: column {reader.column} {error}") from None


def _tiled(rows: int, ids: Ids) -> FieldIds:
    return np.tile(ids, rows), np.arange(rows + 1) * len(ids)


def _of_dicts(candidates: Sequence[Record], reader: FieldReader) -> tuple[list[int], Place]:
    """Keys of a field of each candidate, and their place."""
    column, key = reader.column, reader.key
    try:
        if key is not None:
            return [key(candidate[column]) for candidate in candidates], lambda ids: ids
        assert reader.keys is not None, "one of both is set"
        lists = [reader.keys(candidate[column]) for candidate in candidates]
    except (KeyError, WrongCell) as error:
        raise _refused(candidates, reader) or error from None
    return [one for keys in lists for one in keys], partial(_of_each, [len(keys) for keys in lists])


def _of_each(counts: Sequence[int], ids: Ids) -> FieldIds:
    return ids, offsets_of(counts)


def _refused(candidates: Sequence[Record], reader: FieldReader) -> DataError | None:
    """The error of the first candidate with a wrong cell of the field; None if none is wrong."""
    read = reader.key or reader.keys
    assert read is not None, "one of both is set"
    for number, candidate in enumerate(candidates):
        if reader.column not in candidate:
            return _absent(reader, _name(number))
        try:
            read(candidate[reader.column])
        except WrongCell as error:
            return DataError(f"{_name(number)}: column {reader.column} {error}")
    return None


def _absent(reader: FieldReader, where: str) -> DataError:
    return DataError(
        f"{where}: lacks the column {reader.column}, which the field {reader.name} is made from, "
        "and so does the context\n  Give it in one of them; None is a missing value."
    )


class _OfTable:
    """Keys of a field of each row of a table, and their place."""

    def __init__(self, encoder: FieldsEncoder, table: pa.Table | pa.RecordBatch) -> None:
        self._encoder, self._table = encoder, table

    def __call__(self, reader: FieldReader) -> tuple[list[int], Place]:
        if reader.column not in self._table.schema.names:
            raise _absent(reader, "the candidates")
        cells = self._encoder.columns_of([reader.column], self._table)[reader.column]
        return self._encoder.keys_of(reader, cells)
