"""Samples a second of training on one core, compared with other programs on the same model and samples.

    make peers                                    FuxiCTR and DeepCTR-Torch, optional
    python perf/bench_training.py --rounds 5      all sides, DeepFM and DCN-V2
    python perf/bench_training.py --models deepfm --sides ham_dist/adam fuxictr/adam

Data: generated, 39 fields with `num_embeddings` like Criteo's, 1.6 million table rows; tables of 16 columns.
A measurement is one epoch in a process of its own, from opening the training files to the last step: the
program's own reading and batching are included, the start of Python and building the model are not. The sides
take turns, so that a machine that slows down slows all of them; figures are medians, and each ratio is taken
round by round.

Differences that remain between the programs: each shuffles in its own order and starts from its own random
numbers; FuxiCTR clips gradients. ham_dist's DeepFM has a lift of 16 x 16 for each field, and so have the two
programs that share its dense part (TorchRec, plain torch): fields of one width need no lift, but after
columns are removed they do. `no_lift` is exactly the model of the peers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from training_side import Task

from ham_dist.config.presets import NUMERIC_CARDINALITIES
from ham_dist.config.synthetic import SyntheticSettings
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.synthetic.criteo_text import NUM_EMBEDDINGS as CRITEO_CARDINALITIES
from ham_dist.data.synthetic.write import generate
from ham_dist.io.huge_pages import use_huge_pages
from ham_dist.training.evaluation import area_under_roc

HERE = Path(__file__).parent
PEERS = HERE.parent / ".venv-peers" / "bin" / "python"

# Criteo's categorical columns with the few large ones cut, so that all tables together have about 1.6 million
# rows; no table is narrower than 16.
NUM_EMBEDDINGS = (*NUMERIC_CARDINALITIES, *(min(max(rows, 16), 219_000) for rows in CRITEO_CARDINALITIES))
# Labels depend on few small fields, so that one epoch is enough to learn them and test AUC shows whether a
# program learns.
PLANTED_RANKS = (*(2,) * 6, *(0,) * (len(NUM_EMBEDDINGS) - 6))


CORE = max(os.sched_getaffinity(0))
"""The core that every side runs on."""


@dataclass(frozen=True)
class Side:
    """A program and its table optimizer.

    Attributes:
        script: The script of perf/ that runs it.
        program: Its name there.
        tables: The table optimizer.
        has_lift: As in `Task`; the peers' models have no lift.
    """

    script: str
    program: str
    tables: str
    has_lift: bool = True

    @property
    def label(self) -> str:
        return f"{self.program}/{self.tables}{'' if self.has_lift else '/no_lift'}"


SIDES = (
    Side("training_ours.py", "ham_dist", "rowwise_adagrad"),
    Side("training_ours.py", "torchrec", "rowwise_adagrad"),
    Side("training_ours.py", "ham_dist", "rowwise_adagrad", has_lift=False),
    Side("training_ours.py", "torchrec", "rowwise_adagrad", has_lift=False),
    Side("training_ours.py", "ham_dist", "adam"),
    Side("training_ours.py", "torchrec", "adam"),
    Side("training_ours.py", "torch", "adam"),
    Side("training_peers.py", "fuxictr", "adam"),
    Side("training_peers.py", "deepctr", "adam"),
)


def write_arrays(folder: Path, fields: list[str]) -> None:
    """Writes the samples as train.npz and test.npz (int64), for programs that cannot read our files."""
    for split in ("train", "test"):
        table = pq.read_table(folder / split)
        np.savez(
            folder / f"{split}.npz",
            **{name: table[name].to_numpy().astype(np.int64) for name in [*fields, "label"]},
        )


def _epoch(side: Side, task: Task, labels: torch.Tensor) -> dict[str, float]:
    python = str(PEERS) if side.script == "training_peers.py" else sys.executable
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": str(HERE.parent),
    }
    if side.program == "ham_dist":
        use_huge_pages(environment)  # as `ham-dist train` does for itself
    command = [python, str(HERE / side.script), side.program, *task.arguments()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side.label} failed:\n{done.stderr[-4000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    scores = torch.from_numpy(np.load(task.scores).astype(np.float64))
    return {**found, "auc": area_under_roc(scores, labels)}


def print_table(model: str, found: dict[str, list[dict[str, float]]], sides: list[Side], clock: str) -> None:
    """Prints medians, and the speed of ham_dist relative to each side."""
    ours = [side.label for side in sides if side.program == "ham_dist"]
    unit = "samples/s" if clock == "wall" else "samples / CPU second"
    compared = " | ".join(f"{label} is" for label in ours)
    print(f"\n| {model} | {unit}: median (lowest..highest) | {compared} | peak GB | test AUC |")
    print("|---" * (4 + len(ours)) + "|")
    for side in sides:
        rounds = found[side.label]
        speeds, aucs = [one["samples"] / one[clock] for one in rounds], [one["auc"] for one in rounds]
        times = [statistics.median(ratios(found, label, side.label, clock)) for label in ours]
        print(
            f"| {side.label} | {statistics.median(speeds):,.0f} ({min(speeds):,.0f}..{max(speeds):,.0f}) | "
            f"{' | '.join(f'{ratio:.2f} x as fast' for ratio in times)} | "
            f"{max(one['peak_bytes'] for one in rounds) / 1e9:.2f} | "
            f"{statistics.median(aucs):.4f} ({min(aucs):.4f}..{max(aucs):.4f}) |"
        )


def installed_sides(model: str) -> list[Side]:
    """All sides, except programs that `make peers` has not installed; without a lift only for DeepFM."""
    sides = [side for side in SIDES if side.has_lift or model == "deepfm"]
    if PEERS.exists():
        return sides
    print("FuxiCTR and DeepCTR-Torch are left out: `make peers` installs them.", file=sys.stderr)
    return [side for side in sides if side.script != "training_peers.py"]


@contextmanager
def generated_data(rows: int) -> Iterator[Path]:
    """Yields a temporary folder of samples for all sides."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as temporary:
        folder = Path(temporary) / "data"
        generate(
            SyntheticSettings(
                rows=rows, num_embeddings=NUM_EMBEDDINGS, planted_ranks=PLANTED_RANKS, skew=1.05
            ),
            folder,
        )
        write_arrays(folder, [field.name for field in Manifest.load(folder).fields])
        yield folder


def measure(
    folder: Path,
    model: str,
    sides: list[Side],
    rounds: int,
    *,
    first_order: str = "table",
    tables_learning_rate: float = 0.02,
    core: int = CORE,
) -> dict[str, list[dict[str, float]]]:
    """Trains one epoch of each side in each round: samples, seconds, peak memory and test AUC, by label."""
    num_embeddings = Manifest.load(folder).num_embeddings()
    labels = torch.tensor(pq.read_table(folder / "test")["label"].to_numpy())
    found = defaultdict(list)
    for number in range(rounds):
        for side in sides:
            task = Task(
                folder=str(folder), model=model, tables=side.tables, first_order=first_order,
                has_lift=side.has_lift, num_embeddings=num_embeddings, embedding_dim=16, mlp=[128, 64],
                cross_layers=3, batch_size=2048, seed=number, core=core,
                scores=str(folder.parent / "scores.npy"),
                tables_learning_rate=tables_learning_rate if side.tables != "adam" else 1e-3,
            )  # fmt: skip
            found[side.label].append(_epoch(side, task, labels))
            print(f"{model} {side.label}: {json.dumps(found[side.label][-1])}", file=sys.stderr, flush=True)
    return found


def ratios(
    found: dict[str, list[dict[str, float]]], ours: str, theirs: str, clock: str = "wall"
) -> list[float]:
    """The speed of `ours` relative to `theirs`, round by round."""
    return [
        (mine["samples"] / mine[clock]) / (other["samples"] / other[clock])
        for mine, other in zip(found[ours], found[theirs], strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000, help="generated; 8 of 10 are trained on")
    parser.add_argument("--rounds", type=int, default=3, help="each with a seed of its own")
    parser.add_argument("--models", nargs="+", choices=["deepfm", "dcnv2"], default=["deepfm", "dcnv2"])
    parser.add_argument(
        "--sides", nargs="+", choices=[side.label for side in SIDES], help="all that are installed by default"
    )
    parser.add_argument(
        "--first-order",
        choices=["table", "linear"],
        default="table",
        help="first-order part of ham_dist's DeepFM; the peers have a table for each field",
    )
    parser.add_argument(
        "--tables-learning-rate",
        type=float,
        default=0.02,
        help="for row-wise Adagrad; Adam has 0.001 on all sides",
    )
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="time that speeds are computed from; cpu if the machine is shared",
    )
    parser.add_argument("--core", type=int, default=CORE)
    options = parser.parse_args()
    with generated_data(options.rows) as folder:
        rows = sum(NUM_EMBEDDINGS)
        print(
            f"{len(NUM_EMBEDDINGS)} fields, {rows:,} table rows, {options.rows:,} samples, "
            f"{options.rounds} round(s), one core"
        )
        for model in options.models:
            sides = [
                side
                for side in installed_sides(model)
                if options.sides is None or side.label in options.sides
            ]
            found = measure(
                folder, model, sides, options.rounds,
                first_order=options.first_order,
                tables_learning_rate=options.tables_learning_rate, core=options.core,
            )  # fmt: skip
            print_table(model, found, sides, options.clock)


if __name__ == "__main__":
    main()
