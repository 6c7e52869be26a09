"""Retraining with column dropout: its masks, its place in the stage, ranks, and resuming."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from ham_dist.config.load import load_run
from ham_dist.config.schema import RunSettings
from ham_dist.errors import ConfigError
from ham_dist.run import run_stages
from ham_dist.stages import fit
from ham_dist.training.column_dropout import ColumnDropout
from ham_dist.training.evaluation import Quality
from tests.support.ranks import run_on_ranks
from tests.support.small_run import tiny_run
from tests.support.whole_runs import FLOAT64, assert_same_bits, do_part, do_run, metrics, result

STEPS = 12
"""Training steps of one epoch."""


def run_with(retrain: dict[str, Any], **sections: dict[str, Any]) -> RunSettings:
    return tiny_run(
        pretrain={"max_epochs": 1}, search={"method": {"name": "uniform"}}, retrain=retrain, **sections
    )


def retraining(folder: Path) -> list[dict[str, Any]]:
    names = ("epoch", "train_loss", "validation_auc", "validation_logloss", "orthogonality")
    return [{name: row[name] for name in names} for row in metrics(folder) if row["stage"] == "retrain"]


def test_a_mask_drops_each_column_with_the_probability_and_keeps_the_mean() -> None:
    dropout = ColumnDropout(0.3, 10, "retrain", seed=7)
    masks = torch.stack([dropout.mask(50, epoch, step) for epoch in range(10) for step in range(40)])
    assert set(masks.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.7)}
    # The standard error of 20,000 draws is 0.005 for all, and of 400 draws 0.03 for one column.
    assert float(masks.mean()) == pytest.approx(1.0, abs=0.02)
    assert masks.mean(dim=0).tolist() == pytest.approx([1.0] * 50, abs=0.14)
    assert len({tuple(mask.tolist()) for mask in masks}) == 400, "each step has its own mask"


def test_a_mask_depends_on_seed_stage_epoch_and_step_alone() -> None:
    dropout = ColumnDropout(0.5, 10, "retrain", seed=7)
    first = dropout.mask(64, 3, 5)
    torch.rand(3)
    assert torch.equal(dropout.mask(64, 3, 5), first)
    others = [
        dropout.mask(64, 5, 3),
        ColumnDropout(0.5, 10, "pretrain", seed=7).mask(64, 3, 5),
        ColumnDropout(0.5, 10, "retrain", seed=8).mask(64, 3, 5),
    ]
    assert not any(torch.equal(other, first) for other in others)


def test_ranks_that_stop_and_resume_within_the_phase_give_the_unbroken_run(tmp_path: Path) -> None:
    """With coupled L2 of the tables, whose effect a resumed run keeps too."""
    settings = run_with(
        {"column_dropout": 0.3, "column_dropout_epochs": 2, "max_epochs": 1},
        precision=FLOAT64,
        optimizer={"tables_weight_decay": 1e-2},
    )
    do_run(settings, tmp_path / "unbroken")
    run_on_ranks(2, do_part, settings, tmp_path / "run", STEPS + 7)
    within = [path.name for path in (tmp_path / "run" / "checkpoints" / "retrain").iterdir()]
    assert within == ["epoch-0000-step-00000005"]
    do_part(settings, tmp_path / "run", STEPS + 3)
    run_on_ranks(3, do_run, settings, tmp_path / "run", True)
    assert_same_bits(tmp_path / "run", tmp_path / "unbroken")
    rows = [row for row in metrics(tmp_path / "run") if row["stage"] == "retrain"]
    assert [row.get("column_dropout") for row in rows] == [0.3, 0.3, None]


def test_epochs_without_dropout_train_as_plain_retraining_and_dropout_changes_them(tmp_path: Path) -> None:
    phase = {"column_dropout_epochs": 1, "max_epochs": 1}
    do_run(run_with({"max_epochs": 2}), tmp_path / "plain")
    do_run(run_with({**phase, "column_dropout": 0.0}), tmp_path / "zero")
    do_run(run_with({**phase, "column_dropout": 0.3}), tmp_path / "dropout")
    assert retraining(tmp_path / "zero") == retraining(tmp_path / "plain")
    assert (
        retraining(tmp_path / "dropout")[0]["train_loss"] != retraining(tmp_path / "plain")[0]["train_loss"]
    )


def test_early_stopping_begins_with_the_weights_at_the_end_of_the_phase(tmp_path: Path) -> None:
    """The AUC of an epoch within the phase is no best one, and `max_epochs` counts from its end."""
    aucs: Iterator[float] = iter([0.5, 0.9, 0.6, 0.55, 0.4, 0.7])
    settings = run_with({"column_dropout": 0.3, "column_dropout_epochs": 2, "max_epochs": 9, "patience": 2})
    with patch.object(fit, "evaluate", lambda *_: Quality(next(aucs), 0.5)):
        run_stages(settings, tmp_path / "run", resume=False)
    found = result(tmp_path / "run")
    assert found["epochs"] == {"pretrain": 1, "search": 0, "retrain": 4}
    assert found["validation_auc"] == 0.6
    assert next(aucs) == 0.7, "one after the pretraining, one after each epoch of retraining"


def test_a_rate_without_epochs_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"column_dropout = 0.3 has no effect .* set column_dropout_epochs"):
        load_run(None, ["retrain.column_dropout=0.3"])
