"""Opening a bundle: its tables are mapped, and its files are checked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ham_dist.errors import BundleError
from ham_dist.export.aligned import DTYPES, PADDING, map_tensors
from ham_dist.export.codecs.codec import BLOCK_NUMBERS, VALUES
from ham_dist.export.codecs.floats import FloatCodec
from ham_dist.export.codecs.registry import codec_of
from ham_dist.export.compact import CompactModel, StoredTable
from ham_dist.export.manifest import ADVICE, DENSE, BundleManifest, TableEntry, read_manifest
from ham_dist.io.hashing import sha256_of
from ham_dist.io.paths import local_path
from ham_dist.io.untrusted import inside
from ham_dist.models.interaction import Interaction
from ham_dist.models.registry import INTERACTIONS, build_interaction


@dataclass(frozen=True)
class Bundle:
    """A checked bundle; `open_bundle` returns one.

    Attributes:
        root: Folder of the bundle on this machine.
        manifest: Its manifest.
    """

    root: Path
    manifest: BundleManifest

    def tables(self) -> dict[str, torch.Tensor]:
        """Returns the tables by field, (C_j, d_j).

        fp32 and fp16 tables are mapped in their own type; tables of other codecs are decoded to float32.
        """
        return {table.field: self._numbers(table) for table in self.manifest.tables}

    def first_order(self) -> dict[str, torch.Tensor]:
        """Returns the first-order tables by field, (C_j, 1), as `tables`; empty for most models."""
        return {table.field: self._numbers(table) for table in self.manifest.first_order}

    def dense(self) -> dict[str, torch.Tensor]:
        """Returns the state dict of the dense part of the model."""
        with safe_open(self.root / DENSE, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def model(self, rows: Mapping[str, torch.Tensor] | None = None) -> CompactModel:
        """Returns the exported model, on CPU.

        Args:
            rows: Rows of each field's table to decode, ascending, by field (row 0 for a field that is not
                named); ids must then be positions in these. For a device that the tables are too large for.
                None: all rows, mapped, and decoded when they are looked up.
        Raises:
            BundleError: The bundle is of kind `custom`, whose dense part only its owner can build.
        """
        return CompactModel(
            {table.field: self.stored(table, rows) for table in self.manifest.tables},
            self.interaction(),
            {table.field: self.stored(table, rows) for table in self.manifest.first_order},
        )

    def interaction(self) -> Interaction:
        """Returns the dense part of the model, on CPU, with its weights.

        Raises:
            BundleError: The bundle is of kind `custom`.
        """
        # load_state_dict overwrites the initialization, which must not change the caller's random generator.
        with torch.random.fork_rng(devices=[]):
            interaction = interaction_of(self.manifest, where=str(self.root))
        interaction.load_state_dict(self.dense())
        return interaction

    def _numbers(self, table: TableEntry) -> torch.Tensor:
        stored = self.stored(table)
        if isinstance(stored.codec, FloatCodec):
            return stored.stored[VALUES]
        rows: torch.Tensor = stored(torch.arange(table.num_embeddings))
        return rows

    def stored(self, table: TableEntry, rows: Mapping[str, torch.Tensor] | None = None) -> StoredTable:
        """Returns a table of the manifest, mapped; with `rows`, only its rows as in `model`."""
        codec = codec_of(table.codec)
        parts = [(piece, StoredTable(codec, map_tensors(self.root / piece.file))) for piece in table.files]
        if rows is not None:
            wanted = rows.get(table.field, torch.zeros(1, dtype=torch.int64))
            found = [
                part(
                    wanted[(wanted >= piece.first_row) & (wanted < piece.first_row + piece.rows)]
                    - piece.first_row
                )
                for piece, part in parts
            ]
            return StoredTable(codec_of("fp32"), {VALUES: torch.cat(found)})
        if len(parts) == 1:
            return parts[0][1]
        return StoredTable(codec, {VALUES: torch.cat([part.stored[VALUES] for _, part in parts])})


def interaction_of(manifest: BundleManifest, where: str) -> Interaction:
    """Returns the interaction of the manifest's model, with initialized weights.

    Args:
        where: The bundle, for messages.
    Raises:
        BundleError: The bundle is of kind `custom`.
    """
    if manifest.model is None:
        raise BundleError(
            f"{where}: kind = 'custom': the dense part is a module of your own, "
            "which the bundle does not contain, so `ham-dist score` cannot run it.\n"
            "  In Python, ham_dist.export.bundle.open_bundle(path) gives .tables() (tensors by field) "
            "and .dense() (a state dict) to load into it."
        )
    return build_interaction(
        manifest.model,
        {
            field.name: field.embedding_dim
            for field in manifest.fields
            if field.embedding_dim or field.keeps_slot
        },
    )


def bundle_file(root: Path, name: str) -> Path:
    """Returns the path of a bundle's file.

    Raises:
        BundleError: It is missing, or outside the folder.
    """
    try:
        path = inside(root, name)
    except ValueError:
        raise BundleError(f"{root / name}: leads out of the bundle. Put the file itself there.") from None
    if not path.is_file():
        raise BundleError(f"{path}: missing. {ADVICE}")
    return path


def open_bundle(path: str | Path) -> Bundle:
    """Open a bundle, whose tables are mapped when they are used.

    The time does not depend on the size of the tables: hashes and numbers are not read. `verify_files` reads
    them, once for each copy of a bundle.

    Args:
        path: Folder of the bundle, of any scheme that the PathManager supports.
    Returns:
        The bundle; its methods read the tables.
    Raises:
        BundleError: A file is missing, is outside the folder, or has another size than manifest.json states;
            its tensors have other names, types or shapes than the model's; or the manifest is damaged or of a
            newer format.
    """
    root = local_path(path)
    manifest = read_manifest(root)
    for file, entry in manifest.files.items():
        found = bundle_file(root, file)
        if (size := found.stat().st_size) != entry.size:
            raise BundleError(f"{found}: {size} bytes, expected {entry.size}. {ADVICE}")
    for table in (*manifest.tables, *manifest.first_order):
        for piece in table.files:
            layout = codec_of(table.codec).layout(piece.rows, table.embedding_dim)
            _check_tensors(
                root / piece.file,
                {name: (DTYPES[tensor.dtype], list(tensor.shape)) for name, tensor in layout.items()},
            )
    if manifest.model is None:
        _tensors_of(root / DENSE)
    else:
        _check_model(root, manifest)
    return Bundle(root, manifest)


def verify_files(path: str | Path) -> Bundle:
    """Open a bundle and read all of it: sizes, hashes, and that all weights are finite.

    Raises:
        BundleError: As `open_bundle`; or the content of a file is not the written one, or a weight is NaN or
            infinite.
    """
    bundle = open_bundle(path)
    for file, entry in bundle.manifest.files.items():
        if sha256_of(bundle.root / file) != entry.sha256:
            raise BundleError(
                f"{bundle.root / file}: damaged: its sha256 is not that in manifest.json. {ADVICE}"
            )
    tables = (*bundle.manifest.tables, *bundle.manifest.first_order)
    for file in (*(piece.file for table in tables for piece in table.files), DENSE):
        _require_finite(bundle.root / file)
    return bundle


def _check_model(root: Path, manifest: BundleManifest) -> None:
    """Check that dense weights and first-order tables fit the model."""
    assert manifest.model is not None
    kind = INTERACTIONS[manifest.model.name]
    if not kind.keeps_slots and (slots := [field.name for field in manifest.fields if field.keeps_slot]):
        raise BundleError(
            f"{root}: {manifest.model.name} keeps no slot for a field without columns, "
            f"but {', '.join(slots)} has one. {ADVICE}"
        )
    with torch.device("meta"):  # only names and shapes are needed
        interaction = interaction_of(manifest, where=str(root))
    state = interaction.state_dict()
    _check_tensors(
        root / DENSE,
        {
            name: ("I64" if values.dtype == torch.int64 else "F32", list(values.shape))
            for name, values in state.items()
        },
    )
    needs_first_order = kind.has_first_order_tables(manifest.model)
    _same_names(
        root,
        "first-order tables",
        (table.field for table in manifest.first_order),
        [f.name for f in manifest.fields if needs_first_order],
    )


def _tensors_of(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of each tensor in a safetensors file except padding, by name."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: (part.get_dtype(), part.get_shape()) for name, part in slices.items() if name != PADDING
            }
    except SafetensorError as error:
        raise BundleError(f"{path}: not a safetensors file: {error}. {ADVICE}") from None


def _check_tensors(path: Path, wanted: Mapping[str, tuple[str, list[int]]]) -> None:
    found = _tensors_of(path)
    _same_names(path, "tensors", found, wanted)
    for name, expected in wanted.items():
        if found[name] != expected:
            raise BundleError(
                f"{path}: {name} is {found[name][0]} {found[name][1]}, "
                f"expected {expected[0]} {expected[1]}. {ADVICE}"
            )


def _require_finite(path: Path) -> None:
    """Check that no weight is NaN or infinite, as probabilities would be NaN."""
    for name, values in map_tensors(path).items():
        blocks = values.view(-1).split(BLOCK_NUMBERS) if values.is_floating_point() else ()
        if wrong := sum(int((~block.float().isfinite()).sum()) for block in blocks):
            raise BundleError(
                f"{path}: {name} holds numbers that are not finite ({wrong:,} of {values.numel():,}). "
                "Train the model again, with a lower learning rate."
            )


def _same_names(path: Path, what: str, found: Iterable[str], wanted: Iterable[str]) -> None:
    found, wanted = set(found), set(wanted)
    if found != wanted:
        parts = {"missing": wanted - found, "unknown": found - wanted}
        text = "; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in parts.items() if names)
        raise BundleError(f"{path}: {what} of another model ({text}). {ADVICE}")
