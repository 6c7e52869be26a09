"""Ids of some records in the layout that a scorer runs on, and the checks that they pass first.

Kernels read whatever row an id names: torch stops the process or reads foreign memory, ONNX Runtime takes -1
as the last row, FBGEMM rewrites ids to 0. So ids are checked here, once, before any of them runs.

n records, F single-valued fields
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ham_dist.errors import DataError
from ham_dist.export.manifest import FieldEntry
from ham_dist.serving.vocabulary import Ids

_EXPECTED = "expected integers"


@dataclass(frozen=True)
class IdBatch:
    """Ids of n records.

    Attributes:
        singles: Ids of the single-valued fields, (F, n) int64, in the order of `FieldOrder.singles`.
        several: Values and offsets of each multi-valued field, int64, in the order of `FieldOrder.several`;
            record i has values[offsets[i] : offsets[i + 1]], and offsets is (n + 1,) and starts at 0.
        rows: n.
    """

    singles: Ids
    several: tuple[tuple[Ids, Ids], ...]
    rows: int

    def __getitem__(self, rows: slice) -> "IdBatch":
        """Returns consecutive records."""
        start, stop, step = rows.indices(self.rows)
        assert step == 1, "records are consecutive"
        stop = max(start, stop)
        several = tuple(
            (values[offsets[start] : offsets[stop]], offsets[start : stop + 1] - offsets[start])
            for values, offsets in self.several
        )
        return IdBatch(self.singles[:, start:stop], several, stop - start)

    def counts(self) -> tuple[list[int], list[int]]:
        """Returns the numbers of values and of unknown values (id 0) by field, as in `FieldOrder.names`."""
        values, unknown = [self.rows] * len(self.singles), (self.singles == 0).sum(axis=1).tolist()
        for found, _ in self.several:
            values.append(len(found))
            unknown.append(len(found) - int(np.count_nonzero(found)))
        return values, unknown


def concatenated(batches: Sequence[IdBatch]) -> IdBatch:
    """Returns the records of several batches of the same fields, one batch after the other."""
    if len(batches) == 1:
        return batches[0]
    several = tuple(
        (np.concatenate([values for values, _ in parts]), _joined([offsets for _, offsets in parts]))
        for parts in zip(*(batch.several for batch in batches), strict=True)
    )
    singles = np.concatenate([batch.singles for batch in batches], axis=1)
    return IdBatch(singles, several, sum(batch.rows for batch in batches))


def _joined(parts: Sequence[Ids]) -> Ids:
    """Offsets of concatenated values."""
    starts = np.cumsum([0, *(part[-1] for part in parts)])
    bodies = [part[:-1] + start for part, start in zip(parts, starts[:-1], strict=True)]
    return np.concatenate([*bodies, starts[-1:]])


class FieldOrder:
    """Puts ids by field into batches, and checks them.

    Args:
        fields: Fields that the model reads; at least one.
    """

    def __init__(self, fields: Sequence[FieldEntry]) -> None:
        self.singles = [field for field in fields if not field.multi_valued]
        self.several = [field for field in fields if field.multi_valued]
        self._rows = np.array([[field.num_embeddings] for field in self.singles], np.int64).reshape(-1, 1)

    @property
    def names(self) -> list[str]:
        """Names of all fields, in the order of a batch."""
        return [field.name for field in (*self.singles, *self.several)]

    def batch(self, ids: Mapping[str, Any]) -> IdBatch:
        """Returns a checked batch.

        Args:
            ids: Ids by field; fields that the model does not read are ignored. One-dimensional arrays or
                lists of integers; for a multi-valued field, a list of lists, or a tuple of values and offsets
                as in `IdBatch`.
        Raises:
            DataError: A field is absent, has another number of records than the others, or has something
                else than integers; an id is outside its table; or offsets do not fit their values.
        """
        if absent := [name for name in self.names if name not in ids]:
            raise DataError(
                f"ids: the field {absent[0]} is absent; expected {', '.join(self.names)}\n"
                "  Give each field that the model reads; 0 is the id of an unknown value."
            )
        singles = [_single(field.name, ids[field.name]) for field in self.singles]
        several = [_several(field.name, ids[field.name]) for field in self.several]
        counts = [*map(len, singles), *(len(offsets) - 1 for _, offsets in several)]
        rows = counts[0] if counts else 0
        for name, count in zip(self.names, counts, strict=True):
            if count != rows:
                first = self.names[0]
                raise DataError(f"ids: {name} has {count} records and {first} has {rows}; expected as many")
        stacked = np.stack(singles) if singles else np.empty((0, rows), np.int64)
        batch = IdBatch(stacked, tuple(several), rows)
        self.check(batch)
        return batch

    def random_batch(self, rows: int, seed: int = 0) -> IdBatch:
        """Returns a batch of random ids, with 0 to 3 values of a multi-valued field."""
        random = np.random.default_rng(seed)
        ids: dict[str, Any] = {
            field.name: random.integers(field.num_embeddings, size=rows) for field in self.singles
        }
        for field in self.several:
            offsets = np.concatenate([[0], random.integers(4, size=rows).cumsum()])
            ids[field.name] = random.integers(field.num_embeddings, size=offsets[-1]), offsets
        return self.batch(ids)

    def check(self, batch: IdBatch) -> None:
        """Checks that every id is in its table.

        Raises:
            DataError: One is not.
        """
        # As unsigned numbers, negative ids are above every limit.
        wrong = batch.singles.view(np.uint64) >= self._rows.view(np.uint64)
        if wrong.any():
            place, record = np.argwhere(wrong)[0]
            raise _outside(self.singles[place], record, batch.singles[place, record])
        for field, (values, offsets) in zip(self.several, batch.several, strict=True):
            if len(outside := np.flatnonzero((values < 0) | (values >= field.num_embeddings))):
                record = np.searchsorted(offsets, outside[0], side="right") - 1
                raise _outside(field, record, values[outside[0]])


def _outside(field: FieldEntry, record: Any, id: Any) -> DataError:
    return DataError(
        f"ids: record {record:,} (from 0): {field.name} = {id}; "
        f"its ids go from 0 to {field.num_embeddings - 1}\n"
        "  Give ids of the data that the model was trained on; 0 is the id of an unknown value."
    )


def _integers(name: str, numbers: Any) -> Ids:
    """`numbers` as a contiguous int64 array of one dimension."""
    try:
        array = np.asarray(numbers)
    except (ValueError, OverflowError):  # lists of different lengths
        raise DataError(f"ids: {name} is not a list of numbers; {_EXPECTED}, one for each record") from None
    if np.ma.is_masked(numbers):
        raise DataError(
            f"ids: {name} has masked values; {_EXPECTED}\n  Give 0, the id of an unknown value, for them."
        )
    if array.ndim != 1:
        raise DataError(f"ids: {name} has {array.ndim} dimensions; {_EXPECTED} in 1")
    if not array.size:
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu":
        raise DataError(f"ids: {name} has values of type {_type_of(array)}; {_EXPECTED}")
    if array.dtype == np.uint64:
        array = np.minimum(array, np.uint64(np.iinfo(np.int64).max))  # stays outside of every table
    return np.ascontiguousarray(array, np.int64)


def _type_of(array: np.ndarray[Any, Any]) -> str:
    return type(array[0]).__name__ if array.dtype == object else str(array.dtype)


def _single(name: str, numbers: Any) -> Ids:
    if isinstance(numbers, tuple):
        raise DataError(f"ids: {name} has values and offsets; {_EXPECTED}, one for each record")
    return _integers(name, numbers)


def _several(name: str, lists: Any) -> tuple[Ids, Ids]:
    if not isinstance(lists, tuple):
        if not isinstance(lists, list | np.ndarray) or not all(
            isinstance(one, list | tuple | np.ndarray) for one in lists
        ):
            raise DataError(f"ids: {name} is multi-valued; expected a list of integers for each record")
        parts = [_integers(name, one) for one in lists]
        values = np.concatenate(parts) if parts else np.empty(0, np.int64)
        return values, np.cumsum([0, *map(len, parts)])
    if len(lists) != 2:
        raise DataError(f"ids: {name} is a tuple of {len(lists)}; expected (values, offsets)")
    values, offsets = (_integers(name, part) for part in lists)
    if not len(offsets) or offsets[0] or offsets[-1] != len(values) or (np.diff(offsets) < 0).any():
        raise DataError(
            f"ids: the offsets of {name} do not fit its {len(values):,} values; "
            "expected them to rise from 0 to that number"
        )
    return values, offsets
