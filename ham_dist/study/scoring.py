"""Scoring of a study's models on the test split, once, after all of its branches have finished."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch.nn import functional

from ham_dist.config.schema import DataSettings
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.reader.split import Split, open_split
from ham_dist.distributed.ranks import process_group
from ham_dist.errors import ConfigError, DataError, ReportError
from ham_dist.export.bundle import open_bundle
from ham_dist.export.package import ids_of
from ham_dist.io.progress import progress
from ham_dist.io.untrusted import read_json
from ham_dist.study.folder import GRID
from ham_dist.study.results import RESULTS, TESTS, Line, Lines
from ham_dist.training.data_record import digest_of
from ham_dist.training.evaluation import area_under_roc

BATCH = 16_384
"""Rows that are scored at once."""


class _Recorded(BaseModel):
    model_config = ConfigDict(frozen=True)


class Entry(_Recorded):
    """A branch of grid.json."""

    key: str
    arm: str
    folder: str
    data: str
    path: str | None
    generated: str
    seed: int


class GridFile(_Recorded):
    """The content of grid.json."""

    study: str
    test: bool
    branches: tuple[Entry, ...]


def score_on_test(
    path: Path, folders: Mapping[str, str], say: Callable[[str], None], *, partial: bool = False
) -> None:
    """Scores the bundles of finished branches on the test split, and writes tests.jsonl.

    Branches with a line in tests.jsonl are not scored again; failed branches have no model.

    Args:
        path: Folder of the study.
        folders: Folders of data sets by name, which replace those of the study.
        say: Prints a line.
        partial: Score the finished branches although others are missing.
    Raises:
        ConfigError: It is a tuning study, or `folders` names data that it does not have.
        ReportError: `path` holds no study; or branches, or bundles of finished branches, are missing.
        DataError: A folder holds other data than the models were trained on.
    """
    grid = read_grid(path)
    if not grid.test:
        raise ConfigError(
            f"{path}: the study {grid.study} has test = false, so its models are never scored on test. "
            "Set test = true in its file only if nothing is tuned on its results"
        )
    if unknown := sorted(folders.keys() - {entry.data for entry in grid.branches}):
        raise ConfigError(f"--data {unknown[0]}={folders[unknown[0]]}: the study has no data of that name")
    lines, tests = Lines(path / RESULTS).read(), Lines(path / TESTS)
    if (missing := [entry for entry in grid.branches if entry.key not in lines]) and not partial:
        raise ReportError(
            f"{path / RESULTS}: {len(missing):,} of {len(grid.branches):,} branches are not finished, "
            f"first {missing[0].folder}.\n"
            "  The test split is read once, at the end: finish the study, or give --partial."
        )
    scored = tests.read()
    left = [
        entry
        for entry in grid.branches
        if entry.key in lines and lines[entry.key]["error"] is None and entry.key not in scored
    ]
    gone = [entry for entry in left if not (path / entry.folder / "bundle").exists()]
    if gone and not partial:
        raise ReportError(
            f"{path / gone[0].folder / 'bundle'}: is missing, as are {len(gone) - 1:,} other bundles.\n"
            f"  Score the models where they were trained and add the lines of {TESTS}; or give --partial."
        )
    left = [entry for entry in left if entry not in gone]
    with (
        process_group.process_group(),
        progress(f"{grid.study}: test", len(left), say, rows="models") as advance,
    ):
        test = _TestSplits(path, folders)
        for entry in left:
            auc, loss, rows = _score(path / entry.folder / "bundle", test.of(entry, lines[entry.key]))
            tests.add([{"key": entry.key, "test_auc": auc, "test_logloss": loss, "rows": rows}])
            advance(1, 1)
    say(f"{len(tests.read()):,} models are scored in {path / TESTS}")


def read_grid(path: Path) -> GridFile:
    """Returns the content of grid.json in the folder of a study.

    Raises:
        ReportError: There is none, or it is damaged.
    """
    try:
        return GridFile.model_validate(read_json(path / GRID))
    except (OSError, ValueError) as error:
        detail = "damaged" if isinstance(error, ValidationError) else str(error)
        raise ReportError(
            f"{path / GRID}: {detail}; expected the folder of a study.\n"
            f"  `ham-dist study STUDY.toml --out {path}` writes it."
        ) from None


class _TestSplits:
    """The test splits of the study's data; one is held in memory."""

    def __init__(self, path: Path, folders: Mapping[str, str]) -> None:
        self._path, self._folders = path, folders
        self._held: tuple[str, str, Split] | None = None

    def of(self, entry: Entry, line: Line) -> Split:
        """The test split of the data that a branch was trained on."""
        folder = self._folders.get(entry.data, entry.path)
        place = folder.replace("{seed}", str(entry.seed)) if folder else str(self._path / entry.generated)
        if self._held is None or self._held[0] != place:
            manifest = Manifest.load(place)
            split = open_split(place, manifest, "test", DataSettings())
            self._held = place, digest_of(manifest), split
        _, digest, split = self._held
        if digest != line["data"]["digest"]:
            raise DataError(
                f"{place}: holds other data than {entry.folder} was trained on (sha256 {digest[:16]}, "
                f"expected {line['data']['digest'][:16]}).\n"
                f"  Give the folder of that data: --data {entry.data}=DIR"
            )
        return split


@torch.inference_mode()
def _score(bundle: Path, split: Split) -> tuple[float | None, float, int]:
    """AUC, log loss and number of rows of a bundle's model on a split."""
    model = open_bundle(bundle).model()
    batches: Any = split.batches(BATCH, rank=0, world_size=1, order=None, keep_last=True)
    scored = [(model(ids_of(batch)), batch.labels) for batch in batches]
    logits, labels = (torch.cat(parts) for parts in zip(*scored, strict=True))
    loss = functional.binary_cross_entropy_with_logits(logits.double(), labels.double())
    return area_under_roc(logits, labels), float(loss), len(labels)
