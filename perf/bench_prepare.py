"""Rows a second and peak memory of `ham-dist prepare` on generated Criteo text, next to pandas and FuxiCTR.

    make peers                                               FuxiCTR, in an environment of its own; optional
    python perf/bench_prepare.py                             all three on the same 1 million rows
    python perf/bench_prepare.py --sizes 1 4 16 --peers --rounds 1 peak memory of ham_dist by rows

The text is that of `ham-dist generate criteo-text`, and FuxiCTR is measured with its own preprocessing. Each
measurement is a process of its own, including the start of Python; the sides take turns.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PEERS = Path(__file__).parent.parent / ".venv-peers" / "bin" / "python"
FIELDS = (*(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27)))


def ours(raw: Path, out: Path, memory: str, threads: int) -> None:
    """`prepare`, from raw text to a finished data folder."""
    from ham_dist.data.engines.base import Machine, parse_size
    from ham_dist.data.prepare.pipeline import prepare
    from ham_dist.data.recipe.load import load_recipe

    prepare(
        load_recipe("criteo-kaggle"), raw, out, machine=Machine(memory=parse_size(memory), threads=threads)
    )


def with_pandas(raw: Path, out: Path) -> None:
    """The work of `prepare` in plain pandas: all rows in memory, the same transforms and
    vocabularies, a random split, three Parquet files."""
    import pandas

    names = ["click", *FIELDS]
    frame = pandas.read_csv(
        raw / "train.txt", sep="\t", header=None, names=names, dtype=dict.fromkeys(names[14:], "string")
    )
    tenths = np.random.default_rng(0).integers(10, size=len(frame))
    train = tenths < 8
    ids = {"label": frame["click"].astype("int8")}
    for name in names[1:]:
        column = frame[name]
        if name.startswith("I"):
            cut = np.where(column > 2, np.floor(np.log(column.clip(lower=2)) ** 2), np.trunc(column) - 2)
            column = pandas.Series(cut).astype("Int64").astype("string")
        column = column.fillna("missing")
        counts = column[train].value_counts()
        counts = counts[counts >= 10]
        order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ids[name] = (
            column.map({value: place + 1 for place, (value, _) in enumerate(order)}).fillna(0).astype("int32")
        )
    encoded = pandas.DataFrame(ids)
    out.mkdir()
    for split, part in (("train", train), ("validation", tenths == 8), ("test", tenths == 9)):
        encoded[part].to_parquet(out / f"{split}.parquet", index=False)


def split_text(raw: Path) -> None:
    """Writes train.csv, valid.csv and test.csv next to train.txt, with a header and commas.

    FuxiCTR reads only such files, and does not split a file. Not timed.
    """
    import pyarrow.csv

    text = pyarrow.csv.read_csv(
        raw / "train.txt",
        pyarrow.csv.ReadOptions(column_names=["click", *FIELDS]),
        pyarrow.csv.ParseOptions(delimiter="\t"),
        pyarrow.csv.ConvertOptions(column_types={name: pyarrow.string() for name in FIELDS[13:]}),
    )
    tenths = np.random.default_rng(0).integers(10, size=len(text))
    for split, part in (("train", tenths < 8), ("valid", tenths == 8), ("test", tenths == 9)):
        pyarrow.csv.write_csv(
            text.filter(part), raw / f"{split}.csv", pyarrow.csv.WriteOptions(quoting_style="none")
        )


def with_fuxictr(raw: Path, out: Path, threads: int) -> None:
    """FuxiCTR's preprocessing with the columns of its Criteo_x4 example.

    The same transform of numbers; values seen fewer than 10 times are unknown.
    """
    import ray
    from fuxictr.datasets.criteo import CustomizedFeatureProcessor
    from fuxictr.preprocess import build_dataset

    # It starts a worker for every two cores that it counts: this gives one worker per thread.
    os.cpu_count = lambda: 2 * threads
    ray.init(num_cpus=threads, logging_level="ERROR", include_dashboard=False)
    columns = [
        {
            "name": list(FIELDS[:13]),
            "active": True,
            "dtype": "float",
            "type": "categorical",
            "preprocess": "convert_to_bucket",
            "fill_na": 0,
        },
        {"name": list(FIELDS[13:]), "active": True, "dtype": "str", "type": "categorical"},
    ]
    processor = CustomizedFeatureProcessor(
        columns, {"name": "click", "dtype": "float"}, dataset_id="criteo", data_root=str(out)
    )
    build_dataset(
        processor,
        *(str(raw / f"{split}.csv") for split in ("train", "valid", "test")),
        data_format="csv",
        min_categr_count=10,
    )


def measure(side: str, raw: Path, out: Path, memory: str, threads: int) -> dict[str, float]:
    """Runs one side in a process of its own: wall and CPU seconds, and peak memory (including imports)."""
    shutil.rmtree(out, ignore_errors=True)
    python = str(PEERS) if side == "fuxictr" else sys.executable
    command = [
        python,
        __file__,
        "--side",
        side,
        "--raw",
        str(raw),
        "--out",
        str(out),
        "--memory",
        memory,
        "--threads",
        str(threads),
    ]
    with tempfile.TemporaryFile() as output:  # Ray prints its progress line by line.
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{side} failed:\n{output.read().decode(errors='replace')[-4000:]}")
    written = sum(path.stat().st_size for path in out.rglob("*.parquet"))
    # Ray's workers are no children of this process, so their usage is unknown.
    alone = side != "fuxictr"
    return {
        "seconds": seconds,
        "cpu": usage.ru_utime + usage.ru_stime if alone else math.nan,
        "peak_gb": usage.ru_maxrss * 1024 / 1e9 if alone else math.nan,
        "written": written,
    }


def compare(rows: int, raw: Path, sides: list[str], options: argparse.Namespace) -> None:
    """All sides in turn, round by round; a line of medians for each."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side, rounds in found.items():
            out = raw.parent / side
            rounds.append(measure(side, raw, out, options.memory, options.threads))
            if side == "ham_dist":
                assert json.loads((out / "manifest.json").read_text(encoding="utf-8"))["rows_in"] == rows
    for side, rounds in found.items():
        middle = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        ratio = statistics.median(
            theirs["seconds"] / ours["seconds"]
            for ours, theirs in zip(found["ham_dist"], rounds, strict=True)
        )
        span = f"{min(one['seconds'] for one in rounds):.1f}..{max(one['seconds'] for one in rounds):.1f}"
        print(
            f"| {rows:,} | {side} | {rows / middle['seconds']:,.0f} | {ratio:.2f} x "
            f"| {middle['seconds']:.1f} ({span}) | {rows / middle['cpu']:,.0f} | {middle['peak_gb']:.2f} "
            f"| {middle['written'] / rows:.1f} |".replace("nan", "-"),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=float, nargs="+", default=[1], help="millions of rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=["pandas", "fuxictr"],
        default=["pandas", "fuxictr"],
        help="sides to compare ham_dist with",
    )
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=["ham_dist", "pandas", "fuxictr"], help=argparse.SUPPRESS)
    parser.add_argument("--raw", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side == "pandas":
        return with_pandas(options.raw, options.out)
    if options.side == "fuxictr":
        return with_fuxictr(options.raw, options.out, options.threads)
    if options.side == "ham_dist":
        return ours(options.raw, options.out, options.memory, options.threads)
    from ham_dist.data.synthetic.criteo_text import write_criteo_file

    sides = ["ham_dist", *options.peers]
    if "fuxictr" in sides and not PEERS.exists():
        sides.remove("fuxictr")
        print("FuxiCTR is left out: `make peers` installs it.")
    print(
        "| rows | side | rows/s | ham_dist is faster by | seconds: median (lowest..highest) "
        "| rows / CPU second | peak GB | Parquet bytes a row |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for size in options.sizes:
        rows = int(size * 1_000_000)
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as folder:
            raw = Path(folder) / "raw"
            raw.mkdir()
            write_criteo_file(raw / "train.txt", rows)
            if "fuxictr" in sides:
                split_text(raw)
            compare(rows, raw, sides, options)
    return None


if __name__ == "__main__":
    main()
