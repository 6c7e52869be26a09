"""Checks between forward and backward pass: a loss that is not finite, and warnings."""

from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.config.schema import RunSettings
from ham_dist.data.reader.batch import Batch
from ham_dist.distributed.ranks import process_group
from ham_dist.errors import DivergedError
from ham_dist.training.checkpoints import StageCheckpoints
from ham_dist.training.guard import FIELD_STEPS, SPIKE, STEPS_BEHIND, USUAL_STEPS, Guard, StepLoss
from ham_dist.training.loop import weight_step
from ham_dist.training.progress import StageProgress
from ham_dist.training.run_folder import RunFolder
from ham_dist.training.run_log import RunLog
from ham_dist.training.state import TrainingState, open_supernet
from ham_dist.training.stopping import EarlyStopper
from tests.support.plain_model import FIELDS
from tests.support.ranks import run_on_ranks
from tests.support.sharded_model import local_batch, settings


class NoCheckpoints:
    """Wishes for none."""

    def wishes(self, progress: StageProgress) -> tuple[bool, bool]:
        return False, False

    def after_step(self, progress: StageProgress, *, wanted: bool, stop: bool) -> None:
        assert (wanted, stop) == (False, False)


def open_guard(state: TrainingState, folder: Path) -> tuple[Guard, RunLog]:
    log = RunLog(RunFolder(folder), is_first=process_group.rank() == 0)
    return Guard(
        "pretrain",
        state.sharded,
        StageProgress(EarlyStopper(2)),
        cast(StageCheckpoints, NoCheckpoints()),
        log,
    ), log


def weights(state: TrainingState) -> dict[str, torch.Tensor]:
    """This rank's weights and optimizer state, without BatchNorm's statistics, which a forward changes."""
    own: dict[str, torch.Tensor] = {
        name: values.detach().clone() for name, values in state.interaction.named_parameters()
    }
    own |= {
        key: part.values.detach().clone()
        for key, _ in state.sharded.placements()
        if (part := state.sharded.local_table(key)) is not None
    }
    state.optimizers.open_state()
    own |= {
        f"{name}/{key}": values.clone()
        for key, kept in state.optimizers.table_states().items()
        for name, values in kept.items()
    }
    own |= {
        f"{number}/{key}": values.clone()
        for number, kept in enumerate(state.optimizers.adam.state.values())
        for key, values in kept.items()
    }
    return own


def step_on_a_bad_label(run: RunSettings, folder: Path) -> tuple[str, bool]:
    """Two good steps, and one with a NaN label on the last rank.

    Returns the message, and whether all weights are unchanged.
    """
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    guard, log = open_guard(state, folder)
    with log:
        for seed in (0, 1):
            batch = local_batch(seed)
            weight_step(state, batch, guard.check)
            guard.finish_step(batch.global_rows)
        before, bad = weights(state), local_batch(2)
        if process_group.rank() == process_group.world_size() - 1:
            bad.labels[-1] = float("nan")
        with pytest.raises(DivergedError) as caught:
            weight_step(state, bad, guard.check)
    after = weights(state)
    return str(caught.value), before.keys() == after.keys() and all(
        torch.equal(values, after[name]) for name, values in before.items()
    )


@pytest.mark.parametrize("tables", ["adam", "rowwise_adagrad"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_loss_that_is_no_number_stops_all_ranks_before_any_weight_moves(
    tmp_path: Path, ranks: int, tables: str
) -> None:
    run = settings("dcnv2", optimizer={"tables": tables}, orthogonality={"application": "decoupled"})
    for message, unmoved in run_on_ranks(ranks, step_on_a_bad_label, run, tmp_path):
        assert message.startswith(
            "pretrain epoch 0, step 2: the training loss is nan; the step was not finished"
        )
        assert "diverged/pretrain-epoch-0-step-2" in message
        assert unmoved
    parts = [
        load_file(file) for file in sorted((tmp_path / "diverged" / "pretrain-epoch-0-step-2").iterdir())
    ]
    assert len(parts) == ranks
    labels = torch.cat([part["labels"] for part in parts])
    assert len(labels) == 31
    assert labels.isnan().nonzero().flatten().tolist() == [30]
    for field in FIELDS:
        assert (
            sum(int(part[f"{field}.lengths"].sum()) for part in parts)
            == sum(len(part[f"{field}.ids"]) for part in parts)
            > 0
        )


def test_a_batch_that_cannot_be_kept_does_not_hide_why_the_run_ends(tmp_path: Path) -> None:
    (tmp_path / "diverged").write_text("in the way")
    ((message, unmoved),) = run_on_ranks(1, step_on_a_bad_label, settings("dcnv2"), tmp_path)
    assert "the training loss is nan" in message
    assert "could not be saved completely" in message
    assert unmoved


def without(batch: Batch, field: str) -> Batch:
    """`batch` with no value of `field` in any row."""
    features = batch.sparse_features
    parts = {name: (part.values(), part.lengths()) for name, part in features.to_dict().items()}
    parts[field] = (parts[field][0][:0], torch.zeros_like(parts[field][1]))
    values, lengths = (torch.cat([part[number] for part in parts.values()]) for number in (0, 1))
    return Batch(
        KeyedJaggedTensor(list(parts), values, lengths=lengths, stride=features.stride()),
        batch.labels,
        batch.global_rows,
    )


def warnings_of_many_steps(run: RunSettings, folder: Path) -> None:
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    guard, log = open_guard(state, folder)
    with log:
        for step in range(FIELD_STEPS + 20):
            batch = without(local_batch(step % 7), "genres")
            weight_step(state, batch, guard.check)
            guard.finish_step(batch.global_rows)


@pytest.mark.parametrize("tables", ["adam", "rowwise_adagrad"])
def test_a_table_that_no_gradient_reaches_is_told_of_once(tmp_path: Path, tables: str) -> None:
    run = settings("dcnv2", optimizer={"tables": tables}, orthogonality={"application": "decoupled"})
    run_on_ranks(2, warnings_of_many_steps, run, tmp_path)
    (line,) = (tmp_path / "log.txt").read_text().splitlines()
    assert "no gradient has reached the tables of genres in 100 steps" in line


def test_a_loss_far_above_the_usual_one_is_told_of_once(tmp_path: Path) -> None:
    log = RunLog(RunFolder(tmp_path), is_first=True)
    guard = Guard(
        "search",
        cast(Any, None),
        StageProgress(EarlyStopper(2)),
        cast(StageCheckpoints, NoCheckpoints()),
        log,
    )
    with log:
        for step in range(2 * USUAL_STEPS):
            unusual = step in (5, USUAL_STEPS + 30, USUAL_STEPS + 60)
            guard.check(torch.tensor(0.5 * SPIKE * 1.5 if unusual else 0.5), cast(Any, None))
            guard.finish_step(64)
    (line,) = (tmp_path / "log.txt").read_text().splitlines()
    assert (
        f"search epoch 0, step {USUAL_STEPS + 31}: the training loss is 2.25, and the usual loss is 0.5"
        in line
    )


def bad_label_read_a_step_later(run: RunSettings, folder: Path) -> str:
    """A loss is read at the next step, as on a GPU, so the step with the bad label is finished."""
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    guard, log = open_guard(state, folder)
    with log, patch.dict(STEPS_BEHIND, cpu=1):  # restored, as the ranks run other tests later
        for seed in range(3):
            batch = local_batch(seed)
            if seed == 2 and process_group.rank() == process_group.world_size() - 1:
                batch.labels[-1] = float("nan")
            weight_step(state, batch, guard.check)
            guard.finish_step(batch.global_rows)
        with pytest.raises(DivergedError) as caught:
            weight_step(state, local_batch(3), guard.check)
    return str(caught.value)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_loss_read_a_step_later_stops_all_ranks_and_keeps_its_own_batch(tmp_path: Path, ranks: int) -> None:
    for message in run_on_ranks(ranks, bad_label_read_a_step_later, settings("dcnv2"), tmp_path):
        assert message.startswith("pretrain epoch 0, step 2: the training loss is nan; the step was finished")
    parts = [
        load_file(file) for file in sorted((tmp_path / "diverged" / "pretrain-epoch-0-step-2").iterdir())
    ]
    labels = torch.cat([part["labels"] for part in parts])
    assert labels.isnan().nonzero().flatten().tolist() == [30]


class CheckpointEveryThirdStep:
    """Notes the progress that each checkpoint would hold."""

    def __init__(self) -> None:
        self.losses: list[tuple[int, float]] = []

    def wishes(self, progress: StageProgress) -> tuple[bool, bool]:
        return progress.steps % 3 == 2, False

    def after_step(self, progress: StageProgress, *, wanted: bool, stop: bool) -> None:
        if wanted:
            self.losses.append((progress.steps, progress.loss))


def losses_of(
    folder: Path, behind: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[tuple[int, float]], float, str]:
    """The content of checkpoints, the loss of the epoch, and the warnings."""
    monkeypatch.setitem(STEPS_BEHIND, "cpu", behind)
    folder.mkdir()
    log, checkpoints, progress = (
        RunLog(RunFolder(folder), is_first=True),
        CheckpointEveryThirdStep(),
        StageProgress(EarlyStopper(2)),
    )
    guard = Guard("search", cast(Any, None), progress, cast(StageCheckpoints, checkpoints), log)
    with log:
        for step in range(USUAL_STEPS + 32):
            guard.check(
                torch.tensor(0.1 * (step % 7) + (9.0 if step == USUAL_STEPS + 30 else 0.5)), cast(Any, None)
            )
            guard.finish_step(64)
        guard.settle()
    return checkpoints.losses, progress.loss, (folder / "log.txt").read_text()


def test_losses_read_a_step_later_add_up_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, later = (losses_of(tmp_path / str(behind), behind, monkeypatch) for behind in (0, 1))
    assert at_once == later
    assert len(at_once[0]) > 30
    assert f"search epoch 0, step {USUAL_STEPS + 31}: the training loss is" in at_once[2]


def test_a_loss_is_read_after_its_copy_to_the_cpu() -> None:
    class Copy:
        """A CUDA event: the number arrives when it is waited for."""

        def synchronize(self) -> None:
            share.fill_(0.25)

    share = torch.tensor(float("nan"))
    assert StepLoss(share, cast(Any, Copy()), cast(Any, None), 0, 0).read() == 0.25
