from pathlib import Path

import pytest

from ham_dist.config.load import load_run
from ham_dist.config.target import Target

RUNS = sorted((Path(__file__).parents[2] / "launch" / "runs").glob("*.toml"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_run_loads_and_is_named_for_its_data_and_model(path: Path) -> None:
    run = load_run(str(path))
    dataset, model = path.stem.split("_")
    assert run.model.name == model
    assert run.data.path is not None
    assert dataset in run.data.path
    assert path.read_text().startswith("# ")


def test_all_models_have_a_run_with_the_papers_targets() -> None:
    runs = [load_run(str(path)) for path in RUNS if path.stem.startswith("movielens_")]
    assert {run.model.name for run in runs} == {"fm", "deepfm", "autoint", "dcnv2"}
    assert {run.search.targets for run in runs} == {
        (Target(columns=14), Target(columns=28), Target(columns=42))
    }
