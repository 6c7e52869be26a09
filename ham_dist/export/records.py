"""Records to score, a block at a time: prepared ids as they are, raw values through the vocabulary of the bundle. Needs no TorchRec.

B rows of a block
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ham_dist.data.format.manifest import Manifest
from ham_dist.errors import BundleError, DataError
from ham_dist.export.bundle import Bundle
from ham_dist.export.compact import Ids
from ham_dist.export.manifest import FieldEntry
from ham_dist.io.paths import exists, local_path

Values = Literal["auto", "ids", "raw"]


def read_blocks(
    bundle: Bundle, source: str | Path, fields: Sequence[FieldEntry], values: Values, block_rows: int
) -> Iterator[dict[str, Ids]]:
    """Ids of `fields` by name, in the order of the records, `block_rows` records at a time.

    source:  a Parquet file, a folder of *.parquet (taken in the order of their names), or whatever raw records `encode_raw` takes.
    values:  what its columns hold: `ids` or `raw` values. `auto`: ids where the bundle has no vocabulary or the file lies in a folder that
             `ham-dist prepare` wrote; raw otherwise.
    raises:  DataError naming what cannot be read or is out of range; with `auto`, also where ids and raw values look the same.
    """
    if not exists(source):
        raise DataError(f"{source}: no such file or folder")
    path = local_path(source)
    files = _parquet_files(path)
    if _hold_ids(bundle, path, files, fields, values):
        if not files:
            raise DataError(
                f"{source}: the bundle takes ids, in a .parquet file or a folder of such; it has no vocabulary to read raw values with."
            )
        blocks = (block for file in files for block in _stored_blocks(file, fields, block_rows))
    else:
        blocks = (
            block for part in files or [path] for block in _encoded_blocks(bundle, part, fields, block_rows)
        )
    first_row = 0
    for block in blocks:
        yield {
            field.name: _ids(f"{source}", field, block.column(number), first_row)
            for number, field in enumerate(fields)
        }
        first_row += block.num_rows


def _parquet_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("*.parquet"))
    return [path] if path.suffix == ".parquet" else []


def _hold_ids(
    bundle: Bundle, path: Path, files: Sequence[Path], fields: Sequence[FieldEntry], values: Values
) -> bool:
    if not bundle.manifest.vocabulary:
        if values == "raw":
            raise BundleError(f"{bundle.root}: has no vocabulary, so it cannot read raw values. Give ids.")
        return True
    if values != "auto":
        return values == "ids"
    if path.is_dir() and (path / "manifest.json").is_file() and not files:
        splits = sorted(str(found.parent) for found in path.glob("*/part-00000.parquet"))
        raise DataError(f"{path}: prepared data of several splits. Give one of them: {', '.join(splits)}.")
    if not files:
        return False
    if (files[0].parent.parent / "manifest.json").is_file():
        _require_same_vocabulary(bundle, files[0].parent.parent, fields)
        return True
    schema = _opened(files[0]).schema_arrow
    if all(field.name in schema.names and _is_integer(schema.field(field.name).type) for field in fields):
        raise DataError(
            f"{path}: holds whole numbers, which can be ids or raw values. Say which: `values` = ids or raw."
        )
    return False


def _require_same_vocabulary(bundle: Bundle, data: Path, fields: Sequence[FieldEntry]) -> None:
    """The same id must be the same value: ids of data that was prepared otherwise are in range and mean something else."""
    stored = {field.name: field.vocabulary.sha256 for field in Manifest.load(data).fields}
    files, paths = bundle.manifest.files, bundle.manifest.vocabulary
    other = [
        field.name
        for field in fields
        if field.name in paths and stored.get(field.name) != files[paths[field.name]].sha256
    ]
    if other:
        raise DataError(
            f"{data}: was prepared with another vocabulary of {', '.join(other)} than the bundle's, so its ids are other values. "
            "Score the raw records, or the data that the model was trained on."
        )


def _is_integer(type: pa.DataType) -> bool:
    return pa.types.is_integer(type.value_type if _is_list(type) else type)


def _is_list(type: pa.DataType) -> bool:
    return pa.types.is_list(type) or pa.types.is_large_list(type)


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: no Parquet file: {str(error).splitlines()[0]}") from None


def _stored_blocks(path: Path, fields: Sequence[FieldEntry], block_rows: int) -> Iterator[pa.RecordBatch]:
    """Columns of `fields`, in that order."""
    names = [field.name for field in fields]
    with _opened(path) as file:
        schema = file.schema_arrow
        for name in names:
            if name not in schema.names:
                raise DataError(
                    f"{path}: has no column {name}, which the model reads; it has {', '.join(schema.names)}"
                )
            if not _is_integer(schema.field(name).type):
                raise DataError(
                    f"{path}: column {name} is {schema.field(name).type}; ids are whole numbers, or lists of them"
                )
        try:
            for block in file.iter_batches(block_rows, columns=names):
                yield block.select(names)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: damaged: {str(error).splitlines()[0]}") from None


def _encoded_blocks(
    bundle: Bundle, path: Path, fields: Sequence[FieldEntry], block_rows: int
) -> Iterator[pa.RecordBatch]:
    """Columns of `fields`, in that order, from the raw records in one file (or in one folder of raw files)."""
    # Reading raw records takes DuckDB and Ibis, which a server that is fed ids does without.
    from ham_dist.data.encode.records import encode_raw
    from ham_dist.data.recipe.load import parse_recipe

    settings = bundle.manifest.recipe
    recipe = None if settings is None else parse_recipe(settings, where=str(bundle.root / "manifest.json"))
    try:
        vocabulary = {field: bundle.root / file for field, file in bundle.manifest.vocabulary.items()}
        table = encode_raw(recipe, vocabulary, path, fields=[field.name for field in fields])
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    return iter(table.to_batches(max_chunksize=block_rows))


def _ids(where: str, field: FieldEntry, column: pa.Array, first_row: int) -> Ids:
    """One block's ids of one field, checked."""
    flat = (
        column.flatten() if _is_list(column.type) else column
    )  # flatten, not .values: that shows the whole buffer of a slice
    if column.null_count or flat.null_count:
        raise DataError(
            f"{where}: column {field.name} lacks a value in records {first_row} to {first_row + len(column) - 1}. Unknown values have id 0."
        )
    ids = _as_int64(flat)
    wrong = np.flatnonzero((ids < 0) | (ids >= field.rows))
    if not _is_list(column.type):
        _refuse_outside(where, field, ids, wrong, first_row + wrong)
        return torch.from_numpy(ids)
    offsets = np.zeros(len(column) + 1, dtype=np.int64)
    np.cumsum(_as_int64(column.value_lengths()), out=offsets[1:])
    _refuse_outside(where, field, ids, wrong, first_row + np.searchsorted(offsets, wrong, side="right") - 1)
    return torch.from_numpy(ids), torch.from_numpy(offsets)


def _as_int64(column: pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A copy, as torch does not take memory that it must not write to."""
    return column.to_numpy(zero_copy_only=False).astype(np.int64, copy=True)


def _refuse_outside(
    where: str,
    field: FieldEntry,
    ids: np.ndarray[Any, Any],
    wrong: np.ndarray[Any, Any],
    rows: np.ndarray[Any, Any],
) -> None:
    if len(wrong):
        raise DataError(
            f"{where}: record {rows[0]} (from 0): {field.name} = {ids[wrong[0]]}: its ids go from 0 to {field.rows - 1}.\n"
            "  Give records prepared with the data that the model was trained on."
        )
