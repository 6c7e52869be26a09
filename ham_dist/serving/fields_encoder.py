"""Raw records as ids: dicts and Arrow tables, by a recipe and a vocabulary.

The function of a field that reads dicts also reads the distinct cells of a column, so both give the same ids.
All keys of a call are looked up at once.

n records
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from ham_dist.data.encode.columns import Kind, converted, is_list, kinds_of
from ham_dist.data.encode.record_files import lacking_columns
from ham_dist.data.recipe.fields import AnyField, Categorical, Format, Numeric
from ham_dist.data.recipe.load import Recipe
from ham_dist.errors import BundleError, DataError
from ham_dist.serving.cells import WrongCell, listed, type_name
from ham_dist.serving.fields import FieldReader, field_reader
from ham_dist.serving.id_batch import IdBatch
from ham_dist.serving.vocabulary import NO_KEY, Ids, Vocabulary

Record: TypeAlias = Mapping[str, Any]
FieldIds: TypeAlias = Ids | tuple[Ids, Ids]
"""Ids of one field, int64: (n,), one per record; or (values, offsets) of a multi-valued field, where record i
has values[offsets[i] : offsets[i + 1]] and offsets is (n + 1,)."""
Place: TypeAlias = Callable[[Ids], FieldIds]
"""Puts the ids of a field's keys in the order of the records."""

# Text format of records for generated data, which has no recipe.
CSV = Format(separator=",", header=True, quote='"')


class FieldsEncoder:
    """Encodes the fields of a recipe. Threads can share one.

    Args:
        recipe: Recipe of the training data; None for generated data, whose fields all have one value per
            record.
        rows: Rows of each field's table, by name, in the order of the result.
        vocabulary: Vocabulary of the fields without `hash`; None if all are hashed.
        where: The records, for messages.
    Raises:
        DataError: The recipe or the vocabulary lacks a field, or the recipe the boundaries of its quantiles.
        BundleError: A table is smaller than the ids of its vocabulary or its hash bucket size.
    """

    def __init__(
        self,
        recipe: Recipe | None,
        rows: Mapping[str, int],
        vocabulary: Vocabulary | None,
        where: str = "records",
    ) -> None:
        known: Mapping[str, AnyField] = (
            recipe.fields if recipe is not None else {name: Categorical(kind="categorical") for name in rows}
        )
        unknown = [name for name in rows if name not in known]
        if unknown:
            raise DataError(f"no field is called {', '.join(unknown)}; the fields are {', '.join(known)}")
        self._format = CSV if recipe is None else recipe.format
        self.recipe, self._where, self._vocabulary = recipe, where, vocabulary
        columns = {name: known[name].column or name for name in rows}
        self.kinds: Mapping[str, Kind] = kinds_of((columns[name], known[name]) for name in rows)
        """Content of each raw column that the fields are made from."""
        self.readers = [self._reader(name, known[name], columns[name], count) for name, count in rows.items()]
        self.singles = [field for field in self.readers if field.key is not None]
        """Readers of the single-valued fields."""
        self.several = [field for field in self.readers if field.keys is not None]
        """Readers of the multi-valued fields."""
        self._one_valued = [(field.column, field.key) for field in self.singles if field.key is not None]
        self._many_valued = [(field.column, field.keys) for field in self.several if field.keys is not None]
        self._hashed = [place for place, field in enumerate(self.singles) if field.hashed]

    def _reader(self, name: str, field: AnyField, column: str, rows: int) -> FieldReader:
        if isinstance(field, Numeric) and field.transform == "quantile" and field.boundaries is None:
            raise DataError(
                f"field {name}: the recipe has no boundaries for its quantiles; "
                "expected those that prepare computed\n"
                "  Use the recipe in the manifest.json of the prepared data."
            )
        seed = 0
        if isinstance(field, Categorical) and field.hash:
            assert self.recipe is not None, "only a recipe has hashed fields"
            buckets = self.recipe.max_rows_of(name) or 0
            if buckets > rows:
                raise BundleError(
                    f"field {name}: the recipe has max_rows = {buckets}; its table has {rows} rows"
                )
            rows = buckets
        else:
            largest = None if self._vocabulary is None else self._vocabulary.fields.get(name)
            if largest is None or self._vocabulary is None:
                raise DataError(
                    f"field {name}: has no vocabulary\n"
                    "  Export the run again, with the data that it was trained on."
                )
            if largest >= rows:
                raise BundleError(
                    f"{self._vocabulary.path}: field {name} has the id {largest}; its table has {rows} rows"
                )
            seed = self._vocabulary.seed(name)
        return field_reader(name, field, column, self.kinds[column], self._format, rows, seed)

    @property
    def fields(self) -> Sequence[str]:
        """Names of the fields, in the order of the result."""
        return [field.name for field in self.readers]

    def encode(self, records: Record | Sequence[Record] | pa.Table | pa.RecordBatch) -> dict[str, FieldIds]:
        """Encodes records.

        A column that is absent is an error, null is a missing value, and columns that no field is made from
        are ignored.

        Args:
            records: One dict of column name -> value, several, or an Arrow table. Values are text, integers,
                lists of these for a multi-valued field, numbers for a numeric field, and None.
        Returns:
            Ids by field. A value that is missing or not in the vocabulary has id 0.
        Raises:
            DataError: A column is absent, or a value has another type or is not a finite number.
        """
        if isinstance(records, pa.Table | pa.RecordBatch):
            return self.encode_columns(self.columns_of(self.kinds, records))
        batch = self.batch(records)
        found: dict[str, FieldIds] = {
            field.name: ids for field, ids in zip(self.singles, batch.singles, strict=True)
        }
        found |= {field.name: ids for field, ids in zip(self.several, batch.several, strict=True)}
        return {field.name: found[field.name] for field in self.readers}

    def batch(self, records: Record | Sequence[Record] | pa.Table | pa.RecordBatch) -> IdBatch:
        """Encodes records as a batch of the fields, first the single-valued ones; else as `encode`."""
        if isinstance(records, Mapping):
            return self._batch_of_one(records)
        if isinstance(records, pa.Table | pa.RecordBatch):
            return self._batch_of_table(records)
        return self._batch_of_dicts(records if isinstance(records, list | tuple) else listed(records))

    def _batch_of_table(self, table: pa.Table | pa.RecordBatch) -> IdBatch:
        return self.as_batch(self.encode_columns(self.columns_of(self.kinds, table)), table.num_rows)

    def as_batch(self, ids: Mapping[str, FieldIds], rows: int) -> IdBatch:
        """Returns ids by field as a batch of `rows` records."""
        singles = np.empty((len(self.singles), rows), np.int64)
        for place, field in enumerate(self.singles):
            singles[place] = ids[field.name]
        several: list[Any] = [ids[field.name] for field in self.several]
        return IdBatch(singles, tuple(several), rows)

    def _batch_of_dicts(self, records: Sequence[Record]) -> IdBatch:
        keys = [key for field in self.singles for key in self._keys_of_cells(field, records)]
        counts = []
        for field in self.several:
            lists = self._lists_of_cells(field, records)
            counts.append([len(more) for more in lists])
            for more in lists:
                keys += more
        return self._looked_up(keys, counts, len(records))

    def _batch_of_one(self, record: Record) -> IdBatch:
        """A batch of one record, in a third of the time."""
        try:
            keys = [key(record[column]) for column, key in self._one_valued]
            lists = [read(record[column]) for column, read in self._many_valued]
        except (KeyError, WrongCell):
            return self._batch_of_dicts([record])  # raises the error with the number of the record
        for more in lists:
            keys += more
        return self._looked_up(keys, [[len(more)] for more in lists], 1)

    def _looked_up(self, keys: list[int], counts: Sequence[Sequence[int]], rows: int) -> IdBatch:
        """The batch of keys: those of each single-valued field, then those of each multi-valued one.

        Args:
            counts: Number of values in each record, by multi-valued field.
        """
        # The ids of hashed fields are looked up too, and not used: one call is faster than several.
        ids = self.look_up(keys)
        for place in self._hashed:
            ids[place * rows : (place + 1) * rows] = keys[place * rows : (place + 1) * rows]
        end = len(self.singles) * rows
        singles = ids[:end].reshape(len(self.singles), rows)
        several = []
        for lengths in counts:
            offsets = offsets_of(lengths)
            several.append((ids[end : end + offsets[-1]], offsets))
            end += offsets[-1]
        return IdBatch(singles, tuple(several), rows)

    def encode_columns(self, cells: Mapping[str, pa.Array]) -> dict[str, FieldIds]:
        """Encodes columns of the same length, which `data.encode.columns.converted` returned.

        Args:
            cells: The columns of `kinds`, by name.
        """
        return self.ids_of(self.keys_of(field, cells[field.column]) for field in self.readers)

    def ids_of(self, read: Iterable[tuple[list[int], Place]]) -> dict[str, FieldIds]:
        """Looks up all fields in one call.

        Args:
            read: The keys of each of `readers`, and their place.
        Returns:
            Ids by field.
        """
        keys: list[int] = []
        places: list[tuple[int, int, Place]] = []
        for found, place in read:
            places.append((len(keys), len(keys) + len(found), place))
            keys += found
        # The ids of hashed fields are looked up too, and not used: one call is faster than several.
        looked_up = self.look_up(keys)
        return {
            field.name: place(np.array(keys[start:end], np.int64) if field.hashed else looked_up[start:end])
            for field, (start, end, place) in zip(self.readers, places, strict=True)
        }

    def look_up(self, keys: list[int]) -> Ids:
        """Returns the ids of the keys of any fields without `hash`, (n,)."""
        return np.zeros(len(keys), np.int64) if self._vocabulary is None else self._vocabulary.ids(keys)

    def _keys_of_cells(self, field: FieldReader, records: Sequence[Record]) -> list[int]:
        """Keys of a single-valued field of each record."""
        column, key = field.column, field.key
        assert key is not None, "single-valued"
        try:
            return [key(record[column]) for record in records]
        except (KeyError, TypeError, WrongCell) as error:
            raise self._refused(field, records) or error from None

    def _lists_of_cells(self, field: FieldReader, records: Sequence[Record]) -> list[list[int]]:
        """Keys of a multi-valued field of each record."""
        column, keys = field.column, field.keys
        assert keys is not None, "multi-valued"
        try:
            return [keys(record[column]) for record in records]
        except (KeyError, TypeError, WrongCell) as error:
            raise self._refused(field, records) or error from None

    def _refused(self, field: FieldReader, records: Sequence[Record]) -> DataError | None:
        """The error of the first record with a wrong cell of the field; None if no record is wrong."""
        read = field.key or field.keys
        assert read is not None, "one of both is set"
        for number, record in enumerate(records):
            where = f"{self._where}: record {number:,} (from 0)"
            if not isinstance(record, Mapping):
                return DataError(f"{where}: is {type_name(record)}; expected a dict of column name -> value")
            missing = [column for column in self.kinds if column not in record]
            if missing:
                return DataError(lacking_columns(where, list(map(str, record)), missing))
            try:
                read(record[field.column])
            except WrongCell as error:
                return DataError(f"{where}: column {field.column} {error}")
        return None

    def columns_of(self, columns: Iterable[str], table: pa.Table | pa.RecordBatch) -> dict[str, pa.Array]:
        """Returns converted columns of a table by name."""
        names = table.schema.names
        wanted = {column: self.kinds[column] for column in columns}
        missing = [column for column in wanted if column not in names]
        if missing:
            raise DataError(lacking_columns(self._where, names, missing))
        cells: dict[str, pa.Array] = {}
        for column, kind in wanted.items():
            if names.count(column) > 1:
                raise DataError(
                    f"{self._where}: has {names.count(column)} columns called {column}\n"
                    "  Keep only the one that the field is made from."
                )
            found = table.column(column)
            found = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
            cells[column] = converted(found, kind, self._format, self._where, column, 0)
        return cells

    def keys_of(self, field: FieldReader, cells: pa.Array) -> tuple[list[int], Place]:
        """Returns the keys of the distinct cells of a converted column, and their place."""
        try:
            return _keys_of(field, cells)
        except UnicodeDecodeError:
            raise DataError(
                f"{self._where}: column {field.column} holds text that is not UTF-8\n  Write it as UTF-8."
            ) from None


def _keys_of(field: FieldReader, cells: pa.Array) -> tuple[list[int], Place]:
    """Keys of the distinct cells of a converted column, and their place."""
    if is_list(cells.type):
        return _keys_of_lists(field, cells)
    distinct = cells.dictionary_encode()
    values = [*distinct.dictionary.to_pylist(), None]
    places = distinct.indices.fill_null(len(values) - 1).to_numpy()
    if field.key is not None:
        key = field.key
        return [key(value) for value in values], lambda ids: ids[places]
    assert field.keys is not None, "one of both is set"
    several = [field.keys(value) for value in values]
    return [key for keys in several for key in keys], _Lists([len(keys) for keys in several], places)


def _keys_of_lists(field: FieldReader, cells: pa.Array) -> tuple[list[int], Place]:
    """Keys of the distinct values in lists, and their place. Empty and missing values are left out."""
    lengths = cells.value_lengths().fill_null(0).to_numpy()
    distinct = cells.flatten().dictionary_encode()
    values = distinct.dictionary.to_pylist()
    keys = [field.key_of_text(value) if value else NO_KEY for value in values]
    indices = distinct.indices.fill_null(len(values)).to_numpy()
    there = np.array([*map(bool, values), False])[indices]
    counts = np.bincount(np.repeat(np.arange(len(cells)), lengths)[there], minlength=len(cells))
    # A record without values has one, with the key after the last.
    padded = np.insert(indices[there], np.cumsum(counts)[counts == 0], len(values))
    return [*keys, NO_KEY], _Values(padded, np.maximum(counts, 1))


def offsets_of(counts: Any) -> Ids:
    """Returns where each record begins, and the end, (n + 1,)."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


class _Values:
    """Place of the ids of distinct values: `places` of all records' values, of which each has `counts`."""

    def __init__(self, places: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]) -> None:
        self._places, self._counts = places, counts

    def __call__(self, ids: Ids) -> FieldIds:
        return ids[self._places], offsets_of(self._counts)


class _Lists:
    """Place of the ids of distinct cells with `counts` values each, at `places`."""

    def __init__(self, counts: Sequence[int], places: np.ndarray[Any, Any]) -> None:
        self._counts, self._places = counts, places

    def __call__(self, ids: Ids) -> FieldIds:
        starts = offsets_of(self._counts)[self._places]
        lengths = np.array(self._counts, np.int64)[self._places]
        ends = offsets_of(lengths)
        within = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths)
        return ids[np.repeat(starts, lengths) + within], ends
