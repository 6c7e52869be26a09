"""What the sides of bench_training.py share. It runs in the peers' environment too, which has torch and numpy, and nothing of ham_dist's.

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
"""Of everything that moves by Adam, on all sides."""
TABLE_START = 0.01
"""Standard deviation of the embeddings' start, on all sides."""


@dataclass(frozen=True)
class Task:
    """What a side is to train, and on what.

    folder:      Parquet shards with their manifest, and for programs that read no such: train.npz and test.npz, an array of each field and `label`.
    model:       deepfm or dcnv2.
    tables:      rule of the tables; the peers know `adam`.
    first_order: of DeepFM: `table` or `linear`.
    has_lift:    of DeepFM: whether its fields are lifted, as they have to be once they differ in width.
    core:        the one that the side may run on.
    scores:      where the scores of the test split go, in its order.
    """

    folder: str
    model: str
    tables: str
    first_order: str
    has_lift: bool
    num_embeddings: dict[str, int]
    width: int
    mlp: list[int]
    cross_layers: int
    batch_size: int
    tables_learning_rate: float
    seed: int
    core: int
    scores: str

    def arguments(self) -> list[str]:
        """For the command line of a side."""
        return [json.dumps(asdict(self))]


def has_first_order_tables(task: Task) -> bool:
    """Whether the model has a table of width 1 a field beside the others."""
    return task.model == "deepfm" and task.first_order == "table"


class Side(Protocol):
    """One program."""

    def train(self) -> int:
        """One epoch over the training split, from its files; gives the samples that it saw."""

    def scores(self) -> np.ndarray:
        """(N,) of the test split: logits or probabilities."""


def run_side(sides: Mapping[str, Callable[[Task], Side]]) -> None:
    """Do what the command line says, and print one JSON object as the last line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=sides)
    parser.add_argument("task", type=lambda text: Task(**json.loads(text)))
    options = parser.parse_args()
    task: Task = options.task
    # Also for whatever thread or process a loader starts.
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
    """Of this process, and of a loader's that have ended."""
    return sum(os.times()[:4])


def peak_bytes() -> int:
    """Most memory that this process has held. Not getrusage's figure, which counts the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
