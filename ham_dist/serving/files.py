"""Files of raw records as ids, block by block.

Files are read with pyarrow by the parser that prepare uses (`data.raw.parse`, `data.encode.record_files`), so
they have one dialect in training and serving.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from ham_dist.data.encode.record_files import CARRIED, RecordFile, open_records
from ham_dist.data.raw.files import find_raw
from ham_dist.errors import DataError
from ham_dist.io.paths import exists, local_path
from ham_dist.serving.fields_encoder import CSV, FieldIds, FieldsEncoder
from ham_dist.serving.sides import SideFiles, joined


class EncodedBlock(NamedTuple):
    """Consecutive records.

    Attributes:
        ids: Ids by field.
        carried: The column that is returned unchanged; None without one.
    """

    ids: dict[str, FieldIds]
    carried: pa.Array | None


def encode_files(
    encoder: FieldsEncoder, raw: str | Path, block_rows: int, carried: str | None = None
) -> Iterator[EncodedBlock]:
    """Encodes raw records as ids, block by block, in the order of `raw`.

    The label is not read, and no record is skipped.

    Args:
        encoder: The encoder.
        raw: A folder with the raw files of the recipe, or one file of any name. The file is text in the
            recipe's format (for generated data: CSV with a header), plain or compressed, or Parquet with
            text, integers, lists of these for multi-valued fields, and numbers for numeric fields. Text may
            lack the label. Columns of side files that the file lacks are joined from the side files in the
            same folder.
        block_rows: Largest number of records of a block.
        carried: A column of the records that is returned unchanged.
    Returns:
        The blocks. Without records, one empty block.
    Raises:
        DataError: A file, line, column or value cannot be read; the message has its position.
    """
    if not exists(raw):
        raise DataError(f"{raw}: no such file or folder")
    raw = local_path(raw)
    files = _open_files(encoder, raw)
    side_files = SideFiles(encoder.recipe, raw if raw.is_dir() else raw.parent)
    for file in files:
        kinds, sides = side_files.plan(file, encoder.kinds)
        for table in file.tables(kinds, carried):
            for start in range(0, max(table.num_rows, 1), block_rows):
                block = table.slice(start, block_rows)
                whole = joined(block, sides)
                cells = {column: whole[column].combine_chunks() for column in encoder.kinds}
                kept = None if carried is None else block[CARRIED].combine_chunks()
                yield EncodedBlock(encoder.encode_columns(cells), kept)


def _open_files(encoder: FieldsEncoder, raw: Path) -> list[RecordFile]:
    recipe = encoder.recipe
    if recipe is None:
        if raw.is_dir():
            raise DataError(
                f"{raw}: is a folder, and generated data has no raw files\n"
                f"  Give a CSV or Parquet file with the columns {', '.join(encoder.kinds)}."
            )
        return [open_records(raw, CSV, (), None)]
    if raw.is_dir():
        found = find_raw(recipe, raw)
        paths = [found[name] for name in recipe.samples.files]
    else:
        paths = [raw]
    return [open_records(path, recipe.format, recipe.samples.columns, recipe.label.column) for path in paths]
