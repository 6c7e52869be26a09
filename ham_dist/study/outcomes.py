"""Reading the results of a study: results.jsonl, and tests.jsonl once its models were tested."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from ham_dist.config.units import size_text
from ham_dist.errors import ReportError
from ham_dist.io.untrusted import read_json
from ham_dist.study.folder import GRID
from ham_dist.study.results import RESULTS, TESTS, Line, Lines

Measure = Literal["test", "validation"]
Repetition = tuple[int | None, int]
"""The seed of the data and the seed of the run. Arms are compared within a repetition."""
Place = tuple[str, str]
"""Data and model: only within a place are results compared."""


class _Recorded(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class DataOfOutcome(_Recorded):
    """The data of a branch."""

    name: str
    digest: str | None = None
    """sha256 that identifies the prepared data."""
    seed: int | None = None
    """Seed with which the data was prepared or generated."""


class Outcome(_Recorded):
    """The part of a line of results.jsonl that a report shows, with its line of tests.jsonl.

    A number that is not finite is read as None.
    """

    key: str
    """Identifies everything that repeats the branch."""
    group: str = ""
    """The pretrained supernet that the branch shares with others."""
    arm: str
    model: str
    data: DataOfOutcome
    seed: int
    target: dict[str, int] | Literal["all"] | None = None
    """Target in columns or bytes; `all` keeps every column; None is the supernet as pretrained."""
    method: dict[str, Any] | None = None
    settings: dict[str, Any] = {}
    kept_columns: dict[str, int] | None = None
    columns: int | None = None
    embedding_bytes: int | None = None
    embedding_parameters: int | None = None
    stored_bytes: int | dict[str, int] | None = None
    """Bytes in a sparse form, or in several forms by name, of a method that leaves zeros in the tables."""
    dense_parameters: int | None = None
    validation_auc: float | None = None
    validation_logloss: float | None = None
    epochs: dict[str, int] | None = None
    weight_steps: int | None = None
    seconds: dict[str, float | None] | None = None
    versions: dict[str, str] = {}
    commit: str | None = None
    host: str | None = None
    error: str | None = None
    """Why the branch failed; None if it did not."""
    tested: bool = Field(default=False, exclude=True)
    """True if tests.jsonl has a line for the branch."""
    test_auc: float | None = None
    test_logloss: float | None = None

    @field_validator("validation_auc", "validation_logloss", "test_auc", "test_logloss")
    @classmethod
    def _finite(cls, value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    @property
    def place(self) -> Place:
        """Data and model."""
        return self.data.name, self.model

    @property
    def repetition(self) -> Repetition:
        """The seeds of data and run."""
        return self.data.seed, self.seed

    @property
    def size(self) -> "Size":
        """Target size."""
        match self.target:
            case {"columns": int(count)}:
                return Size("columns", count)
            case {"bytes": int(count)}:
                return Size("bytes", count)
        return Size("all" if self.target == "all" else "supernet", 0)

    @property
    def counted_bytes(self) -> int | None:
        """Bytes that the tables need: those of the smallest sparse form if there is one."""
        match self.stored_bytes:
            case int(count):
                return count
            case dict(forms) if forms:
                return min(forms.values())
        return self.embedding_bytes

    def auc(self, measure: Measure) -> float | None:
        """The AUC on a split; None if the branch failed or was not tested."""
        if self.error is not None:
            return None
        return self.test_auc if measure == "test" else self.validation_auc

    def failed(self, measure: Measure) -> bool:
        """True if the branch ended with an error, or without a finite AUC."""
        if self.error is not None or self.validation_auc is None:
            return True
        return measure == "test" and self.tested and self.test_auc is None

    @property
    def all_seconds(self) -> float | None:
        """Time of all stages, pretraining included; None if unknown."""
        known = [value for value in (self.seconds or {}).values() if value is not None]
        return math.fsum(known) if known else None


@dataclass(frozen=True)
class Size:
    """A target size.

    Attributes:
        unit: `columns` or `bytes`; `all` for all columns with further training, `supernet` for all columns as
            pretrained.
        count: Columns or bytes; 0 for all columns.
    """

    unit: Literal["columns", "bytes", "all", "supernet"]
    count: int

    @property
    def label(self) -> str:
        """The size for readers."""
        if self.unit == "columns":
            return f"{self.count:,}"
        if self.unit == "bytes":
            return size_text(self.count)
        return "all" if self.unit == "all" else "all, pretrained"

    @property
    def is_budget(self) -> bool:
        """True for a number of columns or bytes."""
        return self.unit in ("columns", "bytes")

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: columns, then bytes, then all columns."""
        return ("columns", "bytes", "all", "supernet").index(self.unit), self.count


@dataclass(frozen=True)
class Results:
    """The results of a study, one outcome per key.

    Attributes:
        study: Name of the study.
        outcomes: In the order of results.jsonl; failed branches have an error.
        measure: `test` as soon as a branch was tested, else `validation`.
        notes: What is incomplete or cannot be compared.
        folders: Run folders of the branches by key; those that were not moved elsewhere exist.
    """

    study: str
    outcomes: list[Outcome]
    measure: Measure
    notes: list[str] = field(default_factory=list)
    folders: Mapping[str, Path] = field(default_factory=dict)

    @property
    def places(self) -> list[Place]:
        """Data and models, in order of appearance."""
        return list(dict.fromkeys(outcome.place for outcome in self.outcomes))

    def of(self, place: Place) -> list[Outcome]:
        """The outcomes of one data set and model."""
        return [outcome for outcome in self.outcomes if outcome.place == place]


def read_results(folder: Path) -> Results:
    """Returns the results in the folder of a study, which may still be running.

    Raises:
        ReportError: There are no results, or a line is damaged.
    """
    path = folder / RESULTS
    if not path.exists():
        raise ReportError(
            f"{folder}: has no {RESULTS}. Give the folder of a study, in which a branch has finished"
        )
    lines, tests = Lines(path).read(), Lines(folder / TESTS).read()
    outcomes = [_outcome(path, line, tests.get(key)) for key, line in lines.items()]
    if not outcomes:
        raise ReportError(f"{path}: is empty: no branch has finished yet. Wait for the first")
    study = next((str(line["study"]) for line in lines.values() if line.get("study")), folder.name)
    measure: Measure = "test" if tests else "validation"
    _require_distinct(folder, outcomes)
    folders, unfinished = _grid(folder / GRID, lines)
    notes = unfinished + _incomparable(outcomes, measure)
    return Results(study, outcomes, measure, notes, folders)


class _GridBranch(_Recorded):
    key: str
    arm: str
    folder: str


class _GridFile(_Recorded):
    branches: list[_GridBranch]


def _grid(path: Path, done: Mapping[str, Line]) -> tuple[dict[str, Path], list[str]]:
    """The run folders of all branches in grid.json, and a note on those that are not finished."""
    if not path.exists():
        return {}, []
    try:
        branches = _GridFile.model_validate(read_json(path)).branches
    except (OSError, ValueError) as error:
        raise ReportError(
            f"{path}: cannot be read: {str(error).splitlines()[0]}. `ham-dist study STUDY.toml` writes it"
        ) from None
    counts: dict[str, int] = {}
    for branch in branches:
        if branch.key not in done:
            counts[branch.arm] = counts.get(branch.arm, 0) + 1
    folders = {branch.key: path.parent / branch.folder for branch in branches}
    if not counts:
        return folders, []
    arms = ", ".join(f"{arm} {count:,}" for arm, count in counts.items())
    return folders, [
        f"{sum(counts.values()):,} of {len(branches):,} branches are not finished: {arms}. What follows is "
        "preliminary, and a difference that looks significant may not stay so."
    ]


def _outcome(path: Path, line: Line, test: Line | None) -> Outcome:
    values = {**line, "tested": test is not None}
    if test is not None:
        values |= {name: test.get(name) for name in ("test_auc", "test_logloss")}
    if isinstance(values.get("target"), dict):
        values["target"] = {name: count for name, count in values["target"].items() if count is not None}
    try:
        return TypeAdapter(Outcome).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ReportError(
            f"{path}: the line with key {line['key']} is damaged: {f'{place}: ' if place else ''}"
            f"{first['msg']}. Remove it, and run the study again"
        ) from None


def _require_distinct(folder: Path, outcomes: list[Outcome]) -> None:
    """Check that no two branches claim the same arm, size and seed, of which only one could be shown."""
    seen: dict[tuple[Any, ...], Outcome] = {}
    for outcome in outcomes:
        cell = (outcome.place, outcome.arm, outcome.size, outcome.repetition)
        other = seen.setdefault(cell, outcome)
        if other is not outcome:
            raise ReportError(
                f"{folder / RESULTS}: the branches {other.key} and {outcome.key} are both arm "
                f"{outcome.arm!r} of {outcome.model} on {outcome.data.name}, size {outcome.size.label}, seed "
                f"{outcome.seed}, with different settings; expected one. Give the arms different labels, or "
                "move the lines of one of them to another folder"
            )


def _incomparable(outcomes: list[Outcome], measure: Measure) -> list[str]:
    """Notes on results that were not made alike."""
    notes = []
    digests: dict[tuple[str, Repetition], set[str | None]] = {}
    for outcome in outcomes:
        digests.setdefault((outcome.data.name, outcome.repetition), set()).add(outcome.data.digest)
    for (name, (_, seed)), found in digests.items():
        if len(found) > 1:
            notes.append(
                f"{name}, seed {seed}: the arms had {len(found)} different preparations of the data, so they "
                "cannot be compared."
            )
    if len(commits := sorted({outcome.commit or "unknown" for outcome in outcomes})) > 1:
        notes.append(f"The branches ran on {len(commits)} commits: {', '.join(c[:10] for c in commits)}.")
    untested = sum(not outcome.tested and not outcome.failed(measure) for outcome in outcomes)
    if measure == "test" and untested:
        notes.append(f"{untested} finished branches are not tested: `ham-dist study test` tests them.")
    if measure == "validation":
        notes.append(
            "No branch is tested: AUCs are those on validation, by which epochs and settings were chosen. No "
            "claim rests on them."
        )
    return notes
