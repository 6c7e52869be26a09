"""Builds the file of a `Vocabulary` from Parquet vocabularies, in bounded memory.

Keys are spread evenly, so the values are first distributed to parts by the highest bits of their keys; each
part is then sorted in memory, and the parts follow one another. Memory is bounded by one part, one batch of
the Parquet files, and one byte per value of the largest field.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ham_dist.errors import DataError
from ham_dist.io.atomic import new_file
from ham_dist.serving.vocabulary import KEY, LAST_KEY, NO_KEY, Header, key_of, seed_of

PART_KEYS = 1 << 20
"""Mean number of keys of a part; a key takes about 60 bytes while its part is sorted."""
_MOST_PARTS = 512
"""Parts are open files at the same time; processes may open 1,024."""
_BATCH_ROWS = 1 << 16
_SALTS = 64
"""Salts to try. One of them fails with probability n^2 / 2^65 for n keys, 3e-4 for 10^8."""
_ENTRY = np.dtype([("key", KEY), ("id", "<i8"), ("field", "<u4")])
_COPY = "Copy it again from where it was written."


class Source(NamedTuple):
    """The vocabulary of a field.

    Attributes:
        path: A Parquet file with the columns `value` (text) and `id`.
        rows: Rows of the field's table; ids are 1 to rows - 1.
    """

    path: Path
    rows: int


class _SharedKey(Exception):
    """Raised if two different values of the vocabulary have the same key."""


def build_vocabulary(out: Path, sources: Mapping[str, Source], part_keys: int = PART_KEYS) -> Header:
    """Writes the file of a `Vocabulary`, atomically.

    Args:
        out: The file. Temporary files, 20 bytes for each key, are written next to it.
        sources: The vocabulary of each field, in the order of the fields' numbers.
        part_keys: Mean number of keys that are sorted at once.
    Returns:
        The header of the file.
    Raises:
        DataError: A file is not a vocabulary, or has a value or an id twice, or an id outside the table.
        OSError: The file cannot be written.
    """
    counts = [_checked_rows(source.path) for source in sources.values()]
    keys = sum(counts)
    bits = min(max(0, ((keys - 1) // part_keys).bit_length()), _MOST_PARTS.bit_length() - 1)
    for salt in range(_SALTS):
        with (
            suppress(_SharedKey),
            new_file(out) as temporary,
            tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder,
        ):
            parts = [Path(folder) / str(number) for number in range(1 << bits)]
            largest = _distribute(sources, counts, salt, parts)
            header = Header(list(sources), largest, salt, keys)
            _write(temporary, header, parts, sources)
            return header
    raise RuntimeError(f"{out}: {_SALTS} salts give equal keys to different values")


def _checked_rows(path: Path) -> int:
    """Number of rows of a vocabulary file, whose columns have the right types."""
    if not path.is_file():
        raise DataError(f"{path}: no such vocabulary file")
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None
    missing = [name for name in ("value", "id", "count") if name not in schema.names]
    if missing:
        raise DataError(f"{path}: is not a vocabulary: it lacks the column {', '.join(missing)}")
    value, id = schema.field("value").type, schema.field("id").type
    if not ((pa.types.is_string(value) or pa.types.is_large_string(value)) and pa.types.is_integer(id)):
        raise DataError(
            f"{path}: has values of type {value} and ids of type {id}; expected text and integers\n  {_COPY}"
        )
    return rows


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read ({str(error).splitlines()[0]})\n  {_COPY}")


def _batches(path: Path) -> Iterator[tuple[pa.Array, np.ndarray[Any, Any]]]:
    """Values and ids (int64) of a vocabulary file."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=["value", "id"]):
                values, ids = batch.column("value"), batch.column("id")
                if values.null_count or ids.null_count:
                    raise _repeated(path)
                yield values, ids.cast(pa.int64()).to_numpy()
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _keys(values: pa.Array, seed: int) -> np.ndarray[Any, Any]:
    binary = values.cast(pa.large_binary())
    return np.fromiter((key_of(value, seed) for value in binary.to_pylist()), KEY, len(values))


class _SeenIds:
    """Ids that were seen: `prepare` numbers a vocabulary from 1 to `count`; others may leave out numbers."""

    def __init__(self, count: int) -> None:
        self._small, self._large = np.zeros(count + 1, bool), set[int]()

    def add(self, ids: np.ndarray[Any, Any]) -> bool:
        """Adds ids. Returns False if one of them was seen before."""
        small, large = ids[ids < len(self._small)], set(ids[ids >= len(self._small)].tolist())
        before = np.count_nonzero(self._small) + len(self._large)
        self._small[small] = True
        self._large |= large
        return bool(np.count_nonzero(self._small) + len(self._large) == before + len(ids))


def _distribute(sources: Mapping[str, Source], counts: list[int], salt: int, parts: list[Path]) -> list[int]:
    """Writes the entries of each part to its file, unsorted.

    Args:
        counts: Number of values of each field.
    Returns:
        Largest id of each field.
    """
    shift = np.uint64(64 - (len(parts) - 1).bit_length())
    bounds = np.arange(1, len(parts), dtype=KEY) << shift if len(parts) > 1 else np.empty(0, KEY)
    largest = []
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb", buffering=0)) for path in parts]
        for number, source in enumerate(sources.values()):
            seen, most, seed = _SeenIds(counts[number]), 0, seed_of(salt, number)
            for values, ids in _batches(source.path):
                if ids.max(initial=0) >= source.rows:
                    raise _outside(source, int(ids.max()))
                if ids.min(initial=1) < 1 or not seen.add(ids):
                    raise _repeated(source.path)
                most = max(most, int(ids.max(initial=0)))
                entries = np.empty(len(ids), _ENTRY)
                entries["key"], entries["id"], entries["field"] = _keys(values, seed), ids, number
                _append(files, entries, bounds)
            largest.append(most)
    return largest


def _append(files: Sequence[IO[bytes]], entries: np.ndarray[Any, Any], bounds: np.ndarray[Any, Any]) -> None:
    entries = entries[entries["key"].argsort(kind="stable")]
    for file, part in zip(files, np.split(entries, entries["key"].searchsorted(bounds)), strict=True):
        file.write(part.tobytes())


def _write(out: Path, header: Header, parts: list[Path], sources: Mapping[str, Source]) -> None:
    """Sorts the parts and writes them one after the other."""
    start = header.encode()
    id_type = np.dtype("<i8" if header.id_type == "I64" else "<i4")
    keys_place, ids_place = len(start), len(start) + header.length * KEY.itemsize
    with out.open("wb") as file:
        file.write(start)
        for path in parts:
            entries = np.fromfile(path, _ENTRY)
            entries = entries[entries["key"].argsort(kind="stable")]
            _require_distinct(entries, header.salt, sources)
            keys_place = _place(file, keys_place, entries["key"])
            ids_place = _place(file, ids_place, entries["id"].astype(id_type))
        padding = header.length - header.keys
        _place(file, keys_place, np.full(padding, LAST_KEY, KEY))
        _place(file, ids_place, np.zeros(padding, id_type))


def _place(file: IO[bytes], place: int, numbers: np.ndarray[Any, Any]) -> int:
    """Writes `numbers` at `place`, and returns the place after them."""
    file.seek(place)
    file.write(np.ascontiguousarray(numbers).tobytes())
    return place + numbers.nbytes


def _require_distinct(entries: np.ndarray[Any, Any], salt: int, sources: Mapping[str, Source]) -> None:
    """Checks that no two entries (ascending by key) have the same key, and none has a reserved one.

    Raises:
        DataError: A value is twice in a vocabulary.
        _SharedKey: Different values have the same key, or a value has a reserved key.
    """
    keys = entries["key"]
    same = keys[1:] == keys[:-1]
    if same.any():
        fields = entries["field"]
        shared = set(keys[1:][same & (fields[1:] == fields[:-1])].tolist())
        for number in set(fields[1:][same].tolist()) if shared else ():
            _require_no_value_twice(list(sources.values())[number].path, shared, seed_of(salt, number))
        raise _SharedKey
    if len(keys) and (keys[0] == NO_KEY or keys[-1] == LAST_KEY):
        raise _SharedKey


def _require_no_value_twice(path: Path, shared: set[int], seed: int) -> None:
    """Checks the values with the keys `shared`: few, so they are kept in memory."""
    seen: set[str] = set()
    for values, _ in _batches(path):
        for value in values.filter(pa.array(np.isin(_keys(values, seed), list(shared)))).to_pylist():
            if value in seen:
                raise _repeated(path)
            seen.add(value)


def _outside(source: Source, id: int) -> DataError:
    return DataError(
        f"{source.path}: has the id {id}; the ids of its table go from 1 to {source.rows - 1}\n  {_COPY}"
    )


def _repeated(path: Path) -> DataError:
    """The error of a vocabulary with missing or repeated values or ids."""
    table = pq.read_table(path, columns=["value", "id"])
    values, ids = (pc.count_distinct(table[name]).as_py() for name in ("value", "id"))
    span = pc.min_max(table["id"])
    return DataError(
        f"{path}: has {table.num_rows:,} rows with {values:,} different values and {ids:,} "
        f"different ids from {span['min']} to {span['max']}; expected each once, and ids from 1\n  {_COPY}"
    )
