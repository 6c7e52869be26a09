"""manifest.json: describes the content of a prepared data folder, and checks its files."""

import errno
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ham_dist.errors import DataError
from ham_dist.io.atomic import write_text
from ham_dist.io.hashing import sha256_of_stream
from ham_dist.io.paths import exists, is_local, open_file, read_content
from ham_dist.io.untrusted import inside, open_regular, parse_json, relative_name

# Increased whenever earlier versions cannot read a folder written by this version.
FORMAT_VERSION = 2
FILE_NAME = "manifest.json"
REDO = "Delete the folder and prepare it again, or copy it again from its source."
SPLITS = ("train", "validation", "test")

Count = Annotated[int, Field(ge=0)]


class _ManifestPart(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class StoredFile(_ManifestPart):
    """One file of the folder."""

    file: Annotated[str, AfterValidator(relative_name)]
    """Path relative to the folder, with forward slashes."""
    rows: Count
    bytes: Count
    sha256: str


class RawFile(_ManifestPart):
    """One raw file that the data was prepared from."""

    file: str
    bytes: Count
    sha256: str


class DataField(_ManifestPart):
    """One field of the prepared data."""

    name: str
    rows: Annotated[int, Field(ge=1)]
    """C_j: ids are in [0, rows); id 0 stands for unknown values."""
    multi_valued: bool
    """True if a sample can have several ids; its column is then a list."""
    vocabulary: StoredFile
    """The id of each value; has no rows for a field with hashed ids."""


class SplitEntry(_ManifestPart):
    """One split: train, validation or test."""

    rows: Count
    positives: Count
    shards: tuple[StoredFile, ...]


class RejectedLines(_ManifestPart):
    """Lines of the raw files that could not be read as rows."""

    samples: Count = 0
    """Rejected lines of the sample files; all others are from side files."""
    reasons: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Number of lines by reason, side files included."""
    stored: StoredFile | None = None
    """File, line number, reason and beginning of each rejected line; None if there are none."""


class NumberCheck(_ManifestPart):
    """Counts of a numeric field in the training split before and after its transform; no missing numbers."""

    samples: Count
    numbers: Count
    """Distinct numbers before the transform."""
    ids: Count
    """Distinct values after the transform."""
    most_frequent_number: Count
    """Samples with the most frequent number."""
    most_frequent_id: Count
    """Samples with the most frequent value after the transform."""


class TimeCheck(_ManifestPart):
    """Counts of a time field in the training split, without missing times."""

    samples: Count
    unknown: Count
    """Samples whose time is not in the recipe's layout, or has an implausible year: these get id 0."""
    example: str | None
    """One of the unknown times; None if there are none."""


class Checks(_ManifestPart):
    """Counts made while preparing, for warnings. They are not part of the data's identity."""

    numbers: dict[str, NumberCheck] = {}
    """Checks by numeric field."""
    times: dict[str, TimeCheck] = {}
    """Checks by time field."""


class Truth(_ManifestPart):
    """Ground truth of generated data."""

    planted_ranks: dict[str, int]
    """Number of columns that each field truly needs; 0 for pure noise."""
    bayes_auc: float | None
    """AUC of the true logits on the first million rows of the test split: the upper bound for any model.

    None if all labels are equal.
    """
    bayes_log_loss: float
    """Mean log loss of the true probabilities on the same rows."""


class Manifest(_ManifestPart):
    """The content of manifest.json in a prepared data folder."""

    format_version: int
    name: str
    """Name of the data set."""
    recipe: dict[str, Any] | None
    """The recipe of prepared data; None for generated data."""
    settings: dict[str, Any] | None
    """The settings of generated data; None for prepared data."""
    seed: int
    """Random seed of the split; for generated data also of the rows."""
    rows_per_shard: Annotated[int, Field(ge=1)]
    fields: Annotated[tuple[DataField, ...], Field(min_length=1)]
    """The fields, in the order of model input."""
    splits: dict[str, SplitEntry]
    rows_in: Count
    """Non-blank lines of the raw sample files: the rows of all splits, dropped rows and rejected lines."""
    rows_dropped: Count
    """Raw samples that the label rule makes neither positive nor negative."""
    raw: tuple[RawFile, ...]
    """The raw files; empty for generated data."""
    engine: dict[str, str]
    """Version by name of the libraries that prepared the data; the engine comes first."""
    truth: Truth | None
    """Ground truth of generated data; None for prepared data."""
    rejected: RejectedLines = RejectedLines()
    """Raw lines that could not be read."""
    checks: Checks = Checks()
    """Counts for warnings; empty if the version that wrote the folder made none."""
    row_group_rows: int | None = None
    """Rows of each Parquet row group except a shard's last; None if the version that wrote it stored none."""

    @staticmethod
    def load(folder: str | Path) -> "Manifest":
        """Reads the manifest of the prepared data in `folder`.

        Raises:
            DataError: There is none, it is damaged, or it was written by a newer ham_dist.
        """
        path = f"{folder}/{FILE_NAME}"
        if not exists(path):
            problem = f"holds no {FILE_NAME}" if exists(folder) else "no such folder"
            raise DataError(
                f"{folder}: {problem}; expected prepared data\n"
                f"  Prepare it: ham-dist prepare RECIPE --raw RAW_FOLDER --out {folder}"
            )
        try:
            settings = parse_json(read_content(path))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})\n  {REDO}") from None
        except ValueError as error:
            raise DataError(f"{path}: not JSON ({error})\n  {REDO}") from None
        if not isinstance(settings, dict):
            raise DataError(f"{path}: holds {type(settings).__name__}; expected a JSON object\n  {REDO}")
        version = settings.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise DataError(
                f"{path}: format_version = {version}; this ham_dist reads versions up to {FORMAT_VERSION}\n"
                "  Use the ham_dist that wrote it or a later one, or prepare the data again."
            )
        try:
            return Manifest.model_validate(settings)
        except ValidationError as error:
            mistakes = [
                f"{'.'.join(map(str, item['loc']))}: {item['msg'].lower()}"
                for item in error.errors(include_url=False)
            ]
            raise DataError("\n".join(f"{path}: {mistake}" for mistake in mistakes) + f"\n  {REDO}") from None

    def save(self, folder: Path) -> None:
        """Writes manifest.json into `folder`. Equal manifests give equal bytes."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False)
        write_text(folder / FILE_NAME, text + "\n")

    def files(self) -> list[StoredFile]:
        """All files of the folder except the manifest."""
        rejected = [] if self.rejected.stored is None else [self.rejected.stored]
        return (
            [field.vocabulary for field in self.fields]
            + [shard for split in self.splits.values() for shard in split.shards]
            + rejected
        )

    def check(self, folder: str | Path, deep: bool) -> None:
        """Compares the files of `folder` with this manifest.

        Args:
            folder: Prepared data.
            deep: Also compare the sha256 of every file; otherwise only its presence and size.
        Raises:
            DataError: Files differ. The message names each of them.
        """
        differences = [text for stored in self.files() if (text := _difference(folder, stored, deep))]
        if differences:
            raise DataError("\n".join(differences) + f"\n  {REDO}")

    def field_names(self) -> list[str]:
        """Names of the F fields, in order."""
        return [field.name for field in self.fields]

    def num_embeddings(self) -> dict[str, int]:
        """C_j by field, in order."""
        return {field.name: field.rows for field in self.fields}

    def single_valued(self) -> set[str]:
        """Names of the single-valued fields."""
        return {field.name for field in self.fields if not field.multi_valued}


def require_own_file(folder: str | Path, name: str) -> None:
    """Checks that a local file is a regular file within `folder`. Does nothing for a remote folder.

    A reader that opens a FIFO by name would block forever.

    Raises:
        OSError: The path leads out of the folder, or is not a regular file.
    """
    if is_local(folder):
        try:
            path = inside(Path(folder), name)
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error)) from None
        open_regular(path).close()


def _difference(folder: str | Path, stored: StoredFile, deep: bool) -> str | None:
    path = f"{folder}/{stored.file}"
    try:
        if not exists(path):
            return f"{path}: is missing"
        require_own_file(folder, stored.file)
        file = open_file(path, "rb")
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror or error})"
    with file:
        size = file.seek(0, 2)
        if size != stored.bytes:
            return f"{path}: has {size:,} bytes; expected {stored.bytes:,} by the manifest"
        if deep:
            file.seek(0)
            found = sha256_of_stream(file)
            if found != stored.sha256:
                return (
                    f"{path}: its content has changed (sha256 {found[:12]}...; expected"
                    f" {stored.sha256[:12]}... by the manifest)"
                )
    return None
