"""Runs that are stopped within an epoch resume to the results of the uninterrupted run, bit for bit."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import pytest

from ham_dist.config.schema import RunSettings
from ham_dist.errors import Preempted
from ham_dist.methods.ham import HardAuxiliaryMask
from ham_dist.methods.method import MaskLoss
from ham_dist.run import run_stages
from tests.support.ranks import run_on_ranks
from tests.support.small_run import TINY_STEPS, tiny_run
from tests.support.whole_runs import (
    DECOUPLED,
    FLOAT64,
    Stopped,
    after_steps,
    assert_same_bits,
    do_part,
    do_run,
    metrics,
    result,
)


@contextmanager
def counted_alpha_steps() -> Iterator[list[int]]:
    """Inside, the one number of the list counts the steps on alpha."""
    step, count = HardAuxiliaryMask.step, [0]

    def counted(self: HardAuxiliaryMask, loss: MaskLoss) -> None:
        count[0] += 1
        step(self, loss)

    with patch.object(HardAuxiliaryMask, "step", counted):
        yield count


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    do_run(tiny_run(), folder)
    return folder


@pytest.fixture(scope="module")
def unbroken_float64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken64") / "run"
    do_run(tiny_run(precision=FLOAT64), folder)
    return folder


def test_a_run_stopped_within_epochs_of_all_stages_resumes_to_the_same_bits(
    unbroken: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for steps, stage in ((7, "pretrain"), (24, "search"), (16, "search"), (14, "retrain")):
        do_part(tiny_run(), folder, steps)
        within = [path.name for path in (folder / "checkpoints" / stage).iterdir() if "-step-" in path.name]
        assert within, f"the run was to be stopped within {stage}"
    do_run(tiny_run(), folder, resume=True)
    assert result(folder) == result(unbroken)
    assert metrics(folder) == metrics(unbroken)
    assert trace(folder) == trace(unbroken)
    assert_same_bits(folder, unbroken)


def trace(folder: Path) -> list[str]:
    """The lines of search.jsonl: one for each of the 24 steps of the search."""
    lines = (folder / "search.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(24))
    return lines


def test_alpha_steps_that_are_due_every_few_steps_resume_within_an_epoch(tmp_path: Path) -> None:
    settings = tiny_run(search={"method": {"name": "ham", "alpha_every": 5}})
    with counted_alpha_steps() as of_unbroken:
        do_run(settings, tmp_path / "unbroken")
    assert of_unbroken == [2 * 3], "steps 0, 5 and 10 of the 12 of each epoch"
    for steps in (24 + 7, TINY_STEPS):
        with counted_alpha_steps(), after_steps(steps), suppress(Stopped):
            run_stages(settings, tmp_path / "run", resume=True)
    assert_same_bits(tmp_path / "run", tmp_path / "unbroken")


def test_the_exact_mask_and_the_average_of_alpha_resume_on_another_number_of_ranks(tmp_path: Path) -> None:
    method = {"name": "ham", "mask": "top", "average_steps": 6, "cost_aware": True}
    settings = tiny_run(
        precision=FLOAT64,
        pretrain={"max_epochs": 1},
        search={"method": method, "targets": [{"bytes": 400}]},
        retrain={"max_epochs": 1},
    )
    do_run(settings, tmp_path / "unbroken")
    run_on_ranks(2, do_part, settings, tmp_path / "run", 12 + 7)
    run_on_ranks(3, do_run, settings, tmp_path / "run", True)
    assert_same_bits(tmp_path / "run", tmp_path / "unbroken")
    (first, *_) = [row for row in metrics(tmp_path / "run") if row["stage"] == "search"]
    assert first["average"] != first["alpha"]


def test_the_same_ranks_resume_within_an_epoch_to_the_same_bits_in_float32(tmp_path: Path) -> None:
    run_on_ranks(2, do_run, tiny_run(), tmp_path / "unbroken")
    run_on_ranks(2, do_part, tiny_run(), tmp_path / "run", 32)
    run_on_ranks(2, do_run, tiny_run(), tmp_path / "run", True)
    assert result(tmp_path / "run") == result(tmp_path / "unbroken")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "unbroken")


def test_another_number_of_ranks_resumes_within_an_epoch_to_the_same_bits(
    unbroken_float64: Path, tmp_path: Path
) -> None:
    settings = tiny_run(precision=FLOAT64)
    run_on_ranks(2, do_part, settings, tmp_path / "run", 32)
    do_part(settings, tmp_path / "run", 8)
    run_on_ranks(3, do_run, settings, tmp_path / "run", True)
    assert_same_bits(tmp_path / "run", unbroken_float64)


def test_a_fused_optimizer_resumes_within_an_epoch(tmp_path: Path) -> None:
    settings = tiny_run(
        optimizer={"tables": "rowwise_adagrad", "tables_learning_rate": 0.02}, orthogonality=DECOUPLED
    )
    do_run(settings, tmp_path / "unbroken")
    do_part(settings, tmp_path / "run", 8)
    do_part(settings, tmp_path / "run", 29)
    do_run(settings, tmp_path / "run", resume=True)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "unbroken")
    assert_same_bits(tmp_path / "run", tmp_path / "unbroken")


def preempted_on_the_last_rank(settings: RunSettings, folder: Path, ranks: int) -> str:
    from ham_dist.distributed.ranks import process_group

    last = process_group.rank() == ranks - 1
    with after_steps(8 if last else 1_000, terminate=last), pytest.raises(Preempted) as caught:
        run_stages(settings, folder, resume=False)
    return str(caught.value)


@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_on_one_rank_saves_after_the_next_step_and_stops_all(
    unbroken: Path, tmp_path: Path, ranks: int
) -> None:
    settings = tiny_run(checkpoint={"every_steps": 0})
    folder = tmp_path / "run"
    messages = run_on_ranks(ranks, preempted_on_the_last_rank, settings, folder, ranks)
    assert all("SIGTERM" in message and "--resume" in message for message in messages)
    assert [path.name for path in (folder / "checkpoints" / "pretrain").iterdir()] == [
        "epoch-0000-step-00000008"
    ]
    if ranks == 1:
        do_run(settings, folder, resume=True)
        assert metrics(folder) == metrics(unbroken)


def test_minutes_make_checkpoints_too_and_the_newest_are_kept(tmp_path: Path) -> None:
    settings = tiny_run(checkpoint={"every_steps": 0, "every_minutes": 1e-9, "keep": 3})
    do_part(settings, tmp_path / "run", 9)
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints" / "pretrain").iterdir())
    assert kept == [f"epoch-0000-step-{step:08d}" for step in (7, 8, 9)]


def test_a_run_resumes_with_other_times_to_save(tmp_path: Path) -> None:
    do_part(tiny_run(), tmp_path / "run", 7)
    do_part(tiny_run(checkpoint={"every_steps": 3}, ranks={"timeout_minutes": 5}), tmp_path / "run", 3)
    assert "every_steps = 3" in (tmp_path / "run" / "run.toml").read_text()
