"""What a bundle says of itself: manifest.json, its fields, and reading and writing it."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from ham_dist.config.migrate import migrate_model
from ham_dist.config.schema import AnyModelSettings
from ham_dist.errors import BundleError
from ham_dist.export.precisions import precision_of, precision_of_type
from ham_dist.io.hashing import sha256_of_json
from ham_dist.io.untrusted import read_json

FORMAT = "ham_dist bundle"
FORMAT_VERSION = 2
"""Raised by one with every change that an earlier reader would misread."""
MANIFEST = "manifest.json"
DENSE = "dense.safetensors"
MEND = "Copy the bundle again from where it was written, or export the run again."

Precision = Annotated[str, AfterValidator(lambda name: precision_of(name).name)]
"""The name of an entry of `PRECISIONS`."""


def inside(path: str) -> str:
    """`path`; raises: ValueError unless it is one of forward slashes that stays inside the folder it starts from."""
    if not re.fullmatch(r"[^/\\:\0]+(/[^/\\:\0]+)*", path) or {".", ".."} & set(path.split("/")):
        raise ValueError(f"{path!r} does not stay inside the bundle")
    return path


InsidePath = Annotated[str, AfterValidator(inside)]
Count = Annotated[int, Field(ge=0, strict=True)]
PositiveCount = Annotated[int, Field(gt=0, strict=True)]
Rows = Annotated[int, Field(gt=0, le=2**40, strict=True)]
Width = Annotated[int, Field(ge=0, le=2**16, strict=True)]
"""Far above what a model can use; a product of rows and width stays below 2^63."""
Name = Annotated[str, Field(min_length=1)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FieldEntry(_Entry):
    """One field that the model reads, or holds a slot for."""

    name: Name
    rows: Rows
    """C_j; ids are 0 to rows - 1."""
    width: Width
    """Columns of its table; 0 if it has none."""
    multi_valued: bool = False
    """Whether a row can have several values; their table rows are averaged, and none at all gives zeros."""
    keeps_slot: bool = False
    """Whether the field, without a column, still stands in the model as zeros."""

    @model_validator(mode="after")
    def _slot_has_no_column(self) -> "FieldEntry":
        if self.keeps_slot and self.width:
            raise ValueError(f"field {self.name!r} keeps an empty slot but has {self.width} columns")
        return self


class FileEntry(_Entry):
    """One file of the bundle."""

    size: Count
    """Bytes."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Piece(_Entry):
    """Some rows of a table, in a file of their own."""

    file: InsidePath
    first_row: Count
    rows: PositiveCount


class TableEntry(_Entry):
    """One table, in pieces that hold all its rows, ascending."""

    field: Name
    rows: PositiveCount
    width: PositiveCount
    type: Annotated[str, AfterValidator(lambda name: precision_of_type(name).type)]
    files: Annotated[tuple[Piece, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _pieces_make_the_table(self) -> "TableEntry":
        expected = 0
        for piece in self.files:
            if piece.first_row != expected:
                what = "are missing" if piece.first_row > expected else "are there twice"
                low, high = sorted((piece.first_row, expected))
                raise ValueError(f"table {self.field!r}: rows {low} to {high - 1} {what}")
            expected += piece.rows
        if expected != self.rows:
            raise ValueError(
                f"table {self.field!r}: its files hold {expected} rows, the table has {self.rows}"
            )
        return self


class UnknownShares(_Entry):
    """Shares of unknown values in data that the model was trained with."""

    split: Literal["train", "validation"]
    rows: PositiveCount
    """Rows that the shares were counted on."""
    shares: dict[Name, Annotated[float, Field(ge=0, le=1)]]
    """Share of id 0 among the values of each field."""


class BundleManifest(_Entry):
    """All that manifest.json holds, but for `checksum` (see `write_manifest`)."""

    format: Literal["ham_dist bundle"] = "ham_dist bundle"
    format_version: PositiveCount = FORMAT_VERSION
    kind: Literal["ctr", "custom"]
    """`ctr`: one of this package's models, which `ham-dist score` runs; `custom`: tables, and weights of a dense part that its owner builds."""
    model: AnyModelSettings | None
    """Settings of the interaction; null for `custom`."""
    precision: Precision
    """Of the tables; dense weights are always fp32."""
    fields: Annotated[tuple[FieldEntry, ...], Field(min_length=1)]
    """In the order in which the model's columns stand."""
    tables: tuple[TableEntry, ...]
    """One for each field with columns."""
    first_order: tuple[TableEntry, ...] = ()
    """Tables of width 1 whose rows add up to the model's first-order term, where it has such."""
    vocabulary: dict[Name, InsidePath] = {}
    """Files that turn raw values into ids, by field; empty where values are ids already."""
    files: dict[InsidePath, FileEntry]
    """Every file of the bundle but manifest.json."""
    recipe: dict[str, JsonValue] | None = None
    """How raw records are read; null where there are none."""
    unknown: UnknownShares | None = None
    """Shares of unknown values to compare records with; null in bundles of format version 1, and where there is no data."""
    run: dict[str, JsonValue] = {}
    """The run that the bundle came from."""
    verified: dict[str, JsonValue] | None = None
    """What comparing the bundle with the live model gave, when it was written."""

    @model_validator(mode="after")
    def _parts_agree(self) -> "BundleManifest":
        if (self.model is None) != (self.kind == "custom"):
            raise ValueError(
                f"kind = {self.kind!r} with model {'missing' if self.model is None else 'given'}"
            )
        fields = {field.name: field for field in self.fields}
        if len(fields) < len(self.fields):
            raise ValueError("two fields have the same name")
        with_columns = [field.name for field in self.fields if field.width]
        if [table.field for table in self.tables] != with_columns:
            raise ValueError(
                f"tables of {[table.field for table in self.tables]}, wanted one for each field with columns: {with_columns}"
            )
        for table, width in [(table, None) for table in self.tables] + [
            (table, 1) for table in self.first_order
        ]:
            field = fields.get(table.field)
            if field is None:
                raise ValueError(f"first-order table of {table.field!r}, which is no field")
            wanted = (
                field.rows,
                width or field.width,
                precision_of(self.precision).type,
            )
            if (table.rows, table.width, table.type) != wanted:
                raise ValueError(
                    f"table {table.field!r}: rows, width, type {(table.rows, table.width, table.type)}, but its field has {wanted}"
                )
        pieces = [piece.file for table in (*self.tables, *self.first_order) for piece in table.files]
        unlisted = {DENSE, *pieces, *self.vocabulary.values()} - self.files.keys()
        if unlisted:
            raise ValueError(f"no size and sha256 of {', '.join(sorted(unlisted))}")
        return self


def piece_path(folder: str, field: str, first_row: int) -> str:
    """Path of a table's piece inside the bundle; a field's name may hold anything, so what file systems or readers trip over is escaped as %XX."""
    return f"{folder}/{quote(field, safe='').replace('.', '%2E')}/rows-{first_row}.safetensors"


def _checksum(content: dict[str, Any]) -> str:
    """sha256 over the parsed content, so that white space does not matter."""
    return sha256_of_json(content)


def write_manifest(root: Path, manifest: BundleManifest) -> None:
    """Write manifest.json with a checksum over all the rest of it, as no other file vouches for it."""
    content = manifest.model_dump(mode="json")
    (root / MANIFEST).write_text(
        json.dumps(content | {"checksum": _checksum(content)}, indent=2) + "\n", encoding="utf-8"
    )


def read_manifest(root: Path) -> BundleManifest:
    """The manifest of the bundle in the local folder `root`, checked for itself; the other files are not looked at.

    raises: BundleError if there is none, if it is damaged, of another format or newer than this reader, or if its parts do not fit together.
    """
    path = root / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"{path}: there is no such file, so {root} is no bundle. `ham-dist export RUN_DIR --out {root}` writes one."
        )
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: damaged: {error}. {MEND}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise BundleError(
            f'{path}: format is {found!r}, wanted "{FORMAT}". Give the folder of a bundle; `ham-dist inspect {root}` says what this is.'
        )
    version = content.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BundleError(
            f"{path}: format_version = {version}, newer than {FORMAT_VERSION}, the newest that this ham_dist reads.\n"
            "  Install the ham_dist that wrote the bundle, or export the run again with this one."
        )
    found = content.pop("checksum", None)
    if found != _checksum(content):
        raise BundleError(f"{path}: damaged: its content does not give its own checksum. {MEND}")
    if isinstance(content.get("model"), dict):
        content["model"] = migrate_model(content["model"])
    try:
        return BundleManifest.model_validate(content)
    except ValidationError as error:
        raise BundleError(f"{path}: {mistakes(error)}\n  {MEND}") from None


def mistakes(error: ValidationError) -> str:
    """What pydantic found wrong, in one line."""
    found: Sequence[Any] = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(
        ": ".join(filter(None, (".".join(map(str, item["loc"])), item["msg"]))) for item in found
    )
