"""Deltas: a bundle as its changes to an earlier one, and the bundle again from both.

A delta holds the table rows that changed, new vocabulary values and the dense part. Applied to the bundle
that it was written for, it gives every file of the new bundle bit for bit.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from ham_dist.errors import BundleError
from ham_dist.export.bundle import Bundle, open_bundle
from ham_dist.export.codecs.codec import VALUES
from ham_dist.export.codecs.registry import codec_of
from ham_dist.export.delta_manifest import DELTA, DeltaManifest, Same, Whole, read_delta, write_delta_manifest
from ham_dist.export.files import new_bundle_file, writing
from ham_dist.export.growth import require_growth
from ham_dist.export.manifest import (
    MANIFEST,
    MIXED,
    FileEntry,
    TableEntry,
    bundle_identity,
    read_manifest,
)
from ham_dist.export.patches import (
    ADVICE,
    PAGE,
    Column,
    FileRows,
    Patch,
    inserted_places,
    rebuilt,
    replaced_places,
    write_patch,
)
from ham_dist.export.writer import open_folder
from ham_dist.io.atomic import publish_folder
from ham_dist.io.hashing import sha256_of
from ham_dist.serving.vocabulary import KEY, Vocabulary

_COPY_BYTES = 1 << 24


class DeltaSize(NamedTuple):
    """Size of a delta.

    Attributes:
        bytes: Bytes of its files.
        full: Bytes of the new bundle's files.
        changed: Table rows that it holds; in a table that it does not hold whole, rows that share bytes count
            as one.
    """

    bytes: int
    full: int
    changed: int


def write_delta(old: str | Path, new: str | Path, out: Path) -> DeltaSize:
    """Write the changes from one bundle to another as a delta.

    Args:
        old: The bundle that the delta will be applied to.
        new: A bundle of the same model, fields and codecs, whose vocabularies and tables may be longer.
        out: A folder that does not exist yet.
    Raises:
        BundleError: One of the bundles is damaged, `new` is not a later state of `old`, or `out` exists or
            cannot be written. Nothing is left on the disk.
    """
    before, after = open_bundle(old), open_bundle(new)
    require_growth(before, after)
    files: dict[str, FileEntry] = {}
    with _new_folder(out) as partial:
        old_rows = _file_rows(before)
        parts = {
            name: _part(before, after, name, old_rows.get(name), rows, partial, files)
            for name, rows in _file_rows(after).items()
        }
        manifest = DeltaManifest(
            old=bundle_identity(before.root),
            new=bundle_identity(after.root),
            manifest=_whole(after.root / MANIFEST, partial, files),
            parts=parts,
            files=files,
        )
        write_delta_manifest(partial, manifest)
    return DeltaSize(
        sum(file.size for file in files.values()),
        sum(file.size for file in after.manifest.files.values()),
        _changed_rows(after, parts),
    )


def export_delta(old: Path, out: Path, export: Callable[[Path, str | Mapping[str, str]], None]) -> DeltaSize:
    """Export a bundle to a temporary folder, and write its changes to `old` as a delta.

    Args:
        old, out: As for `write_delta`.
        export: Exports the bundle to a folder, with the codecs that are used where the caller chose none:
            those of `old`, one name or one for each field.
    Raises:
        BundleError: As `write_delta` or `export`.
    """
    manifest = open_bundle(old).manifest
    codecs: str | Mapping[str, str] = manifest.precision
    if codecs == MIXED:
        codecs = {table.field: table.codec for table in (*manifest.tables, *manifest.first_order)}
    # Both folders are in the folder of `out`, so the exported one is on the same storage.
    with open_folder(out) as scratch:
        export(scratch / "bundle", codecs)
        return write_delta(old, scratch / "bundle", out)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder that is renamed to `out`; nothing is left after an error."""
    with open_folder(out) as partial, writing(out):
        yield partial
        try:
            publish_folder(partial, out)
        except FileExistsError:
            raise BundleError(
                f"{out}: another program created it meanwhile. Delete it, or give another folder."
            ) from None


def _file_rows(bundle: Bundle) -> dict[str, tuple[FileRows, ...] | None]:
    """The rows of each file that a patch may have; None for files that are only stored whole."""
    manifest = bundle.manifest
    found: dict[str, tuple[FileRows, ...] | None] = dict.fromkeys(manifest.files)
    for name in manifest.vocabulary.values():
        found[name] = (FileRows(0, PAGE, manifest.files[name].size // PAGE),)
    if manifest.hashed_vocabulary is not None:
        found[manifest.hashed_vocabulary] = _key_rows(bundle.root / manifest.hashed_vocabulary)
    for table in (*manifest.tables, *manifest.first_order):
        if len(table.files) == 1:
            found[table.files[0].file] = (_table_rows(table, manifest.files[table.files[0].file].size),)
    return found


def _table_rows(table: TableEntry, size: int) -> FileRows:
    """The rows of `values`, the last tensor of its file; of int4 and int6, groups of rows."""
    values = codec_of(table.codec).layout(table.num_embeddings, table.embedding_dim)[VALUES]
    count = values.shape[0]
    return FileRows(size - values.bytes, values.bytes // count, count)


def _key_rows(path: Path) -> tuple[FileRows, FileRows]:
    """Keys and ids of a hashed vocabulary, with padding."""
    header = Vocabulary(path).header
    id_bytes = 8 if header.id_type == "I64" else 4
    start = path.stat().st_size - header.length * (KEY.itemsize + id_bytes)
    keys = FileRows(start, KEY.itemsize, header.length)
    return keys, FileRows(keys.end, id_bytes, header.length)


def _changed_rows(after: Bundle, parts: Mapping[str, Same | Whole | Patch]) -> int:
    changed = 0
    for table in (*after.manifest.tables, *after.manifest.first_order):
        for piece in table.files:
            part = parts[piece.file]
            changed += part.changed if isinstance(part, Patch) else piece.rows * isinstance(part, Whole)
    return changed


def _part(
    before: Bundle,
    after: Bundle,
    name: str,
    old_rows: tuple[FileRows, ...] | None,
    rows: tuple[FileRows, ...] | None,
    partial: Path,
    files: dict[str, FileEntry],
) -> Same | Whole | Patch:
    """Write what the delta holds of one file of the new bundle."""
    if before.manifest.files.get(name) == after.manifest.files[name]:
        return Same()
    if rows is not None and old_rows is not None:
        patch = _patch(before.root / name, after.root / name, old_rows, rows, len(files), partial, files)
        if patch is not None:
            _require_undamaged(before, name)
            _require_rebuilt(rebuilt(before.root / name, patch, partial / patch.file), after, name)
            return patch
    whole = _whole(after.root / name, partial, files)
    if files[whole.file] != after.manifest.files[name]:
        raise BundleError(f"{after.root / name}: damaged. Export the run again.")
    return whole


def _patch(
    old: Path,
    new: Path,
    old_rows: tuple[FileRows, ...],
    rows: tuple[FileRows, ...],
    number: int,
    partial: Path,
    files: dict[str, FileEntry],
) -> Patch | None:
    """Write a patch file; None if it would not be smaller than the file."""
    if [column.row_bytes for column in rows] != [column.row_bytes for column in old_rows]:
        return None
    kind: Literal["replace", "insert"] = "insert" if len(rows) == 2 else "replace"
    if kind == "insert":
        old_rows = _without_padding(old, old_rows)
        keys = (column[0].read(path).reshape(-1).view(KEY) for column, path in ((old_rows, old), (rows, new)))
        places = inserted_places(*keys)
    else:
        places = replaced_places(old_rows[0].read(old), rows[0].read(new))
    if places is None:
        return None
    patch = Patch(
        kind=kind,
        file=f"patches/{number}.bin",
        head=rows[0].start,
        rows=rows[0].rows,
        changed=len(places),
        columns=tuple(
            Column(row_bytes=column.row_bytes, old_start=column.start, old_rows=column.rows)
            for column in old_rows
        ),
        tail=new.stat().st_size - rows[-1].end,
    )
    if patch.bytes >= new.stat().st_size:
        return None
    with new_bundle_file(partial, patch.file, files) as path:
        write_patch(path, new, rows, places)
    return patch


def _without_padding(path: Path, columns: tuple[FileRows, ...]) -> tuple[FileRows, ...]:
    keys = Vocabulary(path).header.keys
    return tuple(column._replace(rows=keys) for column in columns)


def _whole(source: Path, partial: Path, files: dict[str, FileEntry]) -> Whole:
    name = f"files/{len(files)}"
    with new_bundle_file(partial, name, files) as path, source.open("rb") as read, path.open("wb") as written:
        while block := read.read(_COPY_BYTES):
            written.write(block)
    return Whole(file=name)


def _require_undamaged(before: Bundle, name: str) -> None:
    """Checks a file that is patched: the delta would fit no other copy of the bundle."""
    if sha256_of(before.root / name) != before.manifest.files[name].sha256:
        raise BundleError(
            f"{before.root / name}: damaged: its sha256 is not that in {MANIFEST}. "
            "Copy the bundle again from where it was written."
        )


def _require_rebuilt(blocks: Iterable[memoryview], after: Bundle, name: str) -> None:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    if digest.hexdigest() != after.manifest.files[name].sha256:
        raise BundleError(f"{after.root / name}: damaged. Export the run again.")


def apply_delta(old: str | Path, delta: Path, out: Path) -> Bundle:
    """Write the new bundle of a delta.

    Args:
        old: The bundle that the delta was written for.
        delta: Folder of the delta; all of it is verified.
        out: A folder that does not exist yet.
    Returns:
        The new bundle, whose files all have the sha256 in its manifest.
    Raises:
        BundleError: `old` or the delta is damaged, the delta was written for another bundle, or `out` exists
            or cannot be written. Nothing is left on the disk.
    """
    before, manifest = open_bundle(old), read_delta(delta)
    if (found := bundle_identity(before.root)) != manifest.old:
        raise BundleError(
            f"{delta}: was written for the bundle with sha256 {manifest.old[:12]}..., "
            f"but {before.root} is {found[:12]}...\n"
            "  Give the bundle that it was written from, or a delta for this one."
        )
    with _new_folder(out) as partial:
        (partial / MANIFEST).write_bytes((delta / manifest.manifest.file).read_bytes())
        if bundle_identity(partial) != manifest.new:
            raise BundleError(f"{delta}: has the manifest of another bundle than {DELTA} names. {ADVICE}")
        wanted = read_manifest(partial).files
        if manifest.parts.keys() != wanted.keys():
            raise BundleError(f"{delta}: its parts are not the files of its bundle. {ADVICE}")
        written: dict[str, FileEntry] = {}
        for name, part in manifest.parts.items():
            with new_bundle_file(partial, name, written) as path, path.open("wb") as file:
                for block in _content(before, delta, name, part):
                    file.write(block)
        for name, entry in wanted.items():
            if written[name] != entry:
                raise BundleError(
                    f"{before.root / name}: damaged, or {delta} is: together they do not give {name} of the "
                    "new bundle.\n  `ham-dist verify` checks the old one."
                )
        open_bundle(partial)
    return open_bundle(out)


def _content(before: Bundle, delta: Path, name: str, part: Same | Whole | Patch) -> Iterator[memoryview]:
    source = before.root / name if isinstance(part, Same | Patch) else delta / part.file
    if name not in before.manifest.files and not isinstance(part, Whole):
        raise BundleError(f"{delta}: {name} is made from a file that {before.root} lacks. {ADVICE}")
    if isinstance(part, Patch):
        yield from rebuilt(source, part, delta / part.file)
        return
    with source.open("rb") as file:
        while block := file.read(_COPY_BYTES):
            yield memoryview(block)
