"""Peak memory of one process that runs all stages with a table of 10^8 rows x 16 columns (6.4 GB).

    python perf/large_table.py                             about 10 GB of memory, 20 of disk
    python perf/large_table.py --rows 10_000_000

Runs `ham`, and `uniform`, which keeps 4 columns of the table. The bound next to the peak is 1.25 x tables +
optimizer state + 2 GB.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ham_dist.embedding.table_size import read_sizes
from ham_dist.training.run_folder import RunFolder

EMBEDDING_DIM = 16
SMALL = (50,) * 7
"""Rows of the other tables."""


def peak_of_run(method: str, rows: int, samples: int, folder: Path) -> int:
    """Peak bytes of the process of a run."""
    num_embeddings = [rows, *SMALL]
    settings = {
        "data.synthetic.rows": samples,
        "data.synthetic.num_embeddings": num_embeddings,
        "data.synthetic.planted_ranks": [2] * len(num_embeddings),
        "model.name": "deepfm",
        "model.base_dim": EMBEDDING_DIM,
        "optimizer.tables": "rowwise_adagrad",
        "optimizer.tables_learning_rate": 0.02,
        "orthogonality.application": "decoupled",
        "search.method": method,
        "search.targets": [{"columns": 4 * len(num_embeddings)}],
        "pretrain.max_epochs": 1,
        "search.epochs": 1,
        "retrain.max_epochs": 1,
    }
    command = [sys.executable, "-m", "ham_dist", "train", "--run-dir", str(folder)]
    for name, value in settings.items():
        command += ["--set", f"{name}={toml(value)}"]
    log = folder.with_suffix(".log")
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        peak = max(peaks(process))
    if process.returncode:
        raise SystemExit(log.read_text(encoding="utf-8")[-4000:])
    return peak


def toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml(part)}" for name, part in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) else str(value)


def peaks(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """Yields the process's peak bytes so far, twenty times a second until it ends."""
    yield 0
    while process.poll() is None:
        found = re.search(
            r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        )
        if found:
            yield int(found[1]) * 1024
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--methods", nargs="+", choices=["ham", "uniform"], default=["ham", "uniform"])
    parser.add_argument("--folder", help="for the runs; a temporary one by default")
    options = parser.parse_args()
    all_rows = options.rows + sum(SMALL)
    tables, state = all_rows * EMBEDDING_DIM * 4, all_rows * 4
    bound = 1.25 * tables + state + 2e9
    print(
        f"{all_rows:,} rows x {EMBEDDING_DIM}: tables {tables / 1e9:.2f} GB, "
        f"row-wise Adagrad's state {state / 1e9:.2f} GB"
    )
    print(
        "\n| method | peak GB | bound GB | columns kept of the large table | bundle GB |\n"
        "|---|---|---|---|---|"
    )
    for method in options.methods:
        with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
            folder = RunFolder(Path(temporary) / "run")
            peak = peak_of_run(method, options.rows, options.samples, folder.path)
            kept = len(read_sizes(folder.sizes)[0].kept_columns)
            bundle = sum(file.stat().st_size for file in folder.bundle.rglob("*") if file.is_file())
        print(
            f"| {method} | {peak / 1e9:.2f} | {bound / 1e9:.2f} | {kept} | {bundle / 1e9:.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
