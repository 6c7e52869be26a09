"""Which runs were made on the same data, and a look at that data where it is still there."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ham_dist.config.paths import is_local
from ham_dist.config.schema import TablePrecision
from ham_dist.config.units import NUMBER_BYTES
from ham_dist.data.look import DataLook, look_at
from ham_dist.data.manifest import Manifest
from ham_dist.errors import CheckpointError, DataError
from ham_dist.report.record import RunRecord

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
    return [Dataset(group[0].dataset, group[0].data.sha256 if group[0].data else None, group) for group in groups.values()]


def look_at_dataset(dataset: Dataset, most_rows: int | None) -> DataLook | str:
    """What `ham-dist inspect` finds in the data, for the widest tables and numbers of its runs; or why there is no look at it.

    most_rows: of all splits; data with more is not read. None reads data of any size.
    """
    width = max(run.settings.model.base_width for run in dataset.runs)
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


def _look(run: RunRecord, width: int, precision: TablePrecision, most_rows: int | None) -> DataLook | str:
    """raises: DataError if the data is gone, elsewhere or damaged; CheckpointError if other data is in its place."""
    if not is_local(run.data_folder):
        raise DataError(f"{run.data_folder}: is not on this machine. Copy it to one, and `ham-dist inspect` shows what it holds")
    folder = Path(run.data_folder)
    manifest = Manifest.load(folder)
    run.folder.check_data(manifest)
    rows = sum(split.rows for split in manifest.splits.values())
    if most_rows is not None and rows > most_rows:
        left_out = f"{folder}: has {rows:,} rows, and more than {most_rows:,} are read only if asked for. --data reads them"
        log.info("no look at the data: %s", left_out)
        return left_out
    log.info("reading %s once through (--no-data leaves that out)", folder)
    return look_at(folder, manifest, width, precision)
