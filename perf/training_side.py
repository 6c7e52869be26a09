"""Code that the sides of bench_training.py share.

It also runs in the peers' environment, which has torch and numpy but not ham_dist.

F fields, N samples of a split
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

LEARNING_RATE = 1e-3
"""Learning rate of everything that Adam trains, on all sides."""
INIT_STD = 0.01
"""Standard deviation of the embedding initialization, on all sides."""


@dataclass(frozen=True)
class Task:
    """The model that a side trains, and its data.

    Attributes:
        folder: Parquet shards with their manifest, and for other programs train.npz and test.npz: an array of
        each field and `label`.
        model: deepfm or dcnv2.
        tables: Table optimizer; the peers support `adam` only.
        first_order: Of DeepFM: `table` or `linear`.
        has_lift: Of DeepFM: true if its fields have a lift, which fields of different width need.
        core: The core that the side runs on.
        scores: File for the scores of the test split, in its order.
    """

    folder: str
    model: str
    tables: str
    first_order: str
    has_lift: bool
    num_embeddings: dict[str, int]
    embedding_dim: int
    mlp: list[int]
    cross_layers: int
    batch_size: int
    tables_learning_rate: float
    seed: int
    core: int
    scores: str

    def arguments(self) -> list[str]:
        """Arguments for the command line of a side."""
        return [json.dumps(asdict(self))]


def has_first_order_tables(task: Task) -> bool:
    """True if the model also has a table of width 1 for each field."""
    return task.model == "deepfm" and task.first_order == "table"


class Side(Protocol):
    """One program."""

    def train(self) -> int:
        """Trains one epoch over the training split, from its files; returns the number of samples."""

    def scores(self) -> np.ndarray:
        """Logits or probabilities of the test split, (N,)."""


def run_side(sides: Mapping[str, Callable[[Task], Side]]) -> None:
    """Trains as the command line gives it, and prints one JSON object as the last line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=sides)
    parser.add_argument("task", type=lambda text: Task(**json.loads(text)))
    options = parser.parse_args()
    task: Task = options.task
    # Also holds for any thread or process that a loader starts.
    os.sched_setaffinity(0, {task.core})
    torch.set_num_threads(1)
    torch.manual_seed(task.seed)
    side = sides[options.side](task)
    wall, cpu = time.perf_counter(), cpu_seconds()
    samples = side.train()
    seconds = {"wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu}
    np.save(task.scores, side.scores())
    print(json.dumps({"samples": samples, **seconds, "peak_bytes": peak_bytes()}))


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def peak_bytes() -> int:
    """Peak memory of this process. Not from getrusage, whose figure includes the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
