"""Runs grouped by their data, and the statistics of that data if it still exists."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ham_dist.config.schema import TablePrecision
from ham_dist.config.units import NUMBER_BYTES
from ham_dist.data.format.manifest import SPLITS, Manifest
from ham_dist.data.statistics import HEADS, DatasetStatistics, compute_statistics
from ham_dist.errors import CheckpointError, DataError
from ham_dist.io.paths import is_local
from ham_dist.report.grids import Cell, Grid, size_cell
from ham_dist.report.record import RunRecord
from ham_dist.report.text import count_text, share_text

log = logging.getLogger(__name__)

DIGEST_DIGITS = 12
"""Number of digits of a data set's sha256 in a report."""


@dataclass(frozen=True)
class Dataset:
    """One data set and its runs, whose test AUC can be compared.

    Attributes:
        name: Name of the data set.
        digest: sha256 of its manifest, as its runs recorded it; None for a run without a record of its data,
            which is a group of its own.
        runs: The runs on this data.
    """

    name: str
    digest: str | None
    runs: list[RunRecord]

    @property
    def title(self) -> str:
        """Name and digest, which distinguish data sets of the same name."""
        digest = (
            f"sha256 {self.digest[:DIGEST_DIGITS]}" if self.digest else f"not recorded by {self.runs[0].name}"
        )
        return f"{self.name} ({digest})"


def datasets_of(runs: Sequence[RunRecord]) -> list[Dataset]:
    """Returns the runs grouped by data set, in the order of their first runs."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(run.data.sha256 if run.data else f"run {run.name}", []).append(run)
    return [
        Dataset(group[0].dataset, group[0].data.sha256 if group[0].data else None, group)
        for group in groups.values()
    ]


def look_at_dataset(dataset: Dataset, most_rows: int | None) -> DatasetStatistics | str:
    """Returns the statistics of the data, as `ham-dist inspect` computes them.

    Tables have the largest base dim and the largest precision of the runs.

    Args:
        most_rows: Largest number of rows, over all splits; larger data is not read. None reads data of any
            size.
    Returns:
        The statistics, or the reason why there are none.
    """
    dim = max(run.settings.model.base_dim for run in dataset.runs)
    precision = max((run.settings.precision.tables for run in dataset.runs), key=NUMBER_BYTES.__getitem__)
    problems = {}
    for run in dataset.runs:
        if run.data_folder in problems:
            continue
        try:
            return _look(run, dim, precision, most_rows)
        except (DataError, CheckpointError) as error:
            problems[run.data_folder] = str(error)
    return "\n".join(problems.values())


def _look(
    run: RunRecord, dim: int, precision: TablePrecision, most_rows: int | None
) -> DatasetStatistics | str:
    """Statistics of one run's data.

    Raises:
        DataError: The data is missing, remote or damaged.
        CheckpointError: It is not the data that the run began with.
    """
    if not is_local(run.data_folder):
        raise DataError(
            f"{run.data_folder}: is not on this machine. "
            "Copy it to this machine and run `ham-dist inspect` on it"
        )
    folder = Path(run.data_folder)
    manifest = Manifest.load(folder)
    run.folder.check_data(manifest)
    rows = sum(split.rows for split in manifest.splits.values())
    if most_rows is not None and rows > most_rows:
        skipped = f"{folder}: has {rows:,} rows; more than {most_rows:,} are read only with --data"
        log.info("no statistics of the data: %s", skipped)
        return skipped
    log.info("reading all of %s (--no-data skips this)", folder)
    return compute_statistics(folder, manifest, dim, precision)


def data_grids(look: DatasetStatistics) -> list[Grid]:
    """Returns the grids that `ham-dist inspect` shows for a data folder."""
    splits = [
        (name, count_text(split.rows), count_text(split.positives), share_text(split.label_rate))
        for name, split in look.splits.items()
    ]
    lines = [("raw rows", count_text(look.rows_in)), ("dropped", count_text(look.rows_dropped))]
    lines += [(f"rejected: {reason}", count_text(count)) for reason, count in look.rejected.items()] or [
        ("rejected", "0")
    ]
    fields: list[Sequence[Cell | str]] = [
        (
            field.name,
            count_text(field.rows),
            size_cell(field.bytes),
            count_text(field.ids_seen),
            count_text(field.ids_seen_once),
            *(share_text(field.head[share]) for share in HEADS),
        )
        for field in look.fields
    ]
    total: Sequence[Cell | str] = (
        "all",
        count_text(sum(field.rows for field in look.fields)),
        size_cell(look.bytes),
        *[""] * (2 + len(HEADS)),
    )
    shares = [
        (
            field.name,
            *(share_text(field.zero[split]) for split in SPLITS),
            *("" if field.ids_from_training else share_text(field.unseen[split]) for split in SPLITS[1:]),
        )
        for field in look.fields
    ]
    return [
        Grid("Splits", ("split", "rows", "positive", "label rate"), splits),
        Grid("Raw lines", ("", "lines"), lines),
        Grid(
            f"Tables {look.dim} columns wide in {look.precision}, "
            "and the share of the training values in the most frequent ids",
            ("field", "rows", "bytes", "ids seen", "seen once", *(f"top {share}" for share in HEADS)),
            fields,
            total=total,
        ),
        Grid(
            "Share of values that are unknown (id 0), and of values whose id is not in training (unseen)",
            ("field", *(f"id 0, {split}" for split in SPLITS), *(f"unseen, {split}" for split in SPLITS[1:])),
            shares,
        ),
    ]
