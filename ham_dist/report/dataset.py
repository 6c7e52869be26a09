"""Which runs were made on the same data, and a look at that data where it is still there."""

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
"""Of a data set's sha256, as a report shows it."""


@dataclass(frozen=True)
class Dataset:
    """One data set, and the runs that were made on it: of these alone the test AUC can be compared.

    digest: of its manifest, as the runs recorded it; None for a run that recorded none, which stands alone.
    """

    name: str
    digest: str | None
    runs: list[RunRecord]

    @property
    def title(self) -> str:
        """Tells it from others of its name."""
        return f"{self.name} ({f'sha256 {self.digest[:DIGEST_DIGITS]}' if self.digest else f'not recorded by {self.runs[0].name}'})"


def datasets_of(runs: Sequence[RunRecord]) -> list[Dataset]:
    """The runs by data set, in the order in which data sets are first met."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(run.data.sha256 if run.data else f"run {run.name}", []).append(run)
    return [
        Dataset(group[0].dataset, group[0].data.sha256 if group[0].data else None, group)
        for group in groups.values()
    ]


def look_at_dataset(dataset: Dataset, most_rows: int | None) -> DatasetStatistics | str:
    """What `ham-dist inspect` finds in the data, for the widest tables and numbers of its runs; or why there is no look at it.

    most_rows: of all splits; data with more is not read. None reads data of any size.
    """
    width = max(run.settings.model.base_dim for run in dataset.runs)
    precision = max((run.settings.precision.tables for run in dataset.runs), key=NUMBER_BYTES.__getitem__)
    problems = {}
    for run in dataset.runs:
        if run.data_folder in problems:
            continue
        try:
            return _look(run, width, precision, most_rows)
        except (DataError, CheckpointError) as error:
            problems[run.data_folder] = str(error)
    return "\n".join(problems.values())


def _look(
    run: RunRecord, width: int, precision: TablePrecision, most_rows: int | None
) -> DatasetStatistics | str:
    """raises: DataError if the data is gone, elsewhere or damaged; CheckpointError if other data is in its place."""
    if not is_local(run.data_folder):
        raise DataError(
            f"{run.data_folder}: is not on this machine. Copy it to one, and `ham-dist inspect` shows what it holds"
        )
    folder = Path(run.data_folder)
    manifest = Manifest.load(folder)
    run.folder.check_data(manifest)
    rows = sum(split.rows for split in manifest.splits.values())
    if most_rows is not None and rows > most_rows:
        left_out = f"{folder}: has {rows:,} rows, and more than {most_rows:,} are read only if asked for. --data reads them"
        log.info("no look at the data: %s", left_out)
        return left_out
    log.info("reading %s once through (--no-data leaves that out)", folder)
    return compute_statistics(folder, manifest, width, precision)


def data_grids(look: DatasetStatistics) -> list[Grid]:
    """The figures of `ham-dist inspect` on a data folder."""
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
            f"Tables {look.width} columns wide in {look.precision}, and the share of the training values in the most frequent ids",
            ("field", "rows", "bytes", "ids seen", "seen once", *(f"top {share}" for share in HEADS)),
            fields,
            total=total,
        ),
        Grid(
            "Share of the values that are unknown (id 0), and whose ids training lacks (unseen)",
            ("field", *(f"id 0, {split}" for split in SPLITS), *(f"unseen, {split}" for split in SPLITS[1:])),
            shares,
        ),
    ]
