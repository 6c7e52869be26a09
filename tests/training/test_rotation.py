"""Rotation to principal axes: the same logits, uncorrelated columns, rotated optimizer state; any ranks."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ham_dist.config.schema import RunSettings
from ham_dist.distributed.ranks.gather import gather_rows
from ham_dist.embedding.mask import as_evaluated
from ham_dist.errors import ConfigError, SlicingError
from ham_dist.models.dcnv2 import DCNV2
from ham_dist.models.registry import INTERACTIONS
from ham_dist.training.axes import check_rotation
from ham_dist.training.covariance import covariances
from ham_dist.training.loop import weight_step
from ham_dist.training.rotation import principal_axes, rotate_state
from ham_dist.training.state import TrainingState, open_supernet
from tests.support.model_settings import model_settings
from tests.support.one_shot import float64_run
from tests.support.plain_model import FIELDS, SINGLE_VALUED
from tests.support.ranks import run_on_ranks
from tests.support.sharded_model import dense_weights, local_batch, settings, whole
from tests.support.small_run import small_run
from tests.support.whole_runs import do_run, result

DIMS = {"user": 8, "gender": 3, "movie": 8, "genres": 8}


def logits(state: TrainingState) -> torch.Tensor:
    with torch.no_grad(), as_evaluated(state.sharded.model):
        return gather_rows(state.logits(local_batch(5)))


def numbers(state: TrainingState) -> dict[str, torch.Tensor]:
    """Tables, dense weights, and the optimizer state of both."""
    state.optimizers.open_state()
    moments = {
        f"{moment}/{name}": values.clone()
        for name, parameter in state.interaction.named_parameters()
        for moment, values in state.optimizers.moments(parameter).items()
    }
    tables = {name: values.clone() for name, values in whole(state).items()}
    return {**tables, **dense_weights(state), **moments}


def rotated(run: RunSettings, steps: int) -> dict[str, Any]:
    """On each rank: everything before and after a rotation that follows some steps on the weights."""
    state = open_supernet(run, FIELDS, torch.device("cpu"), SINGLE_VALUED)
    for seed in range(steps):
        weight_step(state, local_batch(seed))
    pass_over = partial(covariances, state, lambda: iter([local_batch(1), local_batch(2)]), "lookups")
    axes = principal_axes(pass_over())
    before, logits_before = numbers(state), logits(state)
    rotate_state(state, axes)
    return {
        "axes": axes, "before": before, "after": numbers(state), "covariances": pass_over(),
        "logits": (logits_before, logits(state)),
    }  # fmt: skip


@pytest.mark.parametrize(("model", "ranks"), [("fm", 1), ("fm", 3), ("deepfm", 3), ("autoint", 1)])
def test_a_rotated_model_is_the_same_function_on_any_ranks(model: str, ranks: int) -> None:
    """Tables are rounded to float32 once, hence the tolerances."""
    found = run_on_ranks(ranks, rotated, float64_run(model), 2)[0]
    before, after = found["before"], found["after"]
    torch.testing.assert_close(*found["logits"], rtol=0, atol=1e-5)
    for covariance in found["covariances"].values():
        variances = covariance.diagonal()
        np.testing.assert_allclose(covariance, torch.diag(variances), rtol=0, atol=1e-6 * float(variances[0]))
        assert (variances.diff() <= 1e-6 * float(variances[0])).all(), "decreasing"
    axes = {f"tables.ebc/{field}": matrix for field, matrix in found["axes"].items()}
    for table, matrix in axes.items():
        torch.testing.assert_close(matrix.T @ matrix, torch.eye(len(matrix)).double(), rtol=0, atol=1e-12)
        assert not torch.allclose(matrix.abs(), torch.eye(len(matrix)).double(), atol=0.1)
        for name, factor in ((table, matrix), (f"exp_avg/{table}", matrix)):
            wanted = (before[name].double() @ factor).float()
            torch.testing.assert_close(after[name], wanted, rtol=1e-5, atol=1e-7)
        wanted = (before[f"exp_avg_sq/{table}"].double() @ matrix.square()).float()
        torch.testing.assert_close(after[f"exp_avg_sq/{table}"], wanted, rtol=1e-5, atol=1e-12)
    whole_matrix = torch.block_diag(*axes.values())
    lift = "lift.weight"
    torch.testing.assert_close(after[lift], whole_matrix.T @ before[lift])
    torch.testing.assert_close(after[f"exp_avg/{lift}"], whole_matrix.T @ before[f"exp_avg/{lift}"])
    squares = whole_matrix.T.square() @ before[f"exp_avg_sq/{lift}"]
    torch.testing.assert_close(after[f"exp_avg_sq/{lift}"], squares)
    assert (before[f"exp_avg/{lift}"] != 0).any()


def test_ranks_do_not_change_a_rotation() -> None:
    run = float64_run("fm")
    on_one = run_on_ranks(1, rotated, run, 0)[0]
    for on_three in run_on_ranks(3, rotated, run, 0):
        for part in ("axes", "after", "covariances"):
            assert all(torch.equal(on_three[part][name], values) for name, values in on_one[part].items())


def test_a_state_of_one_number_per_row_stays() -> None:
    """Row-wise Adagrad sums squared lengths of gradients, which no rotation changes."""
    run = settings("fm", optimizer={"tables": "rowwise_adagrad"}, orthogonality={"form": "none"})
    found = run_on_ranks(1, rotated, run, 2)[0]
    sums = {name for name in found["before"] if name.startswith("sum/")}
    assert len(sums) == len(DIMS)
    assert all(torch.equal(found["before"][name], found["after"][name]) for name in sums)
    torch.testing.assert_close(*found["logits"], rtol=0, atol=1e-5)


def test_a_model_that_multiplies_columns_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for model in ("fm", "deepfm", "autoint"):
        check_rotation(model_settings(model), DIMS)
    with pytest.raises(ConfigError, match=r'search.rotate = true: model.name = "dcnv2" does not read'):
        check_rotation(model_settings("dcnv2"), DIMS)

    class Declared(DCNV2):
        is_linear_in_columns = True

    monkeypatch.setitem(INTERACTIONS, "dcnv2", Declared)
    with pytest.raises(SlicingError, match=r"logits of Declared change by .* when its columns"):
        check_rotation(model_settings("dcnv2"), DIMS)


def test_a_run_rotates_before_the_search_and_what_it_starts_again_from(tmp_path: Path) -> None:
    run = small_run(
        "fm",
        pretrain={"max_epochs": 1},
        search={"method": {"name": "pca"}, "rotate": True},
        retrain={"max_epochs": 1, "start": "pretrained"},
    )
    do_run(run, tmp_path / "run")
    assert sum(result(tmp_path / "run")["kept_columns"].values()) == 6
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("rotated to their principal axes") == 2
