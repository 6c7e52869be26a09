"""Test AUC of every model, method and target over seeds: the paper's Figure 3 as a table.

    python perf/table.py data/movielens-1m --models dcnv2 --targets 14 28 42 --seeds 3 --runs runs/table

Each run has its own run folder under --runs; a finished run is not repeated, so the command can be
interrupted and repeated.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from ham_dist.config.load import differences, load_run


def do_run(options: argparse.Namespace, model: str, method: str, seed: int) -> Path:
    """Runs `ham-dist train` with all targets, and returns its run folder."""
    folder = options.runs / f"{model}-{method}-{seed}"
    targets = ", ".join(f"{{columns = {target}}}" for target in options.targets)
    settings = [
        "precision.dense=float32",
        f"data.path={options.data}",
        f"model.name={model}",
        f"search.method={method}",
        f"seed={seed}",
        f"search.targets=[{targets}]",
    ]
    settings += options.overrides
    if (folder / "run.toml").exists() and (
        differ := differences(load_run(str(folder / "run.toml")), load_run(None, settings))
    ):
        raise SystemExit(
            f"{folder}: holds a run with other settings ({'; '.join(differ)}); give another --runs"
        )
    if not all(
        (part_of(folder, target, options.targets) / "result.json").exists() for target in options.targets
    ):
        command = [sys.executable, "-m", "ham_dist", "train", "--run-dir", str(folder), "--resume"]
        with open(options.runs / f"{folder.name}.txt", "w", encoding="utf-8") as output:
            subprocess.run(
                [*command, *(part for value in settings for part in ("--set", value))],
                check=True,
                stdout=output,
                stderr=output,
            )
    return folder


def part_of(folder: Path, target: int, targets: list[int]) -> Path:
    """The folder of one target: the run folder itself for a run of one target."""
    return folder if len(targets) == 1 else folder / f"columns-{target}"


def cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ({min(values):.4f}..{max(values):.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["dcnv2"])
    parser.add_argument("--methods", nargs="+", default=["ham", "magnitude", "random", "uniform"])
    parser.add_argument("--targets", nargs="+", type=int, default=[14, 28, 42])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    for model in options.models:
        found = {}
        for method in options.methods:
            for seed in range(options.seeds):
                folder = do_run(options, model, method, seed)
                for target in options.targets:
                    result = json.loads(
                        (part_of(folder, target, options.targets) / "result.json").read_text(encoding="utf-8")
                    )
                    found.setdefault((method, target), []).append(result)
        supernet = [result["supernet"]["auc"] for result in found[options.methods[0], options.targets[0]]]
        print(f"\n{model}, {options.seeds} seed(s); supernet {cell(supernet)}\n")
        print("| method | " + " | ".join(f"s = {target}" for target in options.targets) + " |")
        print("|---|" + "---|" * len(options.targets))
        for method in options.methods:
            print(
                f"| {method} | "
                + " | ".join(
                    cell([result["test_auc"] for result in found[method, target]])
                    for target in options.targets
                )
                + " |"
            )
        print("\nColumns kept by", options.methods[0], "(seed 0):")
        for target in options.targets:
            kept = found[options.methods[0], target][0]["kept_columns"]
            print(f"  s = {target}: " + ", ".join(f"{field} {count}" for field, count in kept.items()))


if __name__ == "__main__":
    main()
