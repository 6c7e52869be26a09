"""Retraining under labels that the pretrained supernet softens, also on other ranks and resumed."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from ham_dist.data.reader.batch import Batch
from ham_dist.stages import branch
from ham_dist.stages.search import search
from ham_dist.training.distillation import Teacher
from ham_dist.training.state import TrainingState
from tests.support.ranks import run_on_ranks
from tests.support.small_run import tiny_run
from tests.support.whole_runs import FLOAT64, assert_same_bits, do_part, do_run, metrics

STEPS = 12
"""Training steps of one epoch."""


def weights_of(state: TrainingState) -> torch.Tensor:
    tables = [local.values for local in state.sharded.local.values()]
    return torch.cat([values.double().flatten() for values in (*tables, *state.interaction.parameters())])


def test_the_teacher_is_the_pretrained_supernet_on_any_ranks_and_after_resuming(tmp_path: Path) -> None:
    settings = tiny_run(
        precision=FLOAT64,
        pretrain={"max_epochs": 1},
        search={"epochs": 1},
        retrain={"distillation": 0.5, "max_epochs": 1},
    )
    pretrained: list[torch.Tensor] = []
    teachers: list[torch.Tensor] = []
    softened = Teacher.softened

    def search_and_look(wide: TrainingState, *rest: Any) -> Any:
        pretrained.append(weights_of(wide))
        found = search(wide, *rest)
        assert not torch.equal(weights_of(wide), pretrained[0])
        return found

    def soften_and_look(self: Teacher, batch: Batch) -> Batch:
        assert self.state.sharded.mask.values is None, "all columns are open"
        teachers.append(weights_of(self.state))
        return softened(self, batch)

    with (
        patch.object(branch, "search", search_and_look),
        patch.object(Teacher, "softened", soften_and_look),
    ):
        do_run(settings, tmp_path / "unbroken")
    assert len(teachers) == STEPS
    assert all(torch.equal(teacher, pretrained[0]) for teacher in teachers)
    run_on_ranks(2, do_part, settings, tmp_path / "run", 2 * STEPS + 7)
    run_on_ranks(3, do_run, settings, tmp_path / "run", True)
    assert_same_bits(tmp_path / "run", tmp_path / "unbroken")


def test_it_changes_retraining_and_its_weight_0_asks_no_teacher(tmp_path: Path) -> None:
    rows = {}
    for weight in (0.0, 0.5):
        settings = tiny_run(
            pretrain={"max_epochs": 1},
            search={"method": {"name": "uniform"}},
            retrain={"distillation": weight, "max_epochs": 1},
        )
        with patch.object(Teacher, "softened", autospec=True, side_effect=Teacher.softened) as calls:
            do_run(settings, tmp_path / str(weight))
        assert calls.call_count == (STEPS if weight else 0)
        rows[weight] = [row for row in metrics(tmp_path / str(weight)) if row["stage"] == "retrain"]
    assert rows[0.0][0]["train_loss"] != rows[0.5][0]["train_loss"]
    assert rows[0.0][0]["validation_auc"] != rows[0.5][0]["validation_auc"]
