"""Records to score, read in blocks: prepared ids, or raw values encoded with the vocabulary of the bundle.

Needs no TorchRec.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ham_dist.errors import BundleError, DataError
from ham_dist.export.bundle import Bundle
from ham_dist.export.compact import Ids
from ham_dist.export.manifest import FieldEntry
from ham_dist.export.prepared import data_folder, require_same_ids
from ham_dist.io.paths import exists, local_path
from ham_dist.serving.encoder import RecordEncoder
from ham_dist.serving.fields_encoder import FieldIds
from ham_dist.serving.files import encode_files

Values = Literal["auto", "ids", "raw"]


@dataclass(frozen=True)
class RecordBlock:
    """Consecutive records.

    Attributes:
        ids: Checked ids by field.
        carried: The column that is copied to the output; None without one.
    """

    ids: dict[str, Ids]
    carried: pa.Array | None


def read_records(
    bundle: Bundle,
    source: str | Path,
    fields: Sequence[FieldEntry],
    values: Values,
    block_rows: int,
    carried: str | None = None,
) -> Iterator[RecordBlock]:
    """Yields the ids of `fields`, up to `block_rows` records at a time, in the order of the records.

    Args:
        source: A Parquet file, a folder of *.parquet (read in the order of their names), or raw records in a
            format that `encode_files` reads.
        values: Content of the columns: `ids` or `raw` values. `auto`: ids if the bundle has no vocabulary or
            the file is in a folder that `ham-dist prepare` wrote; else raw.
        carried: Name of a column that is copied unchanged.
    Raises:
        DataError: A record cannot be read or an id is out of range; the ids have other meanings than the
            bundle's; with `auto`, the columns could be ids or raw values.
    """
    if not exists(source):
        raise DataError(f"{source}: no such file or folder")
    path = local_path(source)
    files = _parquet_files(path)
    if _hold_ids(bundle, path, files, fields, values):
        if not files:
            raise DataError(
                f"{source}: is not Parquet. The bundle has no vocabulary for raw values; "
                "give ids in a .parquet file, or in a folder of such files"
            )
        yield from _checked_blocks(f"{source}", files, fields, block_rows, carried)
    else:
        yield from _encoded_blocks(bundle, files or [path], fields, block_rows, carried)


def _checked_blocks(
    where: str, files: Sequence[Path], fields: Sequence[FieldEntry], block_rows: int, carried: str | None
) -> Iterator[RecordBlock]:
    """Ids in Parquet files, checked."""
    blocks = (block for file in files for block in _stored_blocks(file, fields, block_rows, carried))
    first = 0
    for block in blocks:
        yield RecordBlock(
            {
                field.name: _ids(where, field, block.column(number), first)
                for number, field in enumerate(fields)
            },
            None if carried is None else block.column(len(fields)),
        )
        first += block.num_rows


def _parquet_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("*.parquet"))
    return [path] if path.suffix == ".parquet" else []


def _hold_ids(
    bundle: Bundle, path: Path, files: Sequence[Path], fields: Sequence[FieldEntry], values: Values
) -> bool:
    data = data_folder(files[0]) if files else None
    if data is not None:
        if values == "raw":
            raise DataError(f"{path}: is prepared data, which holds ids. Omit `--values raw` (values='raw')")
        require_same_ids(bundle, data, fields)
        return True
    if not bundle.manifest.vocabulary:
        if values == "raw":
            raise BundleError(f"{bundle.root}: has no vocabulary to encode raw values. Give ids")
        return True
    if values != "auto":
        return values == "ids"
    if path.is_dir() and (path / "manifest.json").is_file() and not files:
        splits = sorted(str(found.parent) for found in path.glob("*/part-00000.parquet"))
        raise DataError(f"{path}: prepared data of several splits. Give one of them: {', '.join(splits)}.")
    if not files:
        return False
    schema = _opened(files[0]).schema_arrow
    if all(field.name in schema.names and _is_integer(schema.field(field.name).type) for field in fields):
        raise DataError(
            f"{path}: holds whole numbers, which can be ids or raw values\n"
            "  Give --values ids or --values raw (in Python: values='ids')."
        )
    return False


def _is_integer(type: pa.DataType) -> bool:
    return pa.types.is_integer(type.value_type if _is_list(type) else type)


def _is_list(type: pa.DataType) -> bool:
    return pa.types.is_list(type) or pa.types.is_large_list(type)


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file: {str(error).splitlines()[0]}") from None


def _stored_blocks(
    path: Path, fields: Sequence[FieldEntry], block_rows: int, carried: str | None
) -> Iterator[pa.RecordBatch]:
    """Columns of `fields`, in that order, then `carried`."""
    names = [field.name for field in fields]
    used = [*names, *([] if carried is None else [carried])]
    with _opened(path) as file:
        schema = file.schema_arrow
        for name in used:
            if schema.names.count(name) != 1:
                count = schema.names.count(name)
                raise DataError(
                    f"{path}: has {'no column' if not count else f'{count} columns called'} {name}; "
                    f"it has {', '.join(schema.names)}"
                )
        for name in names:
            if not _is_integer(schema.field(name).type):
                raise DataError(
                    f"{path}: column {name} is {schema.field(name).type}, "
                    "expected ids: integers, or lists of integers"
                )
        try:
            for block in file.iter_batches(block_rows, columns=list(dict.fromkeys(used))):
                columns = [block.column(name) for name in used]
                yield pa.RecordBatch.from_arrays(columns, names=[str(place) for place in range(len(used))])
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: damaged: {str(error).splitlines()[0]}") from None


def _encoded_blocks(
    bundle: Bundle,
    paths: Sequence[Path],
    fields: Sequence[FieldEntry],
    block_rows: int,
    carried: str | None,
) -> Iterator[RecordBlock]:
    """Raw records in files, or in one folder of the recipe's raw files."""
    encoder = RecordEncoder(bundle, [field.name for field in fields])
    for path in paths:
        try:
            for block in encode_files(encoder, path, block_rows, carried):
                yield RecordBlock({name: as_tensors(ids) for name, ids in block.ids.items()}, block.carried)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def as_tensors(ids: FieldIds) -> Ids:
    """Returns the ids of a field as the model reads them; they share memory with `ids`."""
    if isinstance(ids, tuple):
        return torch.from_numpy(ids[0]), torch.from_numpy(ids[1])
    return torch.from_numpy(ids)


def _ids(where: str, field: FieldEntry, column: pa.Array, first: int) -> Ids:
    """Checked ids of one field in one block. `first` is the number of the block's first record."""
    # flatten, not .values, which returns the whole buffer of a slice
    flat = column.flatten() if _is_list(column.type) else column
    if column.null_count or flat.null_count:
        record = first + next(row for row, cell in enumerate(column) if _lacks_a_value(cell.as_py()))
        raise DataError(
            f"{where}: record {record} (from 0): {field.name} lacks a value\n"
            "  Write 0, the id of unknown values."
        )
    ids = _as_int64(flat)
    wrong = np.flatnonzero((ids < 0) | (ids >= field.num_embeddings))
    if not _is_list(column.type):
        _refuse_outside(where, field, ids, wrong, first + wrong)
        return torch.from_numpy(ids)
    lengths = _as_int64(column.value_lengths())
    if not field.multi_valued and (lengths != 1).any():
        record = int(np.flatnonzero(lengths != 1)[0])
        raise DataError(
            f"{where}: record {first + record} (from 0): {field.name} has {lengths[record]} ids; "
            "the model was trained with one per record\n"
            "  Give one id (0 for an unknown value)."
        )
    offsets = np.zeros(len(column) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    _refuse_outside(where, field, ids, wrong, first + np.searchsorted(offsets, wrong, side="right") - 1)
    return torch.from_numpy(ids), torch.from_numpy(offsets)


def _lacks_a_value(cell: Any) -> bool:
    return cell is None or (isinstance(cell, list) and None in cell)


def _as_int64(column: pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Returns a copy, as torch warns of read-only memory."""
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
            f"{where}: record {rows[0]} (from 0): {field.name} = {ids[wrong[0]]}: "
            f"its ids go from 0 to {field.num_embeddings - 1}.\n"
            "  Give records prepared with the data that the model was trained on."
        )
