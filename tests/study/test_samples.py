"""launch/studies/samples.toml: every method on samples of Criteo's and Avazu's logs, on two ranks."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.recipe.load import load_recipe
from ham_dist.methods.registry import METHODS
from ham_dist.run import run_branches
from ham_dist.study.folder import StudyFolder
from ham_dist.study.grid import Study, open_study
from ham_dist.study.worker import _branch_of
from tests.support.ranks import run_on_ranks
from tests.support.raw_logs import raw_logs
from tests.support.real_data import ROOT
from tests.support.whole_runs import Stopped, after_steps

STUDY = ROOT / "launch" / "studies" / "samples.toml"
RECIPES = {"criteo": "criteo-kaggle", "avazu": "avazu"}
WITHOUT_TARGET = {"pep"}


@pytest.fixture(scope="module", params=RECIPES)
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    recipe = RECIPES[request.param]
    raw, _ = raw_logs(recipe, folder / "raw")
    prepare(load_recipe(recipe), raw, folder / "data")
    return request.param, folder / "data"


def opened(folders: dict[str, str]) -> Study:
    """The study, with its data sets that are in `folders` only."""
    study = open_study(STUDY, folders)
    return Study(study.settings, tuple(group for group in study.groups if group.data in folders))


def run_groups(out: Path, folders: dict[str, str], stop_after: int | None = None) -> None:
    """Runs or resumes all groups on these ranks; with `stop_after`, ended in that training step."""
    folder = StudyFolder(out, opened(folders))
    for group in folder.study.groups:
        branches = [_branch_of(keyed) for keyed in folder.branches(group)]
        place = folder.group_folder(group).path
        if stop_after is None:
            run_branches(group.settings, place, branches, resume=True, test=False)
        else:
            with after_steps(stop_after), pytest.raises(Stopped):
                run_branches(group.settings, place, branches, resume=True, test=False)


def results(out: Path, folders: dict[str, str]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Target and result of each finished branch, by label."""
    folder = StudyFolder(out, opened(folders))
    return {
        keyed.branch.label: (keyed.branch, json.loads(path.read_text()))
        for keyed in folder.branches()
        if (path := folder.branch_folder(keyed).result).exists()
    }


def test_every_method_runs_on_two_ranks_stopped_once_and_resumed(
    data: tuple[str, Path], tmp_path: Path
) -> None:
    folders = {data[0]: str(data[1])}
    run_on_ranks(2, run_groups, tmp_path, folders, 30)
    begun = results(tmp_path, folders)
    run_on_ranks(2, run_groups, tmp_path, folders)
    found = results(tmp_path, folders)
    assert 0 < len(begun) < len(found) == 2 * len(METHODS)
    assert {branch.settings.search.method.name for branch, _ in found.values()} == METHODS.keys()
    assert all(found[label][1] == result for label, (_, result) in begun.items()), "are not run again"
    for label, (branch, result) in found.items():
        name, target = branch.settings.search.method.name, branch.target
        assert math.isfinite(result["validation_logloss"]), label
        assert result["world_size"] == 2
        if target.bytes is not None:
            assert result["embedding_bytes"] <= target.bytes, label
        elif METHODS[name].chooses_bands:
            assert sum(result["kept_columns"].values()) <= target.columns, label
        elif name not in WITHOUT_TARGET:
            assert sum(result["kept_columns"].values()) == target.columns, label
