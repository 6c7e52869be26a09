"""manifest.json of a bundle: its fields, reading and writing."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from ham_dist.config.schema import MODELS, AnyModelSettings
from ham_dist.errors import BundleError
from ham_dist.export.codecs.floats import FloatCodec
from ham_dist.export.codecs.registry import codec_of
from ham_dist.export.migrate import migrate_manifest
from ham_dist.io.hashing import sha256_of_json
from ham_dist.io.untrusted import read_json, relative_name

FORMAT = "ham_dist bundle"
FORMAT_VERSION = 3
"""Incremented with every change that an earlier reader would misread."""
MANIFEST = "manifest.json"
DENSE = "dense.safetensors"
ADVICE = "Copy the bundle again from where it was written, or export the run again."

MIXED = "mixed"
"""`precision` of a bundle whose tables have several codecs."""

CodecName = Annotated[str, AfterValidator(lambda name: codec_of(name).name)]
"""The name of an entry of `CODECS`."""

RelativeName = Annotated[str, AfterValidator(relative_name)]
Count = Annotated[int, Field(ge=0, strict=True)]
PositiveCount = Annotated[int, Field(gt=0, strict=True)]
Rows = Annotated[int, Field(gt=0, le=2**40, strict=True)]
Dim = Annotated[int, Field(ge=0, le=2**16, strict=True)]
"""The limit is far above any model's; C_j times d_j stays below 2^63."""
Name = Annotated[str, Field(min_length=1)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FieldEntry(_Entry):
    """A field that the model reads, or keeps a slot for."""

    name: Name
    num_embeddings: Rows
    """C_j; ids are 0 to num_embeddings - 1."""
    embedding_dim: Dim
    """Columns of its table; 0 if it has none."""
    multi_valued: bool = False
    """True if a record can have several values; their table rows are averaged, and no value gives zeros."""
    keeps_slot: bool = False
    """True if the field has no columns but stays in the model as zeros."""

    @model_validator(mode="after")
    def _slot_has_no_column(self) -> "FieldEntry":
        if self.keeps_slot and self.embedding_dim:
            raise ValueError(f"field {self.name!r} keeps an empty slot but has {self.embedding_dim} columns")
        return self


class FileEntry(_Entry):
    """Size and hash of a file of the bundle."""

    size: Count
    """Bytes."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class TableFile(_Entry):
    """A file with some rows of a table."""

    file: RelativeName
    first_row: Count
    rows: PositiveCount


class SomeRows(Protocol):
    """Consecutive rows of a table."""

    @property
    def first_row(self) -> int:
        """Number of the first row."""

    @property
    def rows(self) -> int:
        """Number of rows."""


def require_whole(field: str, num_embeddings: int, parts: Iterable[SomeRows]) -> None:
    """Check that parts of a table, in the order of rows, hold each of its rows once.

    Raises:
        ValueError: They do not.
    """
    expected = 0
    for part in parts:
        if part.first_row != expected:
            what = "are missing" if part.first_row > expected else "occur twice"
            low, high = sorted((part.first_row, expected))
            raise ValueError(f"table {field!r}: rows {low} to {high - 1} {what}")
        expected += part.rows
    if expected != num_embeddings:
        raise ValueError(f"table {field!r}: its files hold {expected} rows, expected {num_embeddings}")


class TableEntry(_Entry):
    """A table, in files that hold all its rows in ascending order."""

    field: Name
    num_embeddings: PositiveCount
    embedding_dim: PositiveCount
    codec: CodecName
    """Encoding of its numbers."""
    files: Annotated[tuple[TableFile, ...], Field(min_length=1)]
    """One file, which can be memory mapped. Several only for fp32 and fp16, as versions 1 and 2 wrote
    them."""

    @model_validator(mode="after")
    def _files_hold_all_rows(self) -> "TableEntry":
        require_whole(self.field, self.num_embeddings, self.files)
        if len(self.files) > 1 and not isinstance(codec_of(self.codec), FloatCodec):
            raise ValueError(f"table {self.field!r}: {len(self.files)} files of {self.codec}, expected one")
        return self

    @property
    def stored_bytes(self) -> int:
        """Bytes of the table: numbers, scales and padding, without the headers of its files."""
        return codec_of(self.codec).stored_bytes(self.num_embeddings, self.embedding_dim)


class UnknownShares(_Entry):
    """Shares of unknown values in data that the model was trained with."""

    split: Literal["train", "validation"]
    rows: PositiveCount
    """Number of records counted."""
    shares: dict[Name, Annotated[float, Field(ge=0, le=1)]]
    """Share of id 0 among the values of each field."""


class BundleManifest(_Entry):
    """The content of manifest.json, except `checksum` (see `write_manifest`)."""

    format: Literal["ham_dist bundle"] = "ham_dist bundle"
    format_version: PositiveCount = FORMAT_VERSION
    kind: Literal["ctr", "custom"]
    """`ctr`: a model that `ham-dist score` can run; `custom`: tables, and weights of a dense part that only
    its owner can build."""
    model: AnyModelSettings | None
    """Settings of the interaction; null for `custom`."""
    fields: Annotated[tuple[FieldEntry, ...], Field(min_length=1)]
    """The fields in the order of the model's columns."""
    tables: tuple[TableEntry, ...]
    """One for each field with columns."""
    first_order: tuple[TableEntry, ...] = ()
    """First-order tables (width 1), whose rows are added to the logit; empty for most models."""
    vocabulary: dict[Name, RelativeName] = {}
    """Files that map raw values to ids, by field; empty if the data contains ids."""
    hashed_vocabulary: RelativeName | None = None
    """File that maps the raw values of all fields in `vocabulary` to ids, for serving; null if there are
    none, and in bundles of format versions 1 and 2."""
    files: dict[RelativeName, FileEntry]
    """Every file of the bundle except manifest.json."""
    recipe: dict[str, JsonValue] | None = None
    """Recipe for reading raw records; null if the data contains ids."""
    unknown: UnknownShares | None = None
    """Shares of unknown values to compare records with; null without data, and in bundles of format version
    1."""
    run: dict[str, JsonValue] = {}
    """The run that the bundle was exported from."""
    verified: dict[str, JsonValue] | None = None
    """Result of comparing the bundle with the live model when it was written."""

    @model_validator(mode="after")
    def _parts_agree(self) -> "BundleManifest":
        if (self.model is None) != (self.kind == "custom"):
            raise ValueError(
                f"kind = {self.kind!r} with model {'missing' if self.model is None else 'given'}"
            )
        fields = {field.name: field for field in self.fields}
        if len(fields) < len(self.fields):
            raise ValueError("two fields have the same name")
        with_columns = [field.name for field in self.fields if field.embedding_dim]
        if [table.field for table in self.tables] != with_columns:
            raise ValueError(
                f"tables of {[table.field for table in self.tables]}, "
                f"expected one for each field with columns: {with_columns}"
            )
        for table, dim in [(table, None) for table in self.tables] + [
            (table, 1) for table in self.first_order
        ]:
            field = fields.get(table.field)
            if field is None:
                raise ValueError(f"first-order table of {table.field!r}, which is not in `fields`")
            wanted = (field.num_embeddings, dim or field.embedding_dim)
            if (table.num_embeddings, table.embedding_dim) != wanted:
                raise ValueError(
                    f"table {table.field!r}: num_embeddings, embedding_dim "
                    f"{(table.num_embeddings, table.embedding_dim)}, but its field has {wanted}"
                )
        pieces = [piece.file for table in (*self.tables, *self.first_order) for piece in table.files]
        hashed = [self.hashed_vocabulary] if self.hashed_vocabulary is not None else []
        unlisted = {DENSE, *pieces, *self.vocabulary.values(), *hashed} - self.files.keys()
        if unlisted:
            raise ValueError(f"`files` lacks size and sha256 of {', '.join(sorted(unlisted))}")
        return self

    @property
    def codecs(self) -> tuple[str, ...]:
        """The codecs of the tables; fp32 without tables."""
        names = dict.fromkeys(table.codec for table in (*self.tables, *self.first_order))
        return tuple(names) or ("fp32",)

    @property
    def precision(self) -> str:
        """The codec of all tables, or `mixed`; dense weights are always fp32."""
        return MIXED if len(self.codecs) > 1 else self.codecs[0]

    @property
    def table_bytes(self) -> int:
        """Bytes of all tables: numbers, scales and padding, without the headers of their files."""
        return sum(table.stored_bytes for table in (*self.tables, *self.first_order))


def table_path(folder: str, field: str) -> str:
    """Returns the path of a table's file inside the bundle.

    A field's name may hold any character, so those that file systems or readers refuse are escaped as %XX.
    """
    return f"{folder}/{quote(field, safe='').replace('.', '%2E')}.safetensors"


def _checksum(content: dict[str, Any]) -> str:
    """sha256 over the parsed content, so that white space does not matter."""
    return sha256_of_json(content)


def write_manifest(root: Path, manifest: BundleManifest) -> None:
    """Write manifest.json with a checksum of its own content, as no other file contains its hash."""
    content = manifest.model_dump(mode="json")
    (root / MANIFEST).write_text(
        json.dumps(content | {"checksum": _checksum(content)}, indent=2) + "\n", encoding="utf-8"
    )


def read_manifest(root: Path) -> BundleManifest:
    """Returns the manifest of the bundle in the local folder `root`; the other files are not read.

    Raises:
        BundleError: There is no manifest, it is damaged, of another or a newer format, inconsistent, or of a
            model that is not registered.
    """
    path = root / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"{path}: no such file, so {root} is not a bundle. "
            f"`ham-dist export RUN_DIR --out {root}` writes one."
        )
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: damaged: {error}. {ADVICE}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise BundleError(
            f'{path}: format is {found!r}, expected "{FORMAT}". '
            f"Give the folder of a bundle; `ham-dist inspect {root}` shows what this folder is."
        )
    version = content.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BundleError(
            f"{path}: format_version = {version}, but this ham_dist reads versions up to {FORMAT_VERSION}.\n"
            "  Install the ham_dist that wrote the bundle, or export the run again with this one."
        )
    found = content.pop("checksum", None)
    if found != _checksum(content):
        raise BundleError(f"{path}: damaged: its content does not match its checksum. {ADVICE}")
    content = migrate_manifest(content)
    if isinstance(content.get("model"), dict):
        _require_registered(path, content["model"].get("name"))
    try:
        return BundleManifest.model_validate(content)
    except ValidationError as error:
        raise BundleError(f"{path}: {mistakes(error)}\n  {ADVICE}") from None


def bundle_identity(root: Path) -> str:
    """Returns the sha256 that identifies the bundle in `root`: that of its manifest, which has all others.

    Raises:
        BundleError: The manifest is missing or damaged.
    """
    read_manifest(root)
    identity: str = read_json(root / MANIFEST)["checksum"]
    return identity


def _require_registered(path: Path, name: Any) -> None:
    names = MODELS.names()
    if isinstance(name, str) and name not in names:
        raise BundleError(
            f"{path}: model.name = {name!r}: no such model is registered; there are {', '.join(names)}.\n"
            "  Import the package that registers the model (register_model) before the bundle is opened, "
            "or install the ham_dist that wrote the bundle."
        )


def mistakes(error: ValidationError) -> str:
    """Returns the errors that pydantic found, in one line."""
    found: Sequence[Any] = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(
        ": ".join(filter(None, (".".join(map(str, item["loc"])), item["msg"]))) for item in found
    )
