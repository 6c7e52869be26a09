import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ham_dist.training.run_folder import RunFolder
from ham_dist.training.run_log import RunLog


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def _entries(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def _scalars(folder: RunFolder, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_metrics_go_to_a_line_and_to_tensorboard(folder: RunFolder) -> None:
    with RunLog(folder, is_first=True) as log:
        log.metrics(
            "pretrain",
            1,
            10,
            loss=torch.tensor(0.5),
            auc=0.75,
            note="ok",
            kept=torch.tensor([1, 2]),
            lost=float("nan"),
        )
    assert _entries(folder) == [
        {
            "stage": "pretrain",
            "epoch": 1,
            "step": 10,
            "loss": 0.5,
            "auc": 0.75,
            "note": "ok",
            "kept": [1, 2],
            "lost": None,
        }
    ]
    assert _scalars(folder, "pretrain/auc") == [(10, 0.75)]


def test_say_goes_to_the_log_and_the_terminal(folder: RunFolder) -> None:
    stream = io.StringIO()
    with RunLog(folder, is_first=True, console=Console(file=stream)) as log:
        log.say("kept [3] columns")
    assert stream.getvalue() == "kept [3] columns\n"
    assert folder.log.read_text().endswith(" kept [3] columns\n")


def test_other_ranks_write_nothing(folder: RunFolder) -> None:
    with RunLog(folder, is_first=False) as log:
        log.say("here")
        log.metrics("pretrain", 1, 10, loss=1.0)
        with log.progress("pretrain", 1, 1) as progress:
            progress.step(5)
        log.truncate_after("pretrain", 0)
    assert list(folder.path.iterdir()) == []


def test_a_resumed_run_appends_and_repeats_nothing(folder: RunFolder) -> None:
    with RunLog(folder, is_first=True) as log:
        log.metrics("pretrain", 0, 10, loss=1.0)
        log.metrics("pretrain", 1, 20, loss=0.5)
        log.metrics("search", 0, 10, loss=0.4)
        log.metrics("search", 1, 20, loss=0.3)
    with folder.metrics.open("a") as file:
        file.write('{"stage": "sea')  # a line that the killed run did not finish
    with RunLog(folder, is_first=True) as log:
        log.truncate_after("pretrain", 1)
        log.truncate_after("search", 0)
        log.metrics("search", 1, 20, loss=0.25)
    assert [(entry["stage"], entry["epoch"], entry["loss"]) for entry in _entries(folder)] == [
        ("pretrain", 0, 1.0),
        ("pretrain", 1, 0.5),
        ("search", 0, 0.4),
        ("search", 1, 0.25),
    ]
    assert _scalars(folder, "pretrain/loss") == [(10, 1.0), (20, 0.5)]
    assert [step for step, _ in _scalars(folder, "search/loss")] == [10, 20]
    assert _scalars(folder, "search/loss")[1] == (20, 0.25)


def test_progress_without_a_terminal_is_a_line_now_and_then(folder: RunFolder) -> None:
    stream, clock = io.StringIO(), Clock()
    with (
        RunLog(folder, is_first=True, console=Console(file=stream, width=200), clock=clock) as log,
        log.progress("search", 3, 4) as progress,
    ):
        for _ in range(4):
            clock.now += 6
            progress.step(3000)
    assert stream.getvalue().splitlines() == [
        "search epoch 3: 50 %, 500 samples/s, 12 s left",
        "search epoch 3: done in 24.0 s, 500 samples/s",
    ]


def test_progress_on_a_terminal_is_a_bar(folder: RunFolder) -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console(file=stream, force_terminal=True, width=120)
    with (
        RunLog(folder, is_first=True, console=console, clock=clock) as log,
        log.progress("search", 3, 2) as progress,
    ):
        clock.now += 2
        progress.step(1000)
        progress.step(1000)
    assert "1,000 samples/s" in stream.getvalue()
    assert "100 %" in stream.getvalue()


def test_progress_of_an_epoch_that_fails_does_not_say_that_it_ended(folder: RunFolder) -> None:
    stream = io.StringIO()
    with (
        RunLog(folder, is_first=True, console=Console(file=stream)) as log,
        pytest.raises(KeyError),
        log.progress("search", 3, 2),
    ):
        raise KeyError
    assert stream.getvalue() == ""


def test_a_damaged_line_of_metrics_is_dropped(folder: RunFolder) -> None:
    with RunLog(folder, is_first=True) as log:
        log.metrics("pretrain", 0, 5, loss=0.5)
    with open(folder.metrics, "ab") as file:
        file.write(b'{"stage": "pretrain", "epo\xff\n[]\n{}\n')
    with RunLog(folder, is_first=True) as log:
        log.metrics("pretrain", 1, 10, loss=0.4)
    assert [entry["epoch"] for entry in _entries(folder)] == [0, 1]
