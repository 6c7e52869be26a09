"""Scoring records with a bundle (`ham-dist score`). Needs torch, but neither TorchRec nor a process group."""

import csv
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ham_dist.errors import BundleError, DataError
from ham_dist.export.bundle import open_bundle
from ham_dist.export.files import writing
from ham_dist.export.manifest import UnknownShares
from ham_dist.export.records import Values, read_records
from ham_dist.export.unknown import UnknownCounts
from ham_dist.io.atomic import new_file
from ham_dist.io.paths import is_local

BLOCK_ROWS = 65_536
"""Largest number of records in memory."""
SUFFIXES = (".txt", ".csv", ".parquet")
PROBABILITY = "probability"
"""Name of the column of probabilities."""

Write = Callable[[pa.Array | None, torch.Tensor], None]


@dataclass(frozen=True)
class Scored:
    """Result of scoring one input.

    Attributes:
        rows: Number of probabilities written.
        unknown: Counts of unknown values of each field.
        expected: Shares of unknown values in the data that the model was trained with; None if the bundle has
            none.
    """

    rows: int
    unknown: UnknownCounts
    expected: UnknownShares | None

    @property
    def warnings(self) -> list[str]:
        """One sentence for each field with far more unknown values than in training; see `UnknownCounts`."""
        return self.unknown.warnings(self.expected)


@torch.inference_mode()
def score(
    bundle_path: str | Path,
    input_path: str | Path,
    out_path: str | Path,
    values: Values = "auto",
    block_rows: int = BLOCK_ROWS,
    id_column: str | None = None,
) -> Scored:
    """Write the probability of each record of `input_path`, in its order.

    Args:
        bundle_path: Folder of a bundle of kind `ctr`.
        input_path: Raw records, or ids in Parquet; see `records.read_records`, also for `values`.
        out_path: .txt (one number per line), .csv (the same under the header `probability`) or .parquet (a
            float32 column `probability`). An existing file is replaced when all records are scored, and kept
            if scoring fails.
        values: Content of Parquet: `ids`, `raw`, or `auto`.
        block_rows: Largest number of records in memory.
        id_column: A column of the records that is written before the probabilities; needs .csv or .parquet.
    Returns:
        The number of records, and counts of unknown values.
    Raises:
        BundleError: The bundle cannot be used or the output cannot be written.
        DataError: A record cannot be read.
    """
    out = Path(out_path)
    _check_output(out, id_column)
    _require_apart(Path(bundle_path), input_path, out)
    bundle = open_bundle(bundle_path)
    model = bundle.model()
    read = set(model.read_fields)
    fields = [field for field in bundle.manifest.fields if field.name in read]
    rows, counts = 0, UnknownCounts([field.name for field in fields])
    with _output(out, id_column) as write:
        for block in read_records(bundle, input_path, fields, values, block_rows, id_column):
            probabilities = torch.sigmoid(model(block.ids))
            _require_finite(bundle_path, probabilities, rows)
            write(block.carried, probabilities)
            counts.add(block.ids)
            rows += len(probabilities)
    return Scored(rows, counts, bundle.manifest.unknown)


def _check_output(out: Path, id_column: str | None) -> None:
    if out.suffix not in SUFFIXES:
        raise BundleError(f"{out}: ends in {out.suffix!r}; give a name that ends in {', '.join(SUFFIXES)}")
    if id_column is not None and out.suffix == ".txt":
        raise BundleError(
            f"{out}: a .txt file has one number per line and no columns. "
            f"For --id {id_column}, give .csv or .parquet"
        )
    if id_column == PROBABILITY:
        raise BundleError(
            f"--id {id_column}: is the name of the output's column of probabilities. "
            "Rename the column of the records"
        )


def _require_apart(bundle: Path, source: str | Path, out: Path) -> None:
    """Check that writing `out` neither replaces an input file nor adds a file to an input folder.

    Raises:
        BundleError: It would.
    """
    target = out.resolve()
    for path, name in ((bundle, "bundle"), (source, "input")):
        if not is_local(path):
            continue
        found = Path(path).resolve()
        files = [found, *(found.iterdir() if found.is_dir() else ())]
        if target.is_relative_to(found) or (
            out.exists() and any(file.samefile(out) for file in files if file.exists())
        ):
            raise BundleError(
                f"{out}: is the {name} {path} or in it. Give another file for the probabilities"
            )


def _require_finite(bundle: str | Path, probabilities: torch.Tensor, first: int) -> None:
    finite = probabilities.isfinite()
    if not finite.all():
        record = first + int((~finite).nonzero()[0])
        raise BundleError(
            f"{bundle}: the probability of record {record} (from 0) is not finite: "
            "the weights are too large. Train the model again"
        )


@contextmanager
def _output(out: Path, id_column: str | None) -> Iterator[Write]:
    """A function that writes one block; the file is renamed to `out` when all are written."""
    with writing(out), new_file(out) as temporary:
        if out.suffix == ".parquet":
            with _ParquetFile(temporary, id_column) as file:
                yield file.write
        else:
            with temporary.open("w", encoding="utf-8", newline="") as text:
                lines = csv.writer(text, lineterminator="\n")
                if out.suffix == ".csv":
                    lines.writerow([*([] if id_column is None else [id_column]), PROBABILITY])
                yield lambda ids, probabilities: lines.writerows(_lines(id_column, ids, probabilities))


def _lines(
    id_column: str | None, ids: pa.Array | None, probabilities: torch.Tensor
) -> Iterable[tuple[str, ...]]:
    # 9 digits are enough to restore the same float32.
    numbers = (f"{probability:.9g}" for probability in probabilities.tolist())
    return zip(numbers) if ids is None else zip(_text(id_column, ids), numbers, strict=True)


def _text(name: str | None, ids: pa.Array) -> list[str]:
    try:
        return [one or "" for one in ids.cast(pa.string()).to_pylist()]
    except (pa.ArrowException, NotImplementedError):
        raise DataError(
            f"--id {name}: the column is {ids.type}, which .csv cannot represent. Give a .parquet file"
        ) from None


class _ParquetFile:
    """A Parquet file of probabilities, after the id column; the id column has the type of its first block."""

    def __init__(self, path: Path, id_column: str | None) -> None:
        self._path, self._id_column = path, id_column
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "_ParquetFile":
        return self

    def __exit__(self, *failure: object) -> None:
        if self._writer is None and failure[0] is None:
            self.write(None if self._id_column is None else pa.array([], pa.string()), torch.empty(0))
        if self._writer is not None:
            self._writer.close()

    def write(self, ids: pa.Array | None, probabilities: torch.Tensor) -> None:
        columns = {} if self._id_column is None else {self._id_column: ids}
        table = pa.table({**columns, PROBABILITY: probabilities.numpy()})
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema)
        try:
            table = table.cast(self._writer.schema)
        except pa.ArrowException:
            raise DataError(
                f"--id {self._id_column}: is {table.schema[0].type} in one file and "
                f"{self._writer.schema[0].type} in another. Use the same type in all files"
            ) from None
        self._writer.write_table(table)
