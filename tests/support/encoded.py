"""Raw records in files as one table of ids, by the encoder of serving."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from ham_dist.data.recipe.load import Recipe
from ham_dist.errors import DataError
from ham_dist.serving.build import Source, build_vocabulary
from ham_dist.serving.fields_encoder import FieldsEncoder
from ham_dist.serving.files import EncodedBlock, encode_files
from ham_dist.serving.vocabulary import Vocabulary

# The rows of the tables do not matter here.
ROWS = 2**31


def encode_blocks(
    recipe: Recipe | None,
    vocabulary: str | Path,
    raw: str | Path,
    *,
    fields: Sequence[str] | None = None,
    carried: str | None = None,
    block_rows: int = 65_536,
) -> Iterator[EncodedBlock]:
    """Blocks of ids.

    Args:
        vocabulary: Folder with the files <field>.parquet that `prepare` writes.
        raw: See `encode_files`, also for `carried` and `block_rows`.
        fields: Names of fields, in the order of the columns; None for all.
    """
    folder = Path(vocabulary)
    names = fields or (recipe.fields if recipe else sorted(path.stem for path in folder.glob("*.parquet")))
    if recipe is not None and (unknown := [name for name in names if name not in recipe.fields]):
        raise DataError(f"no field is called {unknown[0]}; the fields are {', '.join(recipe.fields)}")
    known = [name for name in names if recipe is None or not recipe.is_hashed(name)]
    with TemporaryDirectory() as temporary:
        hashed = Path(temporary) / "hashed"
        build_vocabulary(hashed, {name: Source(folder / f"{name}.parquet", ROWS) for name in known})
        encoder = FieldsEncoder(recipe, dict.fromkeys(names, ROWS), Vocabulary(hashed))
        yield from encode_files(encoder, raw, block_rows, carried)


def encode_raw(
    recipe: Recipe | None, vocabulary: str | Path, raw: str | Path, fields: Sequence[str] | None = None
) -> pa.Table:
    """All ids as one table: a column of int32 for each field, or of lists of int32."""
    tables = [table_of(block) for block in encode_blocks(recipe, vocabulary, raw, fields=fields)]
    return pa.concat_tables(tables).combine_chunks()


def table_of(block: EncodedBlock) -> pa.Table:
    """The ids of a block as columns."""
    columns = {}
    for name, ids in block.ids.items():
        if isinstance(ids, tuple):
            values, offsets = pa.array(ids[0], pa.int32()), pa.array(ids[1], pa.int32())
            columns[name] = pa.ListArray.from_arrays(offsets, values)
        else:
            columns[name] = pa.array(ids, pa.int32())
    return pa.table(columns)
