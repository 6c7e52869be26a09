"""Writing a bundle from all ranks.

Each rank writes the table rows that it holds, so no rank needs a whole table. The folder is renamed to its
final name when all is written.

C_j rows of table j, d_j columns
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors.torch import save

from ham_dist.config.schema import ModelSettings
from ham_dist.distributed.ranks.process_group import gather_objects, on_first_rank, rank, together
from ham_dist.errors import BundleError
from ham_dist.export.bundle import VALUES, open_bundle
from ham_dist.export.files import writing
from ham_dist.export.manifest import (
    DENSE,
    BundleManifest,
    FieldEntry,
    FileEntry,
    Precision,
    TableEntry,
    TableFile,
    UnknownShares,
    mistakes,
    piece_path,
    write_manifest,
)
from ham_dist.export.precisions import precision_of
from ham_dist.export.vocabulary import VocabularySource, copy_vocabulary
from ham_dist.io.atomic import publish_folder, temporary_folder
from ham_dist.io.hashing import sha256_of_bytes

if TYPE_CHECKING:  # imports TorchRec, which writing does not need
    from ham_dist.embedding.tables import TableChunk

PIECE_NUMBERS = 1 << 24
"""Most numbers in one file of a table (64 MiB of fp32); bounds the memory that a rank needs besides its
shards."""


class _Written(NamedTuple):
    """A table file that a rank has written."""

    folder: str
    field: str
    width: int
    piece: TableFile
    entry: FileEntry


@dataclasses.dataclass(frozen=True)
class Description:
    """Content of a bundle except its tensors; the same on every rank.

    Attributes:
        fields: Fields that the model reads or keeps a slot for, in the order of its columns.
        model: Settings of the interaction; None for a dense part of the user's own (`kind` custom).
        precision: Precision of the tables.
        recipe: Recipe for reading raw records, as JSON; None if the data contains ids.
        run: Origin of the bundle, as JSON.
        unknown: Shares of unknown values in data that the model was trained with; None without such data.
    """

    fields: Sequence[FieldEntry]
    model: ModelSettings | None
    precision: Precision = "fp32"
    recipe: Mapping[str, Any] | None = None
    run: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unknown: UnknownShares | None = None


def write_bundle(
    out: Path,
    description: Description,
    *,
    chunks: Iterable["TableChunk"],
    dense: Mapping[str, torch.Tensor],
    first_order_chunks: Iterable["TableChunk"] = (),
    vocabulary: str | Path | None = None,
    vocabulary_sha256: Mapping[str, str] | None = None,
    verify: Callable[[Path], Mapping[str, Any]] | None = None,
    piece_numbers: int = PIECE_NUMBERS,
) -> dict[str, Any]:
    """Write the bundle `out`; every rank calls it.

    The folder has a temporary name until all is written and `verify` has passed.

    Args:
        out: A folder that does not exist yet, on storage that all ranks share.
        chunks: Table rows of this rank, each row on one rank only; a chunk is not used after the next one is
            read. Iterating over them may be a collective: a rank that cannot write still iterates over them
            all.
        dense: State dict of the dense part of the model; rank 0's is written.
        first_order_chunks: The same for the first-order tables of width 1.
        vocabulary: Folder with `<field>.parquet` of each field that the model reads; None if the data
            contains ids. Read on rank 0.
        vocabulary_sha256: sha256 of each of these files, by field, as in the manifest of the data; other
            files are refused.
        verify: Called on rank 0 with the finished folder, before it is renamed: it opens the bundle, raises
            if that differs from the live model, and returns JSON for the manifest. It must not run
            collectives. None: the bundle is only opened, which checks its files.
        piece_numbers: Most numbers in one file.
    Returns:
        The return value of `verify`, on every rank.
    Raises:
        BundleError: On the failing rank, and HamError on the others: `out` exists, a rank cannot write, a
            value does not fit `precision` or is not finite, or the ranks' rows are not the whole tables.
            Nothing is left on the disk.
    """
    # At its end all ranks are together, so no rank still writes into the folder that rank 0 deletes.
    with ExitStack() as opened:
        partial = on_first_rank(lambda: opened.enter_context(open_folder(out)))
        together(lambda: _require_seen(partial))
        written = together(
            lambda: list(write_tables(partial, description, chunks, first_order_chunks, piece_numbers))
        )
        pieces = [piece for of_rank in gather_objects(written) for piece in of_rank]
        return on_first_rank(
            lambda: finish(
                partial,
                out,
                description,
                pieces,
                dense,
                VocabularySource(vocabulary, vocabulary_sha256),
                verify,
            )
        )


@contextmanager
def open_folder(out: Path) -> Iterator[Path]:
    """Yields the temporary folder of the bundle `out`; see `temporary_folder`.

    Raises:
        BundleError: `out` exists, or the folder cannot be created.
    """
    if out.exists() or out.is_symlink():
        raise BundleError(
            f"{out}: already exists; bundles are never overwritten. Delete it, or give another folder."
        )
    with ExitStack() as opened:
        with writing(out):
            partial = opened.enter_context(temporary_folder(out))
        yield partial


def _require_seen(partial: Path) -> None:
    if not partial.is_dir():
        raise BundleError(
            f"{partial}: rank 0 created this folder, but rank {rank()} does not see it. "
            "Give a folder on storage that all ranks share."
        )


def write_tables(
    partial: Path,
    description: Description,
    chunks: Iterable["TableChunk"],
    first_order_chunks: Iterable["TableChunk"],
    piece_numbers: int,
) -> Iterator[_Written]:
    """Write this rank's rows, one file at a time.

    An error is raised after iterating over all chunks, as that may be a collective that other ranks wait for.

    Raises:
        BundleError: A file could not be written.
    """
    failure: Exception | None = None
    for folder, of_folder in (("tables", chunks), ("first_order", first_order_chunks)):
        for chunk in of_folder:
            try:
                if failure is None:
                    yield from _write_chunk(partial, folder, chunk, description, piece_numbers)
            except Exception as error:
                failure = error
    if failure is not None:
        raise failure


def _write_chunk(
    partial: Path, folder: str, chunk: "TableChunk", description: Description, piece_numbers: int
) -> Iterator[_Written]:
    known = {field.name for field in description.fields}
    if chunk.field not in known:
        raise BundleError(f"{folder}: rows of {chunk.field!r}, but the fields are {', '.join(sorted(known))}")
    rows_of_piece = max(1, piece_numbers // max(1, chunk.values.shape[1]))
    for start in range(0, chunk.values.shape[0], rows_of_piece):
        values = chunk.values[start : start + rows_of_piece]
        yield _write_piece(
            partial, folder, chunk.field, chunk.first_row + start, values, description.precision
        )


def _write_piece(
    partial: Path, folder: str, field: str, first_row: int, values: torch.Tensor, precision: Precision
) -> _Written:
    kind = getattr(torch, precision_of(precision).type)
    values = values.detach().to("cpu", torch.float32)
    largest = values.abs().max().item() if values.numel() else 0.0
    if not largest <= torch.finfo(kind).max:  # also true of NaN
        if values.isfinite().all():
            raise BundleError(
                f"table {field!r}: holds {largest:g}, but the largest number in {precision} is "
                f"{torch.finfo(kind).max:g}. Export with precision fp32."
            )
        raise BundleError(
            f"table {field!r}: holds numbers that are not finite, in rows {first_row} to "
            f"{first_row + len(values) - 1}. Train the model again."
        )
    path = piece_path(folder, field, first_row)
    entry = _write_file(partial, path, save({VALUES: values.to(kind).contiguous()}))
    return _Written(
        folder, field, values.shape[1], TableFile(file=path, first_row=first_row, rows=len(values)), entry
    )


def _write_file(partial: Path, path: str, content: bytes) -> FileEntry:
    with writing(partial / path):
        (partial / path).parent.mkdir(parents=True, exist_ok=True)
        (partial / path).write_bytes(content)
    return FileEntry(size=len(content), sha256=sha256_of_bytes(content))


def finish(
    partial: Path,
    out: Path,
    description: Description,
    written: Sequence[_Written],
    dense: Mapping[str, torch.Tensor],
    vocabulary: VocabularySource,
    verify: Callable[[Path], Mapping[str, Any]] | None,
) -> dict[str, Any]:
    """Write dense weights, vocabularies and manifest; verify and rename the bundle. On rank 0 only.

    Returns:
        The return value of `verify`.
    """
    files = {written_piece.piece.file: written_piece.entry for written_piece in written}
    files[DENSE] = _write_file(
        partial,
        DENSE,
        save({name: values.detach().cpu().contiguous().clone() for name, values in dense.items()}),
    )
    try:
        tables = _entries("tables", description, written)
        first_order = _entries("first_order", description, written)
        read = dict.fromkeys(table.field for table in (*tables, *first_order))
        vocabularies = copy_vocabulary(partial, read, vocabulary, files)
        manifest = BundleManifest(
            kind="custom" if description.model is None else "ctr",
            model=description.model,
            precision=description.precision,
            fields=tuple(description.fields),
            tables=tables,
            first_order=first_order,
            vocabulary=vocabularies,
            files=files,
            recipe=None if description.recipe is None else dict(description.recipe),
            unknown=description.unknown,
            run=dict(description.run),
        )
    except ValidationError as error:
        raise BundleError(
            f"{out}: the files of the ranks are not a whole bundle: {mistakes(error)}"
        ) from None
    with writing(partial):
        write_manifest(partial, manifest)
    if verify is None:
        open_bundle(partial)
        report = {}
    else:
        report = dict(verify(partial))
    with writing(out):
        write_manifest(partial, manifest.model_copy(update={"verified": report or None}))
        try:
            publish_folder(partial, out)
        except FileExistsError:
            raise BundleError(
                f"{out}: another program created it while the bundle was written. "
                "Delete it, or give another folder."
            ) from None
    return report


def _entries(folder: str, description: Description, written: Sequence[_Written]) -> tuple[TableEntry, ...]:
    """The tables of one folder, in the order of the fields, with their files in the order of rows."""
    tables = []
    for field in description.fields:
        of_field = sorted(
            (item for item in written if (item.folder, item.field) == (folder, field.name)),
            key=lambda item: item.piece.first_row,
        )
        if not of_field:
            continue
        dims = {item.width for item in of_field}
        if len(dims) > 1:
            raise BundleError(
                f"table {field.name!r}: its rows have {' and '.join(map(str, sorted(dims)))} columns "
                "on different ranks"
            )
        pieces = tuple(item.piece for item in of_field)
        kind = precision_of(description.precision).type
        tables.append(
            TableEntry(field=field.name, rows=field.rows, width=dims.pop(), type=kind, files=pieces)
        )
    return tuple(tables)
