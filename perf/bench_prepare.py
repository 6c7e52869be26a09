"""Rows a second and peak memory of `ham-dist prepare` on generated text in Criteo's format, beside the same work in pandas.

    python perf/bench_prepare.py --rows 1000000                  ham_dist and pandas on the same rows
    python perf/bench_prepare.py --sizes 1 4 16 --no-pandas      peak memory of ham_dist at 1, 4 and 16 million rows

Each measurement runs in a process of its own. The text is made by this script, with the cardinalities of Criteo Kaggle cut to 100,000.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

CARDINALITIES = (1460, 583, 100_000, 60_000, 305, 24, 12_517, 633, 3, 93_145, 5683, 90_000, 3194, 27, 14_992, 80_000, 10, 5652, 2173, 4, 80_000, 18,
                 15, 70_000, 105, 40_000)  # fmt: skip
ROWS_A_PART = 200_000


def write_text(path: Path, rows: int) -> None:
    """Made-up samples in the format of Criteo's train.txt."""
    with path.open("wb") as file:
        for start in range(0, rows, ROWS_A_PART):
            count = min(ROWS_A_PART, rows - start)
            random = np.random.default_rng([0, start])
            columns = [pa.array((random.random(count) < 0.25).astype(np.int8))]
            for _ in range(13):
                numbers = np.floor(random.lognormal(2, 1.5, count)).astype(np.int64) - 1
                columns.append(pa.array(numbers, mask=random.random(count) < 0.1))
            for field, cardinality in enumerate(CARDINALITIES):
                places = np.minimum((cardinality * random.random(count) ** 3).astype(np.uint64), cardinality - 1)
                codes = (places * np.uint64(2_654_435_761) + np.uint64(field * 7919 + 11)) & np.uint64(0xFFFF_FFFF)
                digits = pa.py_buffer(codes.astype(">u4").tobytes().hex().encode())
                offsets = pa.py_buffer(np.arange(0, 8 * count + 1, 8, dtype=np.int32))
                texts = pa.Array.from_buffers(pa.utf8(), count, [None, offsets, digits])
                columns.append(pc.if_else(pa.array(random.random(count) < 0.05), pa.scalar(None, pa.string()), texts))
            table = pa.table(columns, names=[str(number) for number in range(40)])
            pyarrow.csv.write_csv(table, file, pyarrow.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none"))


def ours(raw: Path, out: Path, memory: str, threads: int) -> None:
    """The public door, from raw text to a finished folder."""
    from ham_dist.data.engine import Machine, parse_size
    from ham_dist.data.prepare import prepare
    from ham_dist.data.recipe import load_recipe

    prepare(load_recipe("criteo-kaggle"), raw, out, machine=Machine(memory=parse_size(memory), threads=threads))


def with_pandas(raw: Path, out: Path) -> None:
    """The same in plain pandas: all rows in memory, the same transforms, vocabularies, split by a random number, three Parquet files."""
    import pandas

    names = ["click", *(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27))]
    frame = pandas.read_csv(raw / "train.txt", sep="\t", header=None, names=names, dtype=dict.fromkeys(names[14:], "string"))
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
        ids[name] = column.map({value: place + 1 for place, (value, _) in enumerate(order)}).fillna(0).astype("int32")
    encoded = pandas.DataFrame(ids)
    out.mkdir()
    for split, part in (("train", train), ("validation", tenths == 8), ("test", tenths == 9)):
        encoded[part].to_parquet(out / f"{split}.parquet", index=False)


def measure(side: str, raw: Path, out: Path, memory: str, threads: int) -> dict[str, float]:
    """One side in a process of its own: wall and CPU seconds, and the most memory it took (all of its own work, imports counted)."""
    command = [sys.executable, __file__, "--side", side, "--raw", str(raw), "--out", str(out), "--memory", memory, "--threads", str(threads)]
    start = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{side} failed")
    return {"seconds": time.monotonic() - start, "cpu": usage.ru_utime + usage.ru_stime, "peak_gb": usage.ru_maxrss * 1024 / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1], help="millions of rows")
    parser.add_argument("--no-pandas", action="store_true")
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--raw", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side == "pandas":
        return with_pandas(options.raw, options.out)
    if options.side == "ham_dist":
        return ours(options.raw, options.out, options.memory, options.threads)
    print(f"{'rows':>12} {'side':>10} {'rows/s':>10} {'rows/CPU s':>12} {'seconds':>9} {'peak GB':>8} {'output B/row':>13}")
    for size in options.sizes:
        rows = int(size * 1_000_000)
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as folder:
            raw = Path(folder) / "raw"
            raw.mkdir()
            write_text(raw / "train.txt", rows)
            for side in ("ham_dist",) if options.no_pandas else ("ham_dist", "pandas"):
                out = Path(folder) / side
                found = measure(side, raw, out, options.memory, options.threads)
                written = sum(path.stat().st_size for path in out.rglob("*.parquet"))
                print(f"{rows:>12,} {side:>10} {rows / found['seconds']:>10,.0f} {rows / found['cpu']:>12,.0f} {found['seconds']:>9.1f} "
                      f"{found['peak_gb']:>8.2f} {written / rows:>13.1f}", flush=True)  # fmt: skip
                if side == "ham_dist":
                    manifest = json.loads((out / "manifest.json").read_text())
                    assert manifest["rows_in"] == rows
    return None


if __name__ == "__main__":
    main()
