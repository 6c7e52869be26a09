"""Rows of tables on their way into a bundle: each rank writes those that it holds, as raw float32 files.

A codec needs a whole table, for its scales, and one file holds it. No rank can hold one in memory, so these
files are mapped.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from ham_dist.distributed.ranks.process_group import rank
from ham_dist.errors import BundleError
from ham_dist.export.codecs.codec import BLOCK_NUMBERS, TableRows
from ham_dist.export.files import writing
from ham_dist.export.manifest import FieldEntry, require_whole

if TYPE_CHECKING:  # imports TorchRec, which writing does not need
    from ham_dist.embedding.tables import TableChunk

PARTS = "parts"
"""Folder of these files in the folder that is being written; deleted before that gets its name."""
TABLES, FIRST_ORDER = "tables", "first_order"
"""Folders of a bundle with tables."""


class Part(NamedTuple):
    """Some rows of a table in a raw file.

    Attributes:
        folder: TABLES or FIRST_ORDER.
        field: Field of the table.
        dim: Columns of the table.
        first_row: Number of the first row.
        rows: Number of rows.
        file: Path of the file in the folder that is being written.
    """

    folder: str
    field: str
    dim: int
    first_row: int
    rows: int
    file: str


class OpenTable(NamedTuple):
    """A table to encode.

    Attributes:
        folder: TABLES or FIRST_ORDER.
        field: The entry of its field.
        rows: Its rows, usually mapped.
    """

    folder: str
    field: FieldEntry
    rows: TableRows


class WholeTable(NamedTuple):
    """All parts of a table, in the order of rows.

    Attributes:
        folder: TABLES or FIRST_ORDER.
        field: The entry of its field.
        parts: Its parts.
    """

    folder: str
    field: FieldEntry
    parts: Sequence[Part]

    def opened(self, root: Path) -> OpenTable:
        """Returns the table, mapped."""
        parts = [
            torch.from_file(
                os.fspath(root / part.file), shared=False, size=part.rows * part.dim, dtype=torch.float32
            ).view(part.rows, part.dim)
            for part in self.parts
        ]
        return OpenTable(self.folder, self.field, TableRows(parts))

    def delete(self, root: Path) -> None:
        """Delete the raw files."""
        for part in self.parts:
            (root / part.file).unlink()


def write_parts(
    root: Path,
    fields: Iterable[FieldEntry],
    chunks: Iterable["TableChunk"],
    first_order_chunks: Iterable["TableChunk"],
) -> Iterator[Part]:
    """Write this rank's rows.

    An error is raised after iterating over all chunks, as that may be a collective that other ranks wait for.

    Raises:
        BundleError: A file could not be written, or rows belong to no field.
    """
    known = {field.name for field in fields}
    failure: Exception | None = None
    count = 0
    for folder, of_folder in ((TABLES, chunks), (FIRST_ORDER, first_order_chunks)):
        for chunk in of_folder:
            try:
                if failure is None and chunk.values.numel():
                    _require_known(folder, chunk.field, known)
                    file = f"{PARTS}/{rank()}-{count}.f32"
                    count += 1
                    _write(root / file, chunk.values)
                    rows, dim = chunk.values.shape
                    yield Part(folder, chunk.field, dim, chunk.first_row, rows, file)
            except Exception as error:
                failure = error
    if failure is not None:
        raise failure


def _require_known(folder: str, field: str, known: Collection[str]) -> None:
    if field not in known:
        raise BundleError(f"{folder}: rows of {field!r}, but the fields are {', '.join(sorted(known))}")


def _write(path: Path, values: torch.Tensor) -> None:
    rows = max(1, BLOCK_NUMBERS // values.shape[1])
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            for block in values.detach().split(rows):
                file.write(memoryview(block.to("cpu", torch.float32).contiguous().view(-1).numpy()).cast("B"))


def whole_tables(fields: Iterable[FieldEntry], parts: Sequence[Part]) -> list[WholeTable]:
    """Returns the tables that the parts of all ranks make up, in the order of the fields.

    Raises:
        BundleError: Rows of a table are missing or occur twice, or its parts have different dims.
    """
    tables = []
    for folder in (TABLES, FIRST_ORDER):
        for field in fields:
            of_field = sorted(
                (part for part in parts if (part.folder, part.field) == (folder, field.name)),
                key=lambda part: part.first_row,
            )
            if not of_field:
                continue
            dims = sorted({part.dim for part in of_field})
            if len(dims) > 1:
                raise BundleError(
                    f"table {field.name!r}: its rows have {' and '.join(map(str, dims))} columns "
                    "on different ranks"
                )
            try:
                require_whole(field.name, field.num_embeddings, of_field)
            except ValueError as error:
                raise BundleError(str(error)) from None
            tables.append(WholeTable(folder, field, of_field))
    return tables
