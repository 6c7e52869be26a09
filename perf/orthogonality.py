"""Test AUC of HAM's sliced models (DCN-V2) over seeds, by form of orthogonality.

    python perf/orthogonality.py data/movielens-1m --targets 14 28 --seeds 3 --runs runs/orthogonality

In addition to the settings of a run, it has two halves of the coupled form: its gradient only on the rows
that the batch looks up, and only on the others. Each run has its own run folder under --runs; a finished run
is not repeated, so the command can be interrupted and repeated.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import ham_dist.training.state as training_state
from ham_dist.config.load import load_run
from ham_dist.distributed.sharding import gram
from ham_dist.distributed.sharding.model import ShardedModel
from ham_dist.run import run_stages
from ham_dist.training.regularizer import Regularizer

VARIANTS = {
    "none": ["orthogonality.form=none"],
    "coupled": [],
    "coupled, looked-up rows alone": [],
    "coupled, other rows alone": [],
    "decoupled": ["orthogonality.application=decoupled"],
    "decoupled, 256 rows": ["orthogonality.application=decoupled", "orthogonality.rows=256"],
}


class HalfCoupled(Regularizer):
    """The coupled form on some rows only; for one rank and dense Adam."""

    looked_up = True

    @torch.no_grad()
    def before_step(self, model: ShardedModel) -> None:
        before = {field: local.parameter.grad.clone() for field, local in model.local.items()}
        gram.add_to_gradients(model, self._matrix_of, self.settings.weight)
        for field, local in model.local.items():
            touched = (before[field] != 0).any(dim=1)
            untouched_rows = touched if not self.looked_up else ~touched
            local.parameter.grad[untouched_rows] = before[field][untouched_rows]


def one(variant: str, data: Path, targets: list[int], seed: int, folder: Path) -> None:
    """One run, in this process."""
    if "alone" in variant:
        HalfCoupled.looked_up = "looked-up" in variant
        training_state.Regularizer = HalfCoupled
    torch.set_num_threads(1)
    searched = ", ".join(f"{{columns = {target}}}" for target in targets)
    settings = [
        "precision.dense=float32",
        f"data.path={data}",
        f"seed={seed}",
        f"search.targets=[{searched}]",
        *VARIANTS[variant],
    ]
    run_stages(load_run(None, settings), folder, resume=folder.exists())


def results(options: argparse.Namespace, variant: str, seed: int) -> list[dict[str, Any]]:
    """The result of each target; runs the stages first if they are not finished."""
    folder = options.runs / f"{variant.replace(', ', '-').replace(' ', '-')}-{seed}"
    parts = [folder / f"columns-{target}" for target in options.targets]
    files = [part / "result.json" for part in (parts if len(parts) > 1 else [folder])]
    if not all(file.exists() for file in files):
        command = [
            sys.executable,
            __file__,
            str(options.data),
            "--runs",
            str(folder),
            "--one",
            variant,
            "--seeds",
            str(seed),
            "--targets",
        ]
        with open(f"{folder}.txt", "w", encoding="utf-8") as output:
            subprocess.run([*command, *map(str, options.targets)], check=True, stdout=output, stderr=output)
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--targets", nargs="+", type=int, default=[14, 28])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--one", choices=list(VARIANTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(options.one, options.data, options.targets, options.seeds, options.runs)
    options.runs.mkdir(parents=True, exist_ok=True)
    found = {
        (variant, seed): results(options, variant, seed)
        for seed in range(options.seeds)
        for variant in options.variants
    }
    first = options.variants[0]
    print(
        "| orthogonality | supernet | "
        + " | ".join(f"s = {target} | over {first}" for target in options.targets)
        + " |"
    )
    print("|---|---|" + "---|---|" * len(options.targets))
    for variant in options.variants:
        runs = [found[variant, seed] for seed in range(options.seeds)]
        cells = [f"{statistics.mean(run[0]['supernet']['auc'] for run in runs):.4f}"]
        for place in range(len(options.targets)):
            aucs = [run[place]["test_auc"] for run in runs]
            gains = [auc - found[first, seed][place]["test_auc"] for seed, auc in enumerate(aucs)]
            cells.append(f"{statistics.mean(aucs):.4f} ({min(aucs):.4f}..{max(aucs):.4f})")
            cells.append(f"{statistics.mean(gains):+.4f} ({min(gains):+.4f}..{max(gains):+.4f})")
        print(f"| {variant} | " + " | ".join(cells) + " |")
    return None


if __name__ == "__main__":
    main()
