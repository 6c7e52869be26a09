"""The groups and branches of a study.

A group is one pretrained supernet: data, model, seed and the settings of pretraining. Its branches are the
searches and retrainings that start from it, one for each arm and target.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ham_dist.config.load import flat, read_toml, settings_of
from ham_dist.config.schema import RetrainSettings, RunSettings, SearchSettings
from ham_dist.config.target import Target
from ham_dist.errors import ConfigError
from ham_dist.io.hashing import sha256_of_json
from ham_dist.study.overrides import leaves, merged, nested
from ham_dist.study.settings import (
    LABEL,
    Arm,
    DataAxis,
    ModelAxis,
    Overrides,
    StudySettings,
    StudyTarget,
    load_study,
)

SUPERNET = "supernet"
"""Arm of the pretrained models themselves."""

DIGITS = 16
"""Hexadecimal digits of a branch's key."""

BRANCH_SECTIONS = ("search.", "retrain.")
"""Settings that a branch may change; all others change pretraining."""
PRETRAINING = ("preset", "validation")
"""Keys of [search] that change pretraining all the same."""
WITHOUT_EFFECT = ("checkpoint.", "ranks.", "data.path", "search.preset")
"""Settings that do not change results; the data is identified by its digest, and a preset by its values."""
OF_THE_STUDY = ("seed", "data.path", "search.targets")
"""Settings of a run that a study sets by keys of its own."""


@dataclass(frozen=True)
class Branch:
    """One search and retraining of a study, or the supernet itself.

    Attributes:
        arm: Label of the arm.
        target: Target size; None for the supernet as pretrained.
        settings: Settings of the whole run. Its target is that of the branch, except for `all`, whose number
            of columns depends on the data. A falling search has all targets of the arm.
    """

    arm: str
    target: StudyTarget | None
    settings: RunSettings

    @property
    def label(self) -> str:
        """Name of the branch within its group, such as `ham-columns-28`."""
        if self.target is None:
            return self.arm
        return f"{self.arm}-{self.target if isinstance(self.target, str) else self.target.label}"

    @property
    def falls(self) -> bool:
        """True if the branch shares one falling search with the other targets of its arm."""
        return self.target is not None and self.settings.search.schedule == "falling"

    def key(self, data: str | None) -> str:
        """The branch's key: 16 digits of the sha256 of everything that repeats it.

        Args:
            data: Digest of the prepared data; None for data that the run generates.
        """
        repeats = determining(self.settings)
        if self.target is None or self.target == "all":
            repeats["search.targets"] = "supernet" if self.target is None else "all"
        value: dict[str, Any] = {"settings": repeats, "data": data}
        if self.falls and isinstance(self.target, Target):
            value["target"] = self.target.label
        return sha256_of_json(value)[:DIGITS]


@dataclass(frozen=True)
class Group:
    """Branches that share one pretrained supernet.

    Attributes:
        label: Name of its folder.
        data: Name of its data.
        model: Label of its model.
        seed: Seed of its run.
        settings: Settings of pretraining; those of search and retraining are defaults.
        branches: Its branches, in the order of the arms.
    """

    label: str
    data: str
    model: str
    seed: int
    settings: RunSettings
    branches: tuple[Branch, ...]


@dataclass(frozen=True)
class Study:
    """A study with its grid.

    Attributes:
        settings: The study's own settings.
        groups: Its groups, by seed, then data, then model.
    """

    settings: StudySettings
    groups: tuple[Group, ...]

    @property
    def branches(self) -> int:
        """Number of branches of all groups."""
        return sum(len(group.branches) for group in self.groups)


def open_study(path: Path, folders: Mapping[str, str] | None = None) -> Study:
    """Returns the study in a TOML file, with its grid. Reads no data.

    Args:
        folders: Folders of data sets by name, which replace those in the file.
    Raises:
        ConfigError: Lists all mistakes in the file and in the settings of its runs.
    """
    return _Expansion(path, load_study(path), dict(folders or {})).study()


def determining(settings: RunSettings) -> dict[str, Any]:
    """The settings that determine a run's results and differ from their defaults, by dotted key.

    Defaults are left out, so that a setting that is added later, with the earlier behavior as its default,
    does not change the keys of finished branches.
    """
    names = {"model": {"name": settings.model.name}, "search": {"method": settings.search.method.name}}
    defaults = flat(RunSettings.model_validate(names))
    generated = settings.data.path is None
    return {
        key: value
        for key, value in flat(settings).items()
        if (value != defaults.get(key) or key in ("model.name", "search.method.name"))
        and not key.startswith(WITHOUT_EFFECT)
        and (generated or not key.startswith("data.synthetic."))
    }


def changes_pretraining(key: str) -> bool:
    """True if the setting `key` of a run changes its pretraining."""
    return not key.startswith(BRANCH_SECTIONS) or key.removeprefix("search.") in PRETRAINING


class _Expansion:
    """The expansion of one study into its groups; collects the mistakes of all runs."""

    def __init__(self, path: Path, study: StudySettings, folders: dict[str, str]) -> None:
        self._path, self._settings, self._folders = path, study, folders
        self._mistakes: dict[str, None] = {}

    def study(self) -> Study:
        """The study.

        Raises:
            ConfigError: Settings of a run are wrong, or no run is left.
        """
        base, where = self._base()
        shared = settings_of(json.loads(json.dumps(base, default=str)), where)
        data = self._settings.data or (_data_of(shared),)
        models = self._settings.models or (ModelAxis(label=shared.model.name),)
        if unknown := sorted(self._folders.keys() - {entry.name for entry in data}):
            raise ConfigError(
                f"--data {unknown[0]}={self._folders[unknown[0]]}: the study has no data of that name. "
                f"It has: {', '.join(entry.name for entry in data)}"
            )
        arms = list(self._arms())
        targets = self._settings.targets or shared.search.targets
        groups: dict[str, Group] = {}
        for seed in self._seeds(data, models, arms):
            for entry, model in itertools.product(data, models):
                if seed in (entry.seeds or (seed,)) and seed in (model.seeds or (seed,)):
                    chosen = [arm for arm in arms if self._takes_part(arm, entry, model, seed)]
                    self._add(groups, base, entry, model, seed, chosen, model.targets or targets)
        if self._mistakes:
            raise ConfigError("\n".join(self._mistakes))
        if not groups:
            raise ConfigError(
                f"{self._path}: no branch is left: seeds, models and data of the arms never occur together. "
                "Check the keys `seeds`, `models`, `data` and `arms` of its entries"
            )
        return Study(self._settings, tuple(groups.values()))

    def _base(self) -> tuple[Overrides, str]:
        """The settings that all runs share, as a tree, and their place for messages."""
        base = self._settings.base
        if isinstance(base, str):
            place = self._path.parent / base
            return read_toml(str(place)), str(place)
        return base, f"{self._path}: base"

    def _arms(self) -> Iterator[Arm]:
        """The arms, with each combination of a grid as an arm of its own."""
        for arm in self._settings.arms:
            axes = list(leaves(arm.grid))
            for key, values in axes:
                if not isinstance(values, list) or not values:
                    self._mistake(
                        f"{self._path}: arms {arm.label!r}: grid.{'.'.join(key)}: must be a list of values"
                    )
                    return
            for values in itertools.product(*(values for _, values in axes)):
                tree, label = arm.set, arm.label
                for (key, _), value in zip(axes, values, strict=True):
                    tree = merged(tree, nested(key, value))
                    label += f",{key[-1]}={re.sub(r'[^A-Za-z0-9._+-]+', '_', json.dumps(value)).strip('_')}"
                yield arm.model_copy(update={"label": label, "set": tree, "grid": {}})

    def _seeds(self, data: tuple[DataAxis, ...], models: tuple[ModelAxis, ...], arms: list[Arm]) -> list[int]:
        """All seeds, those of the study first."""
        axes = [entry.seeds or () for entries in (data, models, arms) for entry in entries]
        return list(dict.fromkeys(itertools.chain(self._settings.seeds, *axes)))

    def _takes_part(self, arm: Arm, data: DataAxis, model: ModelAxis, seed: int) -> bool:
        named = {name.partition(",")[0] for name in model.arms or (arm.label,)}
        seeds = arm.seeds or model.seeds or data.seeds or self._settings.seeds
        return (
            seed in seeds
            and arm.label.partition(",")[0] in named
            and model.label in (arm.models or (model.label,))
            and data.name in (arm.data or (data.name,))
        )

    def _add(
        self,
        groups: dict[str, Group],
        base: Overrides,
        data: DataAxis,
        model: ModelAxis,
        seed: int,
        arms: list[Arm],
        targets: tuple[StudyTarget, ...],
    ) -> None:
        """Add the branches of one seed, data set and model to their groups."""
        for arm in arms:
            tree = base
            for place, entry in (("data", data), ("models", model), ("arms", arm)):
                label = entry.name if isinstance(entry, DataAxis) else entry.label
                self._check_keys(f"{self._path}: {place} {label!r}", entry.set)
                tree = merged(tree, entry.set)
            path = self._folders.get(data.name, data.path)
            tree = merged(tree, {"seed": seed, "data": {"path": path and path.replace("{seed}", str(seed))}})
            if path is None:
                del tree["data"]["path"]
                if data.by_seed:
                    tree = merged(tree, nested(("data", "synthetic", "seed"), seed))
            elif data.by_seed:
                self._mistake(
                    f"{self._path}: data {data.name!r}: by_seed is for generated data, without a path"
                )
            chosen = arm.targets or targets
            falls = tree.get("search", {}).get("schedule") == "falling"
            for target in chosen:
                branch = self._branch(tree, arm.label, target, chosen if falls else (target,))
                if branch is not None:
                    group = _group_of(data, model, seed, branch)
                    held = groups.setdefault(group.label, self._begun(group, arm))
                    if branch.label in {other.label for other in held.branches}:
                        self._mistake(f"{self._path}: arms {arm.label!r}: the target {target} occurs twice")
                    groups[group.label] = replace(held, branches=(*held.branches, branch))

    def _begun(self, group: Group, arm: Arm) -> Group:
        """A new group: empty, or with the branch of its supernet."""
        if not self._settings.supernet:
            return replace(group, branches=())
        own = any(changes_pretraining(".".join(key)) for key, _ in leaves(arm.set))
        return replace(
            group, branches=(Branch(f"{SUPERNET}+{arm.label}" if own else SUPERNET, None, group.settings),)
        )

    def _branch(
        self, tree: Overrides, arm: str, target: StudyTarget, searched: tuple[StudyTarget, ...]
    ) -> Branch | None:
        """A branch with the settings in `tree`, whose search is for the targets `searched`."""
        place = f"{self._path}: arms {arm!r}"
        sizes = [size.model_dump(exclude_none=True) for size in searched if isinstance(size, Target)]
        if len(searched) > len(sizes) > 0 or (len(searched) > 1 and not sizes):
            self._mistake(
                f'{place}: targets: a falling search has no target "all"; give it an arm of its own'
            )
            return None
        if not LABEL.fullmatch(arm):
            self._mistake(f"{place}: must be of letters, digits and . _ , = + -")
            return None
        tree = merged(tree, {"search": {"targets": sizes or [{"columns": 1}]}})
        try:
            return Branch(arm, target, settings_of(tree, place))
        except ConfigError as error:
            self._mistake(str(error))
            return None

    def _check_keys(self, place: str, tree: Overrides) -> None:
        for key, _ in leaves(tree):
            if (name := ".".join(key)) in OF_THE_STUDY:
                self._mistake(
                    f"{place}: {name} cannot be set here; set `seeds`, `data` and `targets` of the study"
                )

    def _mistake(self, line: str) -> None:
        self._mistakes[line] = None


def _data_of(settings: RunSettings) -> DataAxis:
    """The data of the base settings, as an entry of the study."""
    path = settings.data.path
    if path is None:
        return DataAxis(name="synthetic")
    name = re.sub(r"[^A-Za-z0-9._=+-]", "_", Path(path).name).lstrip("._=+-")
    return DataAxis(name=name or "data", path=path)


def _group_of(data: DataAxis, model: ModelAxis, seed: int, branch: Branch) -> Group:
    """The group of a branch, without branches."""
    search = {name: getattr(branch.settings.search, name) for name in PRETRAINING}
    settings = branch.settings.model_copy(
        update={"search": SearchSettings().model_copy(update=search), "retrain": RetrainSettings()}
    )
    digest = sha256_of_json({"settings": determining(settings), "data": data.name})
    label = f"{data.name}-{model.label}-seed-{seed}-{digest[:8]}"
    return Group(label, data.name, model.label, seed, settings, ())
