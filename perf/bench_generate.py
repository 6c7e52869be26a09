"""Generated data: rows a second of text, shards and batches; peak memory of generating and inspecting it.

    OMP_NUM_THREADS=1 python perf/bench_generate.py                      some minutes
    OMP_NUM_THREADS=1 python perf/bench_generate.py --rounds 1 --sizes 200000    a quick run

Rows a second are measured by wall time and by the processor time of the one thread that works, which other
programs disturb less. Memory is the peak of a new process. Data of 39 fields has the `num_embeddings` of the
preset `dlrm-39`, capped at 200,000 rows a table where memory is measured, so that only the number of samples
grows.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ham_dist.config.presets import PRESETS
from ham_dist.config.synthetic import SyntheticSettings

FIELDS = SyntheticSettings(preset="dlrm-39", missing=0.05)
SPEED_ROWS = 500_000
CAP = 200_000


def capped(rows: int) -> SyntheticSettings:
    """39 fields of at most CAP rows a table."""
    preset = PRESETS["dlrm-39"]
    return SyntheticSettings.model_validate(
        preset
        | {
            "num_embeddings": [min(size, CAP) for size in preset["num_embeddings"]],
            "rows": rows,
            "missing": 0.05,
        }
    )


def text(folder: Path, name: str) -> int:
    from ham_dist.data.synthetic.criteo_text import write_criteo_file

    write_criteo_file(folder / name, SPEED_ROWS)
    return SPEED_ROWS


def shards(folder: Path) -> int:
    """Two shards of the training split, without the vocabularies, whose time does not depend on the rows."""
    from ham_dist.data.synthetic.planted import Planted
    from ham_dist.data.synthetic.write import generate_shard

    planted = Planted(FIELDS.model_copy(update={"rows": 1_000_000}))
    return sum(generate_shard(planted, "train", number, folder)[0].rows for number in range(2))


def batches(size: int, labels: str) -> int:
    from generated_batches import generated_batches

    return sum(
        batch.global_rows
        for batch in generated_batches(FIELDS, size, steps=max(1, SPEED_ROWS // size), labels=labels)
    )  # type: ignore[arg-type]


def speeds(rounds: int) -> None:
    cases: dict[str, Callable[[Path], int]] = {
        "text in Criteo's format": lambda folder: text(folder, "train.txt"),
        "the same, gzipped": lambda folder: text(folder, "train.txt.gz"),
        "shards, planted labels": shards,
        **{
            f"batches of {size:,}, {labels} labels": lambda _, s=size, w=labels: batches(s, w)
            for size in (2048, 65_536)
            for labels in ("rule", "planted")
        },
    }
    clock: dict[str, list[float]] = {name: [] for name in cases}
    processor: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):  # the first warms up
        for name, run in cases.items():
            with tempfile.TemporaryDirectory() as temporary:
                began, used = time.perf_counter(), time.process_time()
                rows = run(Path(temporary))
                seconds, processor_seconds = time.perf_counter() - began, time.process_time() - used
            if number:
                clock[name].append(rows / seconds)
                processor[name].append(rows / processor_seconds)
    print(
        "\n| what | rows/s by processor time, median (lowest .. highest) | rows/s by wall time, median |\n"
        "|---|---|---|"
    )
    for name in cases:
        found = processor[name]
        spread = f"({min(found):,.0f} .. {max(found):,.0f})"
        print(
            f"| {name} | {statistics.median(found):,.0f} {spread} | {statistics.median(clock[name]):,.0f} |"
        )


def generate_and_look(rows: int, folder: str) -> None:
    """Generates, or inspects what is already generated, and prints the peak memory of this process."""
    from ham_dist.data.format.manifest import Manifest
    from ham_dist.data.statistics import compute_statistics
    from ham_dist.data.synthetic.write import generate

    began, path = time.process_time(), Path(folder) / str(rows)
    if path.exists():
        compute_statistics(path, Manifest.load(path), 16)
    else:
        generate(capped(rows), path)
    print(
        json.dumps(
            {
                "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
                "seconds": time.process_time() - began,
            }
        )
    )


def sizes(counts: list[int]) -> None:
    print(
        "| rows | generate: peak GB, processor seconds | compute_statistics: peak GB, processor seconds |\n"
        "|---|---|---|"
    )
    for rows in counts:
        with tempfile.TemporaryDirectory() as temporary:
            command = [sys.executable, __file__, "--one", str(rows), temporary]
            runs = [
                json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                for _ in ("generate", "look")
            ]
        print(
            f"| {rows:,} | " + " | ".join(f"{run['gb']:.2f}, {run['seconds']:.0f}" for run in runs) + " |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[250_000, 1_000_000, 4_000_000])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        generate_and_look(int(options.one[0]), options.one[1])
        return
    sizes(options.sizes)  # first: a process starts with the peak of the one that made it
    speeds(options.rounds)


if __name__ == "__main__":
    main()
