"""TorchRec: the narrow tables as the state of an EmbeddingBagCollection, and a function that loads them.

Tables are fp32, or fp16 where the bundle's are: TorchRec has no codes with a scale for each column.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from ham_dist.config.schema import AnyModelSettings
from ham_dist.errors import BundleError
from ham_dist.export.aligned import map_tensors, write_table
from ham_dist.export.bundle import Bundle
from ham_dist.export.codecs.codec import VALUES, TableRows
from ham_dist.export.codecs.registry import codec_of
from ham_dist.export.compact import Ids, StoredTable
from ham_dist.export.files import new_bundle_file
from ham_dist.export.manifest import (
    DENSE,
    FieldEntry,
    FileEntry,
    PositiveCount,
    RelativeName,
    TableEntry,
    mistakes,
    table_path,
)
from ham_dist.export.packages.check import Runner, read_fields
from ham_dist.export.parts import FIRST_ORDER, TABLES
from ham_dist.io.atomic import write_json
from ham_dist.io.untrusted import inside, read_json
from ham_dist.models.registry import build_interaction

if TYPE_CHECKING:  # imports TorchRec, which the other formats do without
    from ham_dist.embedding.tables import Table
    from ham_dist.export.packages.torchrec_model import TorchRecModel

MODULES = ("torchrec",)
CONFIG = "tables.json"
_ADVICE = "Copy the package again from where it was written, or write it again."


class TableConfig(BaseModel):
    """One table: the arguments of its EmbeddingBagConfig, and its file."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    collection: Literal["tables", "first_order"]
    """`first_order`: a table of one column whose rows are added to the logit."""
    name: str
    """Name of the table in its collection."""
    feature: str
    """The key that reads it: a field of the bundle."""
    num_embeddings: PositiveCount
    embedding_dim: PositiveCount
    """Columns of the file: those in use, and zeros up to a multiple of 4, as fused kernels need it."""
    columns: PositiveCount
    """Columns in use."""
    data_type: Literal["fp32", "fp16"]
    """Type of the numbers in the file."""
    file: RelativeName


class TorchRecConfig(BaseModel):
    """The content of tables.json."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: AnyModelSettings
    """Settings of the interaction; its weights are in dense.safetensors."""
    fields: tuple[FieldEntry, ...]
    """The fields in the order of the model's columns."""
    tables: tuple[TableConfig, ...]
    files: dict[RelativeName, FileEntry]
    """Every file except this one and package.json."""
    quantizable: bool
    """True if the tables of the bundle are fp32 or fp16, which TorchRec's quantized kernels hold exactly."""


class _Rows(TableRows):
    """Rows of a stored table, decoded in blocks, with columns of zeros behind them."""

    def __init__(self, stored: StoredTable, entry: TableEntry, stored_dim: int) -> None:
        self._stored, self._added = stored, stored_dim - entry.embedding_dim
        self.num_embeddings, self.embedding_dim = entry.num_embeddings, stored_dim

    def rows(self, first: int, last: int) -> torch.Tensor:
        return torch.nn.functional.pad(self._stored(torch.arange(first, last)), (0, self._added))


def write(bundle: Bundle, folder: Path) -> None:
    """Write the tables, the dense weights and CONFIG.

    Raises:
        BundleError: The bundle is of kind `custom`.
    """
    from ham_dist.embedding.tables import stored_dim

    manifest = bundle.manifest
    files: dict[str, FileEntry] = {}
    tables = []
    bundle.interaction()  # refuses a dense part that only its owner can build
    for kind, entries in ((TABLES, manifest.tables), (FIRST_ORDER, manifest.first_order)):
        for entry in entries:
            path = table_path(kind, entry.field)
            dim, codec = (
                stored_dim(entry.embedding_dim, fused=True),
                "fp16" if entry.codec == "fp16" else "fp32",
            )
            files[path] = write_table(folder / path, codec_of(codec), _Rows(bundle.stored(entry), entry, dim))
            table = _table(entry.field, entry.num_embeddings, entry.embedding_dim, dim)
            tables.append(
                TableConfig(
                    collection=kind,
                    name=table.module_name,
                    feature=entry.field,
                    num_embeddings=entry.num_embeddings,
                    embedding_dim=dim,
                    columns=entry.embedding_dim,
                    data_type=codec,
                    file=path,
                )
            )
    with new_bundle_file(folder, DENSE, files) as target:
        target.write_bytes((bundle.root / DENSE).read_bytes())
    config = TorchRecConfig(
        model=manifest.model,
        fields=manifest.fields,
        tables=tuple(tables),
        files=files,
        quantizable=set(manifest.codecs) <= {"fp32", "fp16"},
    )
    write_json(folder / CONFIG, config.model_dump(mode="json"))


def _table(field: str, num_embeddings: int, columns: int, dim: int) -> "Table":
    from ham_dist.embedding.tables import Table

    return Table(field, num_embeddings, columns, dim, columns)


def load_torchrec(folder: str | Path) -> "TorchRecModel":
    """Returns the model of a package on CPU, unsharded, in evaluation mode.

    fp32 tables are mapped. DistributedModelParallel makes tables of its own, which take the state of this
    model:

        state = model.state_dict()
        sharded = DistributedModelParallel(model, device=device)
        sharded.load_state_dict(state)

    Args:
        folder: Folder that `ham-dist package --format torchrec` wrote.
    Raises:
        BundleError: The package is damaged.
    """
    from ham_dist.export.packages.torchrec_model import TorchRecModel

    root = Path(folder)
    config = _read_config(root)
    weights: dict[str, dict[str, torch.Tensor]] = {TABLES: {}, FIRST_ORDER: {}}
    tables: dict[str, list[Table]] = {TABLES: [], FIRST_ORDER: []}
    for table in config.tables:
        values = map_tensors(root / table.file).get(VALUES)
        if values is None or tuple(values.shape) != (table.num_embeddings, table.embedding_dim):
            raise BundleError(f"{root / table.file}: has other tensors than {CONFIG} states. {_ADVICE}")
        weights[table.collection][table.feature] = values.float()
        tables[table.collection].append(
            _table(table.feature, table.num_embeddings, table.columns, table.embedding_dim)
        )
    dims = {
        field.name: field.embedding_dim for field in config.fields if field.embedding_dim or field.keeps_slot
    }
    with torch.random.fork_rng(devices=[]):
        interaction = build_interaction(config.model, dims)
    try:
        interaction.load_state_dict(map_tensors(root / DENSE))
    except RuntimeError as error:
        raise BundleError(f"{root / DENSE}: {error}. {_ADVICE}") from None
    several = frozenset(field.name for field in config.fields if field.multi_valued)
    return TorchRecModel(
        tables[TABLES], tables[FIRST_ORDER], (weights[TABLES], weights[FIRST_ORDER]), interaction, several
    )


def load_quantized(folder: str | Path) -> torch.nn.Module:
    """Returns the model of a package with the quantized modules of torchrec.inference.

    Tables are fp16 where the bundle's are, else fp32, so the probabilities are the same.

    Args:
        folder: As for `load_torchrec`.
    Raises:
        BundleError: The package is damaged; or tables of the bundle are int8, int6 or int4, which the
            kernels, with one scale for each row, would change.
    """
    from torchrec.inference.modules import quantize_inference_model

    root = Path(folder)
    config = _read_config(root)
    if not config.quantizable:
        raise BundleError(
            f"{root}: its bundle has tables with a scale for each column, which TorchRec's quantized tables "
            "have not.\n  Use load_torchrec, or package a bundle of precision fp16 or fp32."
        )
    # A table and the first-order table of its field have one name here, so one type: fp32 holds both.
    wide = {table.name for table in config.tables if table.data_type == "fp32"}
    types = {table.name: torch.float32 if table.name in wide else torch.float16 for table in config.tables}
    with warnings.catch_warnings():
        # TorchRec calls it.
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        quantized: torch.nn.Module = quantize_inference_model(
            load_torchrec(root), per_table_weight_dtype=types
        )
    return quantized


def _read_config(root: Path) -> TorchRecConfig:
    try:
        config = TorchRecConfig.model_validate(read_json(root / CONFIG))
        for name, entry in config.files.items():
            if inside(root, name).stat().st_size != entry.size:
                raise ValueError(f"{name} has another size than it was written with")
    except ValidationError as error:
        raise BundleError(f"{root / CONFIG}: {mistakes(error)}\n  {_ADVICE}") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{root / CONFIG}: damaged: {error}. {_ADVICE}") from None
    if unlisted := {DENSE, *(table.file for table in config.tables)} - config.files.keys():
        raise BundleError(f"{root / CONFIG}: `files` lacks {', '.join(sorted(unlisted))}. {_ADVICE}")
    return config


def features_of(fields: list[str], ids: Mapping[str, Ids]) -> Any:
    """Returns ids by field as a KeyedJaggedTensor."""
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    values, lengths = [], []
    for name in fields:
        of_field = ids[name]
        if isinstance(of_field, torch.Tensor):
            of_field = of_field, torch.arange(len(of_field) + 1)
        values.append(of_field[0])
        lengths.append(of_field[1].diff())
    return KeyedJaggedTensor(fields, torch.cat(values), lengths=torch.cat(lengths))


def runners(bundle: Bundle, folder: Path) -> Mapping[str, Runner]:
    """Opens the model, unsharded; also quantized, where that is possible."""
    fields = [field.name for field in read_fields(bundle)]
    models: dict[str, torch.nn.Module] = {"torchrec": load_torchrec(folder)}
    if _read_config(folder).quantizable:
        models["torchrec, quantized"] = load_quantized(folder)

    def runner(model: torch.nn.Module) -> Runner:
        return lambda ids: torch.sigmoid(model(features_of(fields, ids)))

    return {name: runner(model) for name, model in models.items()}
