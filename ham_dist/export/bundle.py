"""Opening a bundle; all its files are checked before any of them is used."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ham_dist.errors import BundleError
from ham_dist.export.compact import CompactModel
from ham_dist.export.manifest import ADVICE, DENSE, BundleManifest, TableEntry, read_manifest
from ham_dist.export.precisions import precision_of_type
from ham_dist.io.hashing import sha256_of
from ham_dist.io.paths import local_path
from ham_dist.io.untrusted import inside
from ham_dist.models.interaction import Interaction
from ham_dist.models.registry import INTERACTIONS, build_interaction

VALUES = "values"
"""Name of the only tensor in a file of a table."""


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
        """Returns the tables by field, (C_j, d_j), in the precision of the bundle."""
        return {table.field: self._table(table) for table in self.manifest.tables}

    def first_order(self) -> dict[str, torch.Tensor]:
        """Returns the first-order tables by field, (C_j, 1); empty for most models."""
        return {table.field: self._table(table) for table in self.manifest.first_order}

    def dense(self) -> dict[str, torch.Tensor]:
        """Returns the state dict of the dense part of the model."""
        with safe_open(self.root / DENSE, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def model(self, rows: Mapping[str, torch.Tensor] | None = None) -> CompactModel:
        """Returns the exported model, on CPU.

        Args:
            rows: Rows of each field's table to load, ascending, by field (row 0 for a field that is not
                named); ids must then be positions in these. For a few records and a bundle that is larger
                than memory. None: all rows.
        Raises:
            BundleError: The bundle is of kind `custom`, whose dense part only its owner can build.
        """
        # load_state_dict overwrites the initialization, which must not change the caller's random generator.
        with torch.random.fork_rng(devices=[]):
            interaction = interaction_of(self.manifest, where=str(self.root))
        interaction.load_state_dict(self.dense())
        tables = {table.field: self._table(table, rows) for table in self.manifest.tables}
        return CompactModel(
            tables,
            interaction,
            {table.field: self._table(table, rows) for table in self.manifest.first_order},
        )

    def _table(self, table: TableEntry, rows: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        if rows is not None:
            return torch.cat(
                list(self._selected(table, rows.get(table.field, torch.zeros(1, dtype=torch.int64))))
            )
        values = torch.empty(table.rows, table.width, dtype=getattr(torch, table.type))
        for piece in table.files:
            with safe_open(self.root / piece.file, framework="pt") as file:
                values[piece.first_row : piece.first_row + piece.rows] = file.get_tensor(VALUES)
        return values

    def _selected(self, table: TableEntry, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        """The selected rows (ascending) of each file that has some; one file at a time in memory."""
        for piece in table.files:
            wanted = rows[(rows >= piece.first_row) & (rows < piece.first_row + piece.rows)]
            if len(wanted):
                with safe_open(self.root / piece.file, framework="pt") as file:
                    yield file.get_tensor(VALUES)[wanted - piece.first_row]


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
        {field.name: field.width for field in manifest.fields if field.width or field.keeps_slot},
    )


def open_bundle(path: str | Path) -> Bundle:
    """Open a bundle and check all of it.

    Args:
        path: Folder of the bundle, of any scheme that the PathManager supports.
    Returns:
        The bundle; its methods read the tables.
    Raises:
        BundleError: A file is missing, is outside the folder, has another size or content than manifest.json
            states, lacks a tensor of the model, or holds weights that are not finite; or the manifest is
            damaged or of a newer format.
    """
    root = local_path(path)
    manifest = read_manifest(root)
    for file, entry in manifest.files.items():
        try:
            found = inside(root, file)
        except ValueError:
            raise BundleError(f"{root / file}: leads out of the bundle. Put the file itself there.") from None
        if not found.is_file():
            raise BundleError(f"{found}: missing. {ADVICE}")
        if (size := found.stat().st_size) != entry.size:
            raise BundleError(f"{found}: {size} bytes, expected {entry.size}. {ADVICE}")
        if sha256_of(found) != entry.sha256:
            raise BundleError(f"{found}: damaged: its sha256 is not that in manifest.json. {ADVICE}")
    for table in (*manifest.tables, *manifest.first_order):
        for piece in table.files:
            _check_tensors(
                root / piece.file,
                {VALUES: (precision_of_type(table.type).safetensors, [piece.rows, table.width])},
            )
            _require_finite(root / piece.file)
    if manifest.model is None:
        _tensors_of(root / DENSE)
    else:
        _check_model(root, manifest)
    _require_finite(root / DENSE)
    return Bundle(root, manifest)


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
    """Type and shape of each tensor in a safetensors file, by name."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
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
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            values = file.get_tensor(name)
            if values.is_floating_point() and not values.isfinite().all():
                raise BundleError(
                    f"{path}: {name} holds numbers that are not finite "
                    f"({int((~values.isfinite()).sum()):,} of {values.numel():,}). "
                    "Train the model again, with a lower learning rate."
                )


def _same_names(path: Path, what: str, found: Iterable[str], wanted: Iterable[str]) -> None:
    found, wanted = set(found), set(wanted)
    if found != wanted:
        parts = {"missing": wanted - found, "unknown": found - wanted}
        text = "; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in parts.items() if names)
        raise BundleError(f"{path}: {what} of another model ({text}). {ADVICE}")
