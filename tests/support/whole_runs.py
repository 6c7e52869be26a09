"""Whole runs of all stages, also stopped in the middle, and the comparison of two runs."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ham_dist.config.schema import RunSettings
from ham_dist.run import run_stages
from ham_dist.training.checkpoints import StageCheckpoints
from ham_dist.training.guard import Guard
from ham_dist.training.progress import StageProgress

TIMES = {"seconds", "samples_per_second", "peak_memory_bytes"}


def do_run(settings: RunSettings, folder: Path, resume: bool = False, stop_after: int | None = None) -> None:
    """A run in this process or on this rank; with `stop_after`, stopped right after that many epochs."""
    torch.set_num_threads(1)
    saved = 0
    save = StageCheckpoints.save

    def save_and_count(self: StageCheckpoints, progress: StageProgress) -> None:
        nonlocal saved
        save(self, progress)
        saved += 1
        if saved == stop_after:
            raise KeyboardInterrupt

    StageCheckpoints.save = save_and_count  # type: ignore[method-assign]
    try:
        run_stages(settings, folder, resume=resume)
    except KeyboardInterrupt:
        if stop_after is None:
            raise
    finally:
        StageCheckpoints.save = save  # type: ignore[method-assign]


def result(folder: Path) -> dict[str, Any]:
    """result.json without what depends on the clock."""
    return {
        name: value
        for name, value in json.loads((folder / "result.json").read_text()).items()
        if name not in TIMES
    }


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


DECOUPLED = {"application": "decoupled", "every": 2, "rows": 16}


FLOAT64 = {"dense": "float64"}
"""Makes a run come out the same on any number of ranks."""


def assert_same_bits(folder: Path, unbroken: Path) -> None:
    """Require the model and metrics of `unbroken` to the last bit; the number of ranks may differ."""
    assert result(folder) | {"world_size": 1} == result(unbroken) | {"world_size": 1}
    assert [
        {name: ours.get(name) for name in theirs}
        for ours, theirs in zip(metrics(folder), metrics(unbroken), strict=True)
    ] == metrics(unbroken)
    bundles = [sorted((run / "bundle").rglob("*.safetensors")) for run in (folder, unbroken)]
    assert [file.read_bytes() for file in bundles[0]] == [file.read_bytes() for file in bundles[1]]


class Stopped(Exception):
    """Raised to end a run that a test stops."""


@contextmanager
def after_steps(count: int, *, terminate: bool = False) -> Iterator[None]:
    """Ends the process in training step number `count`; with `terminate`, by SIGTERM."""
    finish_step, done = Guard.finish_step, 0

    def finish_and_count(self: Guard, samples: int) -> None:
        nonlocal done
        done += 1
        finish_step(self, samples)
        if done == count - terminate and terminate:
            signal.raise_signal(signal.SIGTERM)
        elif done == count:
            raise Stopped

    Guard.finish_step = finish_and_count  # type: ignore[method-assign]
    try:
        yield
    finally:
        Guard.finish_step = finish_step  # type: ignore[method-assign]


def do_part(settings: RunSettings, folder: Path, steps: int) -> None:
    with after_steps(steps), pytest.raises(Stopped):
        run_stages(settings, folder, resume=True)
