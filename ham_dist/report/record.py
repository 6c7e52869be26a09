"""What a run folder says, also of a run that goes on, was killed, or was never finished."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ham_dist.config.schema import RunSettings, Target
from ham_dist.data.format.manifest import FILE_NAME as MANIFEST
from ham_dist.data.format.manifest import Truth
from ham_dist.embedding.table_size import TableSize, read_sizes
from ham_dist.errors import CheckpointError, ReportError
from ham_dist.io.paths import is_local
from ham_dist.io.untrusted import parse_json, read_bytes
from ham_dist.training.run_folder import RunFolder

_DAMAGED = "Copy it again from where the run was made, or leave this run out."


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Supernet(_Part):
    """The pretrained model with all its columns."""

    auc: float | None
    logloss: float
    validation_auc: float | None = None
    embedding_parameters: int
    embedding_bytes: int
    dense_parameters: int


class Result(_Part):
    """result.json, as far as a report shows it."""

    model: str
    method: str
    dataset: str
    seed: int
    kept_columns: dict[str, int]
    test_auc: float | None
    test_auc_undefined: str | None = None
    """Why there is no test AUC; None if there is one."""
    test_logloss: float
    validation_auc: float | None
    embedding_parameters: int
    embedding_bytes: int
    dense_parameters: int
    supernet: Supernet | None = None
    epochs: dict[str, int] = {}
    """By stage."""
    seconds: dict[str, float]
    samples_per_second: dict[str, float | None]
    """None for a stage without training."""
    peak_memory_bytes: int
    """Of the rank that took most."""
    world_size: int
    device: str


class Metrics(_Part):
    """One line of metrics.jsonl. What is missing, or was no finite number, is None."""

    stage: str
    epoch: int
    step: int
    train_loss: float | None = None
    validation_auc: float | None = None
    validation_logloss: float | None = None
    used: int | None = None
    """Columns (or bytes) in use at the epoch's end; below, the fewest and the most within it, and what was aimed at."""
    used_lowest: int | None = None
    used_highest: int | None = None
    target: int | None = None


class Start(_Part):
    """One entry of environment.json: the run was started, or gone on with."""

    time: str
    ham_dist: str
    commit: str | None
    python: str
    versions: dict[str, str]
    device: str
    world_size: int


class RecordedManifest(_Part):
    """What a report shows of the manifest that the run began with."""

    name: str
    truth: Truth | None = None


class DataRecord(_Part):
    """data.json."""

    sha256: str
    """Of the whole manifest, with every shard's own in it: the same for the same data alone."""
    manifest: RecordedManifest


@dataclass(frozen=True)
class TargetRecord:
    """One target of a run.

    result: None where the target is not done.
    sizes:  a table each; none where the target is not done.
    rows:   of metrics.jsonl, pretraining first, which all targets share.
    notes:  what is missing.
    """

    target: Target
    result: Result | None
    sizes: list[TableSize]
    rows: list[Metrics]
    notes: list[str]


@dataclass(frozen=True)
class RunRecord:
    """One run.

    name:   its folder, as the user wrote it.
    label:  as short as tells it from the other runs of a report.
    starts: none where environment.json is missing.
    data:   None for a run that kept no record of its data.
    notes:  what is missing.
    """

    name: str
    label: str
    folder: RunFolder
    settings: RunSettings
    starts: list[Start]
    data: DataRecord | None
    targets: list[TargetRecord]
    notes: list[str] = field(default_factory=list)

    @property
    def data_folder(self) -> str:
        """Where the run's data was."""
        try:
            return str(self.folder.data_folder(self.settings))
        except CheckpointError:
            return self.settings.data.path or str(self.folder.data)

    @property
    def dataset(self) -> str:
        """Name of its data set."""
        return self.data.manifest.name if self.data is not None else Path(self.data_folder).name

    @property
    def truth(self) -> Truth | None:
        """What is known of generated data."""
        return self.data.manifest.truth if self.data is not None else None


def read_runs(names: Sequence[str]) -> list[RunRecord]:
    """The runs in folders `names`.

    raises: ReportError if one is no run folder, is there twice, or holds a damaged file; ConfigError or CheckpointError for a run.toml that
            is damaged or was changed.
    """
    seen: list[Path] = []
    for name in names:
        if not is_local(name):
            raise ReportError(f"{name}: a report is made of run folders on this machine. Copy it to one")
        if Path(name).resolve() in seen:
            raise ReportError(f"{name}: is given twice. Give each run once")
        seen.append(Path(name).resolve())
    labels = [path.name for path in seen]
    return [
        _read_run(name, label if labels.count(label) == 1 else name)
        for name, label in zip(names, labels, strict=True)
    ]


def _read_run(name: str, label: str) -> RunRecord:
    folder = RunFolder(name)
    if not folder.is_run:
        raise ReportError(_no_run(folder.path))
    settings = folder.read_settings()
    starts = _read(folder.environment, list[Start]) or []
    data = _read(folder.data_record, DataRecord)
    notes = [] if starts else [f"{folder.environment.name} is missing: versions and device are not known."]
    if data is None:
        notes.append(f"{folder.data_record.name} is missing: which data the run began with is not known.")
    targets = settings.search.targets
    records = [_read_target(target, folder.of_target(target, targets), folder) for target in targets]
    return RunRecord(name, label, folder, settings, starts, data, records, notes)


def _no_run(path: Path) -> str:
    if not path.exists():
        return f"{path}: there is no such folder"
    if not path.is_dir():
        return f"{path}: is a file, and a report is of run folders. Give the folder of a run"
    if (path / MANIFEST).exists():
        return f"{path}: is prepared data or a bundle, and a report is of runs. `ham-dist inspect {path}` says what it holds"
    return f"{path}: is no run folder (it has no identity.json, environment.json or checkpoints). `ham-dist train --run-dir {path}` makes one"


def _read_target(target: Target, folder: RunFolder, run: RunFolder) -> TargetRecord:
    notes: list[str] = []
    result = read_result(folder)
    sizes = _read_sizes(folder.sizes)
    rows = _read_metrics(folder.metrics, notes)
    # A run of several targets has its pretraining in its own folder; `run` may be one of its targets, given alone.
    whole = folder.whole() if folder is run else run
    if whole is not None:
        rows = [row for row in _read_metrics(whole.metrics, notes) if row.stage == "pretrain"] + rows
    if result is None:
        reached = (
            f"the last line of its metrics is of {rows[-1].stage}, epoch {rows[-1].epoch}"
            if rows
            else "it has no metrics yet"
        )
        mend = f"ham-dist train --resume --run-dir {shlex.quote(str((whole or folder).path))}"
        # Of a run that still goes on, a last line cut off is one being written.
        notes = [f"Not done so far: {reached}; if it no longer runs, `{mend}` goes on with it."]
    if result is not None and result.test_auc is None:
        notes.append(f"The test AUC is not defined: {result.test_auc_undefined or 'no reason is recorded'}.")
    if result is not None and not sizes:
        notes.append(f"{folder.sizes.name} is missing: what each field keeps is known by number alone.")
    return TargetRecord(target, result, sizes, rows, notes)


def read_result(folder: RunFolder) -> Result | None:
    """What a run, or one target of it, ended with; None where it is not done.

    raises: ReportError if the file is damaged.
    """
    result: Result | None = _read(folder.result, Result)
    return result


def _read_sizes(path: Path) -> list[TableSize]:
    """The tables in sizes.json, as this or an earlier version wrote it; none if there is no such file."""
    try:
        return read_sizes(path) if path.exists() else []
    except CheckpointError as error:
        raise ReportError(str(error)) from None


def _read_metrics(path: Path, notes: list[str]) -> list[Metrics]:
    """Its lines. One that is half-written at the end is left out, and said in `notes`."""
    if not path.exists():
        return []
    *lines, rest = _content(path).split(b"\n")
    if rest:
        notes.append(f"The last line of {path.name} was cut off, and is left out.")
    return [_parse(f"{path}, line {number}", line, Metrics) for number, line in enumerate(lines, start=1)]


def _read(path: Path, kind: Any) -> Any:
    """What is in a JSON file; None where there is none."""
    return _parse(str(path), _content(path), kind) if path.exists() else None


def _content(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: cannot be read: {error}\n  {_DAMAGED}") from None


def _parse(place: str, text: bytes, kind: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(parse_json(text))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ReportError(
            f"{place}: is damaged: {f'{where}: ' if where else ''}{first['msg']}\n  {_DAMAGED}"
        ) from None
    except ValueError as error:
        raise ReportError(f"{place}: is damaged: {error}\n  {_DAMAGED}") from None
