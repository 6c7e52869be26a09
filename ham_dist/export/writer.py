"""Writing a bundle from all ranks.

Each rank writes the table rows that it holds, and encodes some of the tables from these files, so no rank
needs a whole table in memory, and the bundle does not depend on the number of ranks. The folder is renamed to
its final name when all is written.
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors.torch import save

from ham_dist.config.schema import ModelSettings
from ham_dist.distributed.ranks.process_group import (
    gather_objects,
    on_first_rank,
    rank,
    together,
    world_size,
)
from ham_dist.errors import BundleError
from ham_dist.export.aligned import write_table
from ham_dist.export.bundle import open_bundle
from ham_dist.export.codecs.registry import codec_of
from ham_dist.export.files import new_bundle_file, require_outside_bundles, writing
from ham_dist.export.manifest import (
    DENSE,
    BundleManifest,
    FieldEntry,
    FileEntry,
    TableEntry,
    TableFile,
    UnknownShares,
    mistakes,
    table_path,
    write_manifest,
)
from ham_dist.export.parts import FIRST_ORDER, PARTS, TABLES, OpenTable, WholeTable, whole_tables, write_parts
from ham_dist.export.vocabulary import VocabularySource, copy_vocabulary, hash_vocabulary
from ham_dist.io.atomic import publish_folder, temporary_folder

if TYPE_CHECKING:  # imports TorchRec, which writing does not need
    from ham_dist.embedding.tables import TableChunk


class EncodedTable(NamedTuple):
    """A table in its final file.

    Attributes:
        folder: TABLES or FIRST_ORDER.
        entry: Its entry in the manifest.
        file: Size and hash of its file.
    """

    folder: str
    entry: TableEntry
    file: FileEntry


@dataclasses.dataclass(frozen=True)
class Description:
    """Content of a bundle except its tensors; the same on every rank.

    Attributes:
        fields: Fields that the model reads or keeps a slot for, in the order of its columns.
        model: Settings of the interaction; None for a dense part of the user's own (`kind` custom).
        precision: Codec of the tables: one name, or one for each field.
        recipe: Recipe for reading raw records, as JSON; None if the data contains ids.
        run: Origin of the bundle, as JSON.
        unknown: Shares of unknown values in data that the model was trained with; None without such data.
    """

    fields: Sequence[FieldEntry]
    model: ModelSettings | None
    precision: str | Mapping[str, str] = "fp32"
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
    choose: Callable[[Sequence[OpenTable]], Mapping[str, str]] | None = None,
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
        choose: Called on rank 0 with the tables before they are encoded, and returns the codec of each field.
            None: that of `description`.
    Returns:
        The return value of `verify`, on every rank.
    Raises:
        BundleError: On the failing rank, and HamError on the others: `out` exists, a rank cannot write, a
            number is too large for its codec or is not finite, or the ranks' rows are not the whole tables.
            Nothing is left on the disk.
    """
    # At its end all ranks are together, so no rank still writes into the folder that rank 0 deletes.
    with ExitStack() as opened:
        partial = on_first_rank(lambda: opened.enter_context(open_folder(out)))
        together(lambda: _require_seen(partial))
        parts = together(lambda: list(write_parts(partial, description.fields, chunks, first_order_chunks)))
        all_parts = [part for of_rank in gather_objects(parts) for part in of_rank]
        tables = together(lambda: whole_tables(description.fields, all_parts))
        mine = tables[rank() :: world_size()]
        precision = (
            description.precision
            if choose is None
            else on_first_rank(lambda: choose([table.opened(partial) for table in tables]))
        )
        encoded = together(lambda: encode_tables(partial, mine, precision))
        every_table = [table for of_rank in gather_objects(encoded) for table in of_rank]
        return on_first_rank(
            lambda: finish(
                partial,
                out,
                description,
                every_table,
                dense,
                VocabularySource(vocabulary, vocabulary_sha256),
                verify,
            )
        )


@contextmanager
def open_folder(out: Path) -> Iterator[Path]:
    """Yields the temporary folder of the bundle `out`; see `temporary_folder`.

    Raises:
        BundleError: `out` exists or is inside a bundle, or the folder cannot be created.
    """
    if out.exists() or out.is_symlink():
        raise BundleError(
            f"{out}: already exists; bundles are never overwritten. Delete it, or give another folder."
        )
    require_outside_bundles(out)
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


def encode_tables(
    partial: Path, tables: Iterable[WholeTable], precision: str | Mapping[str, str]
) -> list[EncodedTable]:
    """Write the final files of `tables`, and delete their parts.

    Args:
        precision: Codec of all tables, or of those of each field.
    Raises:
        BundleError: A number is not finite or too large for the codec, or a file cannot be written.
    """
    encoded = []
    for table in tables:
        encoded.append(encode_table(partial, table.opened(partial), precision))
        table.delete(partial)
    return encoded


def encode_table(partial: Path, table: OpenTable, precision: str | Mapping[str, str]) -> EncodedTable:
    """Write the final file of one table; arguments and errors as for `encode_tables`."""
    name = precision if isinstance(precision, str) else precision.get(table.field.name)
    if name is None:
        raise BundleError(
            f"table {table.field.name!r}: has no codec; there is one for {', '.join(precision)}. "
            "Give a precision for all tables."
        )
    path = table_path(table.folder, table.field.name)
    try:
        file = write_table(partial / path, codec_of(name), table.rows)
    except BundleError as error:
        raise BundleError(f"table {table.field.name!r}: {error}") from None
    entry = TableEntry(
        field=table.field.name,
        num_embeddings=table.rows.num_embeddings,
        embedding_dim=table.rows.embedding_dim,
        codec=name,
        files=(TableFile(file=path, first_row=0, rows=table.rows.num_embeddings),),
    )
    return EncodedTable(table.folder, entry, file)


def _write_dense(partial: Path, dense: Mapping[str, torch.Tensor], files: dict[str, FileEntry]) -> None:
    content = save({name: values.detach().cpu().contiguous().clone() for name, values in dense.items()})
    with new_bundle_file(partial, DENSE, files) as path:
        path.write_bytes(content)


def finish(
    partial: Path,
    out: Path,
    description: Description,
    encoded: Sequence[EncodedTable],
    dense: Mapping[str, torch.Tensor],
    vocabulary: VocabularySource,
    verify: Callable[[Path], Mapping[str, Any]] | None,
) -> dict[str, Any]:
    """Write dense weights, vocabularies and manifest; verify and rename the bundle. On rank 0 only.

    Returns:
        The return value of `verify`.
    """
    files = {piece.file: table.file for table in encoded for piece in table.entry.files}
    _write_dense(partial, dense, files)
    try:
        tables = _entries(TABLES, description, encoded)
        first_order = _entries(FIRST_ORDER, description, encoded)
        read = dict.fromkeys(table.field for table in (*tables, *first_order))
        vocabularies = copy_vocabulary(partial, read, vocabulary, files)
        hashed = hash_vocabulary(partial, vocabularies, description.fields, description.recipe, files)
        manifest = BundleManifest(
            kind="custom" if description.model is None else "ctr",
            model=description.model,
            fields=tuple(description.fields),
            tables=tables,
            first_order=first_order,
            vocabulary=vocabularies,
            hashed_vocabulary=hashed,
            files=files,
            recipe=None if description.recipe is None else dict(description.recipe),
            unknown=description.unknown,
            run=dict(description.run),
        )
    except ValidationError as error:
        raise BundleError(
            f"{out}: the files of the ranks are not a whole bundle: {mistakes(error)}"
        ) from None
    shutil.rmtree(partial / PARTS, ignore_errors=True)
    return publish(partial, out, manifest, verify)


def publish(
    partial: Path,
    out: Path,
    manifest: BundleManifest,
    verify: Callable[[Path], Mapping[str, Any]] | None,
) -> dict[str, Any]:
    """Write the manifest of the bundle in `partial`, verify it, and rename it to `out`. On one rank only.

    Returns:
        The return value of `verify`.
    Raises:
        BundleError: As `verify`; or `out` exists, or the manifest cannot be written.
    """
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


def _entries(folder: str, description: Description, tables: Sequence[EncodedTable]) -> tuple[TableEntry, ...]:
    """The tables of one folder, in the order of the fields."""
    of_folder = {table.entry.field: table.entry for table in tables if table.folder == folder}
    return tuple(of_folder[field.name] for field in description.fields if field.name in of_folder)
