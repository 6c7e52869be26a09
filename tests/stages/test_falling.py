"""One search for all sizes: each target starts where the search before it ended."""

import json
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from ham_dist.config.schema import RunSettings
from ham_dist.errors import CheckpointError
from ham_dist.run import Watch, branches_of, resolved_targets, run_branches
from ham_dist.stages.branch import RunBranch
from ham_dist.training.auc_bootstrap import aucs
from ham_dist.training.frontier import SizedModel, choose_within, smallest_within
from ham_dist.training.run_paths import RunPaths
from tests.support.ranks import run_on_ranks
from tests.support.small_run import tiny_run
from tests.support.whole_runs import FLOAT64, assert_same_bits, do_part, do_run, metrics, result

TARGETS = ("columns-6", "columns-3")


def falling(**sections: dict[str, object]) -> RunSettings:
    method = {"name": "ham", "alpha_learning_rate": 1e-2, "penalty": 2e-3}
    search = {
        "method": method, "targets": [{"columns": 3}, {"columns": 6}], "schedule": "falling", "epochs": 3,
    }  # fmt: skip
    return tiny_run(search=search, precision=FLOAT64, **sections)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("falling") / "run"
    do_run(falling(), folder)
    return folder


def alphas(folder: Path) -> list[list[float]]:
    return [row["alpha"] for row in metrics(folder) if row["stage"] == "search"]


def test_epochs_are_shared_and_the_mask_is_carried_over(unbroken: Path) -> None:
    first, second = (alphas(unbroken / target) for target in TARGETS)
    assert (len(first), len(second)) == (2, 1), "three epochs in all"
    assert any(value <= 0 for value in first[-1])
    # Twelve steps of one epoch move an alpha by far less than it has moved before: the second search has not
    # started from all alphas = 0.01.
    moved = (torch.tensor(second[0]) - torch.tensor(first[-1])).abs().max()
    anew = (torch.tensor(second[0]) - 0.01).abs().max()
    assert moved < anew
    kept = [result(unbroken / target)["kept_columns"] for target in TARGETS]
    assert [sum(of_target.values()) for of_target in kept] == [6, 3]


def test_a_falling_search_stopped_anywhere_resumes_to_the_same_bits(unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for steps in (24 + 18, 6 + 24 + 6, 6 + 12):  # in the first search, in the second, in retraining
        do_part(falling(), folder, steps)
    do_run(falling(), folder, resume=True)
    for target in TARGETS:
        assert_same_bits(folder / target, unbroken / target)
    assert (folder / "frontier.json").read_bytes() == (unbroken / "frontier.json").read_bytes()


def test_two_ranks_find_the_same_columns_and_frontier(unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_on_ranks(2, do_run, falling(), folder)
    for target in TARGETS:
        assert result(folder / target)["kept_columns"] == result(unbroken / target)["kept_columns"]
    assert (folder / "frontier.json").read_bytes() == (unbroken / "frontier.json").read_bytes()


def test_the_frontier_compares_every_model_with_the_supernet_on_the_same_rows(unbroken: Path) -> None:
    found = json.loads((unbroken / "frontier.json").read_text())
    assert [model["target"] for model in found["models"]] == list(TARGETS)
    supernet = load_file(unbroken / "validation.safetensors")
    for model in found["models"]:
        values = load_file(unbroken / model["target"] / "validation.safetensors")
        assert torch.equal(values["labels"], supernet["labels"])
        scores = torch.stack([values["logits"], supernet["logits"]]).double().numpy()
        auc, of_supernet = aucs(scores, values["labels"].numpy())
        assert model["validation_auc"] == auc
        assert model["difference"] == pytest.approx(auc - of_supernet, abs=1e-15)
        of_run = result(unbroken / model["target"])
        assert auc == pytest.approx(of_run["validation_auc"], abs=1e-6)
        assert model["standard_error"] > 0
        assert model["within"] == (model["difference"] >= -0.0005)


def point(target: str, size: int, difference: float) -> SizedModel:
    return SizedModel(target, 1, size, 0.8, difference, 0.001, difference >= -0.0005)


def test_the_smallest_model_within_the_tolerance() -> None:
    points = [point("a", 30, 0.001), point("b", 20, -0.0004), point("c", 10, -0.002)]
    assert smallest_within(points, 0.0005) is points[1]
    assert smallest_within(points, 0.01) is points[2]
    assert smallest_within(points[2:], 0.0005) is None


def test_export_takes_the_model_within_a_tolerance(unbroken: Path, tmp_path: Path) -> None:
    folder = RunPaths(unbroken)
    assert choose_within(folder, 1.0) == "columns-3"
    with pytest.raises(CheckpointError, match=r"no frontier\.json"):
        choose_within(RunPaths(unbroken / "columns-3"), 1.0)
    damaged = tmp_path / "frontier.json"
    damaged.write_text('{"models": [1]}')
    with pytest.raises(CheckpointError, match="damaged"):
        choose_within(RunPaths(tmp_path), 1.0)
    worse = [{**json.loads(json.dumps(vars(point("a", 1, -0.5))))}]
    damaged.write_text(json.dumps({"models": worse}))
    with pytest.raises(CheckpointError, match=r"every model .* loses more.*a -0.50000"):
        choose_within(RunPaths(tmp_path), 0.1)


class Continues(Watch):
    """Collects the errors of branches, and goes to the next branch."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def failed(self, branch: RunBranch, error: Exception) -> None:
        self.errors.append(str(error))


def test_nothing_starts_from_the_search_of_a_branch_that_failed(tmp_path: Path) -> None:
    settings = resolved_targets(falling())
    watch = Continues()

    def fail(*arguments: object, **keywords: object) -> None:
        raise ValueError("retraining fails")

    with patch("ham_dist.stages.branch.retrain", fail):
        run_branches(settings, tmp_path / "run", branches_of(settings), resume=False, watch=watch)
    assert watch.errors[0] == "retraining fails"
    assert "columns-6: has not finished" in watch.errors[1]
    assert not (tmp_path / "run" / "columns-3" / "checkpoints").exists()
