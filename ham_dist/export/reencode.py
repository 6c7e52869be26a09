"""The bundle of a run in another codec, without the run's data and checkpoints."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ham_dist.export.bundle import Bundle, verify_files
from ham_dist.export.choice import CodecLosses, choose_codecs
from ham_dist.export.codecs.codec import TableRows
from ham_dist.export.files import new_bundle_file
from ham_dist.export.labelled import labelled_records
from ham_dist.export.manifest import FORMAT_VERSION, BundleManifest, FileEntry, TableEntry
from ham_dist.export.parts import FIRST_ORDER, TABLES, OpenTable
from ham_dist.export.quality import measure_bundle
from ham_dist.export.writer import encode_table, open_folder, publish


def reencode_bundle(
    source: Path,
    out: Path,
    precision: str | Mapping[str, str],
    records: str,
    *,
    table_bytes: int | None = None,
    tolerance: float | None = None,
) -> dict[str, Any]:
    """Write the bundle `source` in other codecs, measured against `source` on labelled records.

    Args:
        source: A bundle of kind `ctr`; all of it is verified.
        out: A folder that does not exist yet.
        precision, table_bytes, tolerance: As for `export_state`.
        records: Records for `labelled_records`.
    Returns:
        The figures of `measure_bundle`.
    Raises:
        BundleError: `source` is damaged, `out` exists or cannot be written, or the loss is too large.
        DataError: The records cannot be read.
    """
    bundle = verify_files(source)
    manifest = bundle.manifest
    labelled = labelled_records(bundle, records)
    tables = list(_opened(bundle))
    codecs = precision
    if table_bytes is not None:
        losses = CodecLosses(tables, bundle.interaction().eval(), labelled)
        codecs = choose_codecs(losses, tables, table_bytes)
    with open_folder(out) as partial:
        encoded = [encode_table(partial, table, codecs) for table in tables]
        files = {piece.file: table.file for table in encoded for piece in table.entry.files}
        old = {piece.file for table in (*manifest.tables, *manifest.first_order) for piece in table.files}
        _copy(bundle, partial, [name for name in manifest.files if name not in old], files)
        by_folder: dict[str, list[TableEntry]] = {TABLES: [], FIRST_ORDER: []}
        for table in encoded:
            by_folder[table.folder].append(table.entry)
        changed = BundleManifest(
            **dict(manifest)
            | {
                "format_version": FORMAT_VERSION,
                "tables": tuple(by_folder[TABLES]),
                "first_order": tuple(by_folder[FIRST_ORDER]),
                "files": files,
                "verified": None,
            }
        )
        return publish(partial, out, changed, lambda path: measure_bundle(path, labelled, tolerance))


def _opened(bundle: Bundle) -> Sequence[OpenTable]:
    fields = {field.name: field for field in bundle.manifest.fields}
    return [
        OpenTable(folder, fields[name], TableRows([numbers.float()]))
        for folder, tables in ((TABLES, bundle.tables()), (FIRST_ORDER, bundle.first_order()))
        for name, numbers in tables.items()
    ]


def _copy(bundle: Bundle, partial: Path, names: Sequence[str], files: dict[str, FileEntry]) -> None:
    for name in names:
        with new_bundle_file(partial, name, files) as path:
            shutil.copyfile(bundle.root / name, path)
