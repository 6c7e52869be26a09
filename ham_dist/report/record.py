"""Reading run folders for a report; a run may be finished, running or killed."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ham_dist.config.schema import RunSettings
from ham_dist.config.target import Target
from ham_dist.data.format.manifest import FILE_NAME as MANIFEST
from ham_dist.data.format.manifest import Truth
from ham_dist.embedding.table_size import TableSize, read_sizes
from ham_dist.errors import CheckpointError, ReportError
from ham_dist.io.paths import is_local
from ham_dist.io.untrusted import parse_json, read_bytes
from ham_dist.training.frontier import SizedModel, read_frontier
from ham_dist.training.run_folder import RunFolder

_DAMAGED = "Copy it again from where the run was made, or leave this run out."


class _Recorded(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Supernet(_Recorded):
    """The pretrained model with all its columns."""

    auc: float | None
    logloss: float | None
    validation_auc: float | None = None
    embedding_parameters: int
    embedding_bytes: int
    dense_parameters: int


class Result(_Recorded):
    """The part of result.json that a report shows."""

    model: str
    method: str
    dataset: str
    seed: int
    kept_columns: dict[str, int]
    test_auc: float | None
    test_auc_undefined: str | None = None
    """Why there is no test AUC; None if there is one."""
    test_logloss: float | None
    validation_auc: float | None
    embedding_parameters: int
    embedding_bytes: int
    dense_parameters: int
    supernet: Supernet | None = None
    epochs: dict[str, int] = {}
    """Epochs by stage."""
    seconds: dict[str, float]
    samples_per_second: dict[str, float | None]
    """Samples per second by stage; None for a stage without training."""
    peak_memory_bytes: int
    """Peak memory of the rank that used most."""
    world_size: int
    device: str


class Metrics(_Recorded):
    """One line of metrics.jsonl. A value that is missing, or was not finite, is None."""

    stage: str
    epoch: int
    step: int
    train_loss: float | None = None
    validation_auc: float | None = None
    validation_logloss: float | None = None
    used: int | None = None
    """Columns (or bytes) in use at the end of the epoch."""
    used_lowest: int | None = None
    """Fewest columns (or bytes) in use within the epoch."""
    used_highest: int | None = None
    """Most columns (or bytes) in use within the epoch."""
    target: int | None = None
    """Target of the search, in columns (or bytes)."""


class TracePoint(_Recorded):
    """One line of search.jsonl: the search after one of its steps."""

    step: int
    """Step of the search, from 0, over all its epochs."""
    used: int
    """Columns (or bytes) in use."""
    target: int
    """Target of the search, in columns (or bytes)."""
    open: str
    """One digit for each column under search: 1 if its factor is above 0."""
    name: str
    """Name of the method's numbers, such as `alpha`."""
    values: list[float | None]
    """The method's number of each column."""


class Start(_Recorded):
    """One entry of environment.json: a start of the run, the first or a resumed one."""

    time: str
    ham_dist: str
    commit: str | None
    python: str
    versions: dict[str, str]
    device: str
    world_size: int


class RecordedManifest(_Recorded):
    """The part of the data's manifest that a report shows."""

    name: str
    truth: Truth | None = None


class DataRecord(_Recorded):
    """The part of data.json that a report shows."""

    sha256: str
    """sha256 of the whole manifest, with the sha256 of every shard; identifies the data."""
    manifest: RecordedManifest


@dataclass(frozen=True)
class TargetRecord:
    """One target of a run.

    Attributes:
        target: The target.
        result: Its result; None if it is not finished.
        sizes: Sizes of its tables; empty if it is not finished.
        rows: Lines of metrics.jsonl; first those of pretraining, which all targets share.
        notes: Notes on missing parts.
        trace: Lines of search.jsonl; empty without a search, and for runs of earlier versions.
    """

    target: Target
    result: Result | None
    sizes: list[TableSize]
    rows: list[Metrics]
    notes: list[str]
    trace: list[TracePoint] = field(default_factory=list)


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        name: Its folder, as the user wrote it.
        label: Shortest name that distinguishes it from the other runs of a report.
        folder: Its folder.
        settings: Its settings.
        starts: Its starts; empty if environment.json is missing.
        data: The record of its data; None if the run has none.
        targets: Its targets.
        notes: Notes on missing parts.
        frontier: Its models by size, if it has several targets and has ended.
    """

    name: str
    label: str
    folder: RunFolder
    settings: RunSettings
    starts: list[Start]
    data: DataRecord | None
    targets: list[TargetRecord]
    notes: list[str] = field(default_factory=list)
    frontier: list[SizedModel] = field(default_factory=list)

    @property
    def data_folder(self) -> str:
        """Folder of the run's data."""
        try:
            return str(self.folder.data_folder(self.settings))
        except CheckpointError:
            return self.settings.data.path or str(self.folder.data)

    @property
    def dataset(self) -> str:
        """Name of the run's data set."""
        return self.data.manifest.name if self.data is not None else Path(self.data_folder).name

    @property
    def truth(self) -> Truth | None:
        """The truth about generated data; None for other data."""
        return self.data.manifest.truth if self.data is not None else None


def read_runs(names: Sequence[str]) -> list[RunRecord]:
    """Returns the records of the runs in the folders `names`.

    Raises:
        ReportError: A folder is not a run folder, is given twice, or holds a damaged file.
        ConfigError: A run.toml cannot be read.
        CheckpointError: A run.toml was changed.
    """
    seen: list[Path] = []
    for name in names:
        if not is_local(name):
            raise ReportError(
                f"{name}: reports read only run folders on this machine. Copy it to this machine"
            )
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
    notes = [] if starts else [f"{folder.environment.name} is missing: versions and device are unknown."]
    if data is None:
        notes.append(f"{folder.data_record.name} is missing: the data that the run began with is unknown.")
    targets = settings.search.targets
    records = [_read_target(target, folder.of_target(target, targets), folder) for target in targets]
    return RunRecord(name, label, folder, settings, starts, data, records, notes, _frontier(folder, notes))


def _frontier(folder: RunFolder, notes: list[str]) -> list[SizedModel]:
    try:
        return read_frontier(folder)
    except CheckpointError as error:
        notes.append(str(error))
        return []


def _no_run(path: Path) -> str:
    if not path.exists():
        return f"{path}: no such folder"
    if not path.is_dir():
        return f"{path}: is a file, but reports read run folders. Give the folder of a run"
    if (path / MANIFEST).exists():
        return (
            f"{path}: is prepared data or a bundle, but reports read run folders. "
            f"`ham-dist inspect {path}` shows what it holds"
        )
    return (
        f"{path}: is not a run folder (it has no identity.json, environment.json or checkpoints). "
        f"`ham-dist train --run-dir {path}` creates one"
    )


def _read_target(target: Target, folder: RunFolder, run: RunFolder) -> TargetRecord:
    notes: list[str] = []
    result = read_result(folder)
    sizes = _read_sizes(folder.sizes)
    rows: list[Metrics] = read_lines(folder.metrics, Metrics, notes)
    trace: list[TracePoint] = read_lines(folder.search_trace, TracePoint, notes)
    # A run of several targets has its pretraining in its own folder; `run` may be one of its targets, given
    # alone.
    whole = folder.whole() if folder is run else run
    if whole is not None:
        shared: list[Metrics] = read_lines(whole.metrics, Metrics, notes)
        rows = [row for row in shared if row.stage == "pretrain"] + rows
    if result is None:
        reached = (
            f"the last line of its metrics is for {rows[-1].stage}, epoch {rows[-1].epoch}"
            if rows
            else "it has no metrics yet"
        )
        command = f"ham-dist train --resume --run-dir {shlex.quote(str((whole or folder).path))}"
        # In a running run, an incomplete last line is one that is being written, so it gets no note.
        notes = [f"Not finished: {reached}. If it no longer runs, resume it with `{command}`."]
    if result is not None and result.test_auc is None:
        notes.append(f"The test AUC is not defined: {result.test_auc_undefined or 'no reason is recorded'}.")
    if result is not None and not sizes:
        notes.append(f"{folder.sizes.name} is missing: only the number of columns of each field is known.")
    return TargetRecord(target, result, sizes, rows, notes, trace)


def read_result(folder: RunFolder) -> Result | None:
    """Returns the result of a run or of one of its targets; None if it is not finished.

    Raises:
        ReportError: The file is damaged.
    """
    result: Result | None = _read(folder.result, Result)
    return result


def _read_sizes(path: Path) -> list[TableSize]:
    """The tables in sizes.json, as this or an earlier version wrote it; none if there is no such file."""
    try:
        return read_sizes(path) if path.exists() else []
    except CheckpointError as error:
        raise ReportError(str(error)) from None


def read_lines(path: Path, kind: type[_Recorded], notes: list[str]) -> list[Any]:
    """Returns the lines of a .jsonl file, without an incomplete last one, for which `notes` gets a note.

    Raises:
        ReportError: The file is damaged.
    """
    if not path.exists():
        return []
    *lines, rest = _content(path).split(b"\n")
    if rest:
        notes.append(f"The last line of {path.name} is incomplete and left out.")
    return [_parse(f"{path}, line {number}", line, kind) for number, line in enumerate(lines, start=1)]


def _read(path: Path, kind: Any) -> Any:
    """The content of a JSON file; None if there is no file."""
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
