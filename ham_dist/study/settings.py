"""The settings of a study, a TOML file in launch/studies."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from ham_dist.config.base import Settings
from ham_dist.config.load import read_toml
from ham_dist.config.sections import dotted
from ham_dist.config.target import Target
from ham_dist.errors import ConfigError

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,=+-]*")
"""Pattern of labels, which become parts of folder names."""

Label = Annotated[str, Field(pattern=f"^{LABEL.pattern}$", max_length=80)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Labels = Annotated[tuple[Label, ...], Field(min_length=1)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1)]
Overrides = dict[str, Any]
"""Settings of a run, as a tree of tables."""

StudyTarget = Target | Literal["all"]
Targets = Annotated[tuple[StudyTarget, ...], Field(min_length=1)]
"""Target sizes; `all` keeps every column."""


class DataAxis(Settings):
    """One data set of a study."""

    name: Label
    """Name of the data in labels and results."""
    path: str | None = None
    """Folder of prepared data, relative to the working directory. `{seed}` in it stands for the seed of the
    run: then each seed has its own split. Without a path the data is generated from `data.synthetic`."""
    by_seed: bool = False
    """Generated data: true if the seed of a run is that of its data too, as `data.synthetic.seed`."""
    set: Overrides = {}  # noqa: RUF012 - pydantic copies it
    """Settings of the runs on this data."""
    seeds: Seeds | None = None
    """Seeds of the runs on this data (default: the study's)."""


class ModelAxis(Settings):
    """One model of a study."""

    label: Label
    """Name of the model in labels and results."""
    set: Overrides = {}  # noqa: RUF012
    """Settings of the runs of this model, such as { model.name = "fm" }."""
    targets: Targets | None = None
    """Targets of this model (default: the study's)."""
    seeds: Seeds | None = None
    """Seeds of this model (default: the study's)."""
    arms: Labels | None = None
    """Labels of the arms that this model takes part in (default: all)."""


class Arm(Settings):
    """One arm of the comparison: a method with its options."""

    label: Label
    """Name of the arm in labels and results."""
    set: Overrides = {}  # noqa: RUF012
    """Settings of the arm, such as { search.method.name = "sam", retrain.start = "pretrained" }. A setting
    outside of [search] and [retrain] changes pretraining: the arm then has a supernet of its own."""
    grid: Overrides = {}  # noqa: RUF012
    """Lists of values by setting, such as { search.method.penalty = [1e-5, 5e-5] }: one arm for each
    combination."""
    targets: Targets | None = None
    """Targets of this arm (default: the model's)."""
    models: Labels | None = None
    """Labels of the models that this arm is run with (default: all)."""
    data: Labels | None = None
    """Names of the data that this arm is run with (default: all)."""
    seeds: Seeds | None = None
    """Seeds of this arm (default: the study's)."""


class StudySettings(Settings):
    """A study: the grid of data, models, seeds, arms and targets."""

    name: Label
    """Name of the study in its results."""
    base: str | Overrides
    """Settings that all runs share: the path of a run's TOML file, relative to the study's file, or a section
    [base]."""
    test: bool
    """True if `ham-dist study test` may score the models on the test split. A tuning study never does."""
    supernet: bool = True
    """If true, the supernet of each group is reported too, as an arm called `supernet`."""
    seeds: Seeds = (0,)
    """Seeds of the runs."""
    data: tuple[DataAxis, ...] = ()
    """Data sets (default: the data of `base`)."""
    models: tuple[ModelAxis, ...] = ()
    """Models (default: the model of `base`)."""
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]
    """Arms of the comparison."""
    targets: Targets | None = None
    """Target sizes: { columns = 28 }, { bytes = 1000000 } or "all" (default: those of `base`)."""

    @model_validator(mode="after")
    def _labels_are_consistent(self) -> "StudySettings":
        data, models, arms = (
            [entry.name for entry in self.data],
            [model.label for model in self.models],
            [arm.label for arm in self.arms],
        )
        for axis, labels in (("data", data), ("models", models), ("arms", arms)):
            if twice := sorted({label for label in labels if labels.count(label) > 1}):
                raise ValueError(f"{axis}: {twice[0]!r} occurs twice; give each entry a label of its own")
        if "supernet" in arms:
            raise ValueError("arms: 'supernet' is the label of the pretrained models; choose another label")
        of_entries = [entry.targets for entry in self.models] + [arm.targets for arm in self.arms]
        if any(
            not isinstance(target, str) and target.ladder is not None
            for targets in (self.targets, *of_entries)
            for target in targets or ()
        ):
            raise ValueError('targets: a study has no ladders; give { columns = N }, { bytes = N } or "all"')
        for model in self.models:
            _require_known(f"models {model.label!r}: arms", model.arms, arms)
        for arm in self.arms:
            _require_known(f"arms {arm.label!r}: models", arm.models, models)
            _require_known(f"arms {arm.label!r}: data", arm.data, data)
        return self


def _require_known(place: str, labels: Iterable[str] | None, known: Iterable[str]) -> None:
    if unknown := sorted(set(labels or ()) - set(known)):
        raise ValueError(f"{place} has {unknown[0]!r}, which is none of {', '.join(known) or 'none given'}")


def load_study(path: Path) -> StudySettings:
    """Returns the settings in the file of a study.

    Raises:
        ConfigError: Lists all mistakes in the file.
    """
    tree = read_toml(str(path))
    try:
        # As JSON, because pydantic's strict mode accepts a list for a tuple only there.
        return StudySettings.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise ConfigError(
            "\n".join(dict.fromkeys(_describe(path, problem) for problem in problems))
        ) from None


def _describe(path: Path, problem: Mapping[str, Any]) -> str:
    """One mistake found by pydantic, with the description of its key."""
    # pydantic adds the names of a union's members to the place.
    place = [part for part in problem["loc"] if isinstance(part, int) or part.isidentifier()]
    place = [part for part in place if part not in ("str", "dict", "Target", "literal")]
    key, kind = dotted(place), problem["type"]
    section, field = _section(place)
    if kind == "extra_forbidden":
        known = ", ".join(section.model_fields)
        return f"{path}: {key}: no such key. {dotted(place[:-1]) or 'A study'} has: {known}"
    if kind == "missing":
        advice = f"\n  {section.model_fields[field].description}" if field in section.model_fields else ""
        return f"{path}: {key}: is missing; set it.{advice}"
    message = str(problem["msg"]).removeprefix("Value error, ").replace("Input should", "must")
    if kind == "value_error":
        return f"{path}: {f'{key}: ' if key else ''}{message}"
    got = json.dumps(problem["input"], default=str, ensure_ascii=False)
    described = f"{path}: {key} = {got if len(got) <= 80 else got[:77] + '...'}: {message}"
    if field in section.model_fields and (description := section.model_fields[field].description):
        described += f"\n  {description}"
    return described


_SECTIONS: Mapping[str, type[BaseModel]] = {"data": DataAxis, "models": ModelAxis, "arms": Arm}


def _section(place: list[Any]) -> tuple[type[BaseModel], str]:
    """The class of the section with the key at `place`, and the key's name."""
    names = [part for part in place if isinstance(part, str)]
    if "targets" in names[:-1]:
        return Target, names[-1]
    if len(names) > 1 and names[0] in _SECTIONS:
        return _SECTIONS[names[0]], names[1]
    return StudySettings, names[0] if names else ""
