"""Compares the columns that a search keeps with those planted in generated data.

    python perf/planted.py --runs runs/planted --methods ham random --seeds 5

The generated fields need 6, 4, 3, 2 and 1 columns, and three fields are noise; the target is their sum, 16. A
seed is used for the data and for the run. Spearman's rank correlation is taken between planted and kept dims
of the eight fields.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from ham_dist.config.load import differences, load_run


def spearman(left: list[int], right: list[int]) -> float:
    """Rank correlation, ties at their mean rank."""

    def ranks(values: list[int]) -> np.ndarray:
        array = np.array(values)
        return np.array([((array < value).sum() + (array <= value).sum() + 1) / 2 for value in array])

    return float(np.corrcoef(ranks(left), ranks(right))[0, 1])


def do_run(folder: Path, method: str, seed: int, overrides: list[str]) -> dict:
    """Runs `ham-dist train` on the default generated set, and returns its result."""
    settings = [f"search.method={method}", f"seed={seed}", f"data.synthetic.seed={seed}", *overrides]
    if (folder / "run.toml").exists() and (
        differ := differences(load_run(str(folder / "run.toml")), load_run(None, settings))
    ):
        raise SystemExit(
            f"{folder}: holds a run with other settings ({'; '.join(differ)}); give another --runs"
        )
    if not (folder / "result.json").exists():
        command = [
            sys.executable,
            "-m",
            "ham_dist",
            "train",
            "--run-dir",
            str(folder),
            "--resume",
            *(f"--set={value}" for value in settings),
        ]
        with open(folder.with_suffix(".txt"), "w", encoding="utf-8") as output:
            subprocess.run(command, check=True, stdout=output, stderr=output)
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["ham", "random"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    for method in options.methods:
        print(
            f"\n| {method}, seed | planted | kept | noise columns | fields lost | Spearman "
            "| test AUC, supernet -> narrow | seconds |"
        )
        print("|---|---|---|---|---|---|---|---|")
        correlations = []
        for seed in range(options.seeds):
            folder = options.runs / f"{method}-{seed}"
            result = do_run(folder, method, seed, options.overrides)
            manifest = json.loads((folder / "data" / "manifest.json").read_text(encoding="utf-8"))
            planted = manifest["truth"]["planted_ranks"]
            kept = [result["kept_columns"][field] for field in planted]
            truth = list(planted.values())
            noise = sum(count for count, rank in zip(kept, truth, strict=True) if rank == 0)
            lost = sum(count == 0 for count, rank in zip(kept, truth, strict=True) if rank > 0)
            correlations.append(spearman(truth, kept))
            print(
                f"| {seed} | {truth} | {kept} | {noise} | {lost} | {correlations[-1]:.3f} | "
                f"{result['supernet']['auc']:.4f} -> {result['test_auc']:.4f} "
                f"(Bayes {manifest['truth']['bayes_auc']:.4f}) | {sum(result['seconds'].values()):.0f} |"
            )
        print(f"\nSpearman: median {statistics.median(correlations):.3f}, lowest {min(correlations):.3f}")


if __name__ == "__main__":
    main()
