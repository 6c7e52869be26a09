"""The reader: its speed, the time training waits for it, its shuffle, and the cost of Parquet options.

    OMP_NUM_THREADS=1 python perf/bench_reader.py    2 million rows, 39 fields, skewed as click logs are
    OMP_NUM_THREADS=1 python perf/bench_reader.py --rows 200000 --shuffle-rows 65536 --rounds 1    a quick run

Samples a second are measured by wall time and by the processor time of the whole process (`per core`), which
other programs disturb less.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ham_dist.config.schema import DataSettings, RunSettings
from ham_dist.data.format.manifest import DataField, Manifest, SplitEntry, StoredFile
from ham_dist.data.format.shards import PARQUET, ROW_GROUP, split_schema
from ham_dist.data.reader.split import Split, open_split
from ham_dist.distributed.ranks.process_group import process_group
from ham_dist.training.loop import weight_step
from ham_dist.training.state import open_supernet

NUM_EMBEDDINGS = (
    *(10_000_000, 40_000, 17_000, 7_400, 20_000, 3, 7_200, 1_550, 63, 10_000_000, 3_000_000, 350_000, 10),
    *(2_200, 11_000, 155, 4, 976, 14, 10_000_000, 10_000_000, 10_000_000, 590_000, 13_000, 108, 36),
    *(100,) * 13,
)
"""26 categorical fields like those of Criteo 1TB with at most 10 million rows, and 13 numeric ones."""

BATCHES = (2048, 65_536)
CHUNK = 1 << 17
SHARD = 250_000
LARGEST_TABLE = 100_000
"""Tables are capped to so many rows when a model is trained, to fit any memory.

This makes a step faster, so the share of waiting is higher."""


def tables(rows: int, num_embeddings: tuple[int, ...]) -> Iterator[pa.Table]:
    """Rows in chunks: ids are log-uniform in [0, C_j), so that a tenth of the values has most of the rows.

    A quarter of the labels is 1.
    """
    random = np.random.Generator(np.random.Philox(0))
    schema = split_schema({f"field_{number}": False for number in range(len(num_embeddings))})
    for first in range(0, rows, CHUNK):
        size = min(CHUNK, rows - first)
        ids = [
            np.minimum(count ** random.random(size), count - 1).astype(np.int32) for count in num_embeddings
        ]
        yield pa.table([(random.random(size) < 0.25).astype(np.int8), *ids], schema=schema)


def write(
    folder: Path,
    split: str,
    chunks: Iterator[pa.Table],
    num_embeddings: tuple[int, ...],
    row_group: int = ROW_GROUP,
    **options: Any,
) -> Manifest:
    """A folder with one split; the manifest has only what reading needs."""
    (folder / split).mkdir(parents=True)
    whole = pa.concat_tables(chunks)
    shards = []
    for number, first in enumerate(range(0, whole.num_rows, SHARD)):
        part = whole.slice(first, SHARD)
        path = folder / split / f"part-{number:05d}.parquet"
        pq.write_table(part, path, row_group_size=row_group, **{**PARQUET, **options})
        shards.append(
            StoredFile(
                file=f"{split}/{path.name}", rows=part.num_rows, bytes=path.stat().st_size, sha256=str(number)
            )
        )
    nothing = StoredFile(file="", rows=0, bytes=0, sha256="")
    fields = (
        DataField(name=f"field_{n}", rows=count, multi_valued=False, vocabulary=nothing)
        for n, count in enumerate(num_embeddings)
    )
    return Manifest.model_construct(
        fields=tuple(fields),
        splits={
            split: SplitEntry(
                rows=whole.num_rows, positives=int(whole["label"].to_numpy().sum()), shards=tuple(shards)
            )
        },
    )


def spread(values: list[float], form: Callable[[float], str]) -> str:
    return f"{form(statistics.median(values))} ({form(min(values))}..{form(max(values))})"


def one_pass(split: Split, batch_size: int, epoch: int) -> tuple[float, float]:
    """Million samples a second of one epoch's training batches on one rank: by wall and by processor time."""
    clock, processor = time.perf_counter(), time.process_time()
    rows = sum(
        batch.global_rows
        for batch in split.batches(batch_size, rank=0, world_size=1, order=(0, epoch), keep_last=False)
    )
    return rows / (time.perf_counter() - clock) / 1e6, rows / (time.process_time() - processor) / 1e6


def speed(folder: Path, manifest: Manifest, shuffle_rows: int, rounds: int) -> None:
    print("| split | batch | million samples/s by wall time | per core |\n|---|---|---|---|")
    rows = manifest.splits["train"].rows
    for name, limit in (("streamed", shuffle_rows), ("held in memory", rows)):
        split = open_split(folder, manifest, "train", DataSettings(shuffle_rows=limit))
        for batch_size in BATCHES:
            clock, processor = zip(
                *(one_pass(split, batch_size, epoch) for epoch in range(rounds)), strict=True
            )
            print(
                f"| {name} | {batch_size:,} | {spread(list(clock), '{:.2f}'.format)} "
                f"| {spread(list(processor), '{:.2f}'.format)} |",
                flush=True,
            )


def waiting(folder: Path, manifest: Manifest, shuffle_rows: int, steps: int) -> None:
    """Prints the share of training time that is spent waiting for a batch, after the first one."""
    print(
        "\n| batch | seconds a step | samples/s | share of waiting | until the first batch |\n"
        "|---|---|---|---|---|"
    )
    settings = RunSettings.model_validate(
        {
            "optimizer": {"tables": "rowwise_adagrad"},
            "orthogonality": {"form": "none"},
            "data": {"shuffle_rows": shuffle_rows},
        }
    )
    num_embeddings = {field.name: min(field.rows, LARGEST_TABLE) for field in manifest.fields}
    limits = torch.tensor(list(num_embeddings.values()), dtype=torch.int32)[:, None]
    split = open_split(folder, manifest, "train", settings.data)
    with process_group() as device:
        for batch_size in BATCHES:
            state = open_supernet(settings, num_embeddings, device, manifest.single_valued())
            batches = split.batches(batch_size, rank=0, world_size=1, order=(0, 0), keep_last=False)
            begin = time.perf_counter()
            batch, waited = next(batches), 0.0
            start = time.perf_counter()
            count = 0
            while batch is not None and count < max(3, steps * BATCHES[0] // batch_size):
                ids = batch.sparse_features.values().view(len(num_embeddings), -1)
                torch.minimum(ids, limits - 1, out=ids)
                weight_step(state, batch)
                count += 1
                asked = time.perf_counter()
                batch = next(batches, None)
                waited += time.perf_counter() - asked
            taken = time.perf_counter() - start
            print(
                f"| {batch_size:,} | {taken / count:.3f} | {batch_size * count / taken:,.0f} "
                f"| {waited / taken:.2%} | {start - begin:.2f} s |",
                flush=True,
            )


def quality(folder: Path, rows: int) -> None:
    """Prints the spread of batches' label rates for a file sorted by label, compared with a true shuffle."""
    print(
        f"\nSorted by label, {rows:,} rows, batch {BATCHES[0]:,}: "
        "standard deviation of the batches' label rates\n"
    )
    print(
        "| row group | shuffle_rows | lanes | spread | times a true shuffle's "
        "| sqrt(batch / row groups held) |\n"
        "|---|---|---|---|---|---|"
    )
    labels = (np.arange(rows) >= rows // 2).astype(np.int8)
    true = 0.5 / np.sqrt(BATCHES[0])
    for group in (ROW_GROUP, 4 * ROW_GROUP):
        table = pa.table([labels, np.zeros(rows, dtype=np.int32)], schema=split_schema({"field_0": False}))
        manifest = write(folder / str(group), "train", iter([table]), (1,), group)
        for shuffle_rows in sorted({min(limit, rows) for limit in (1 << 18, 1 << 20, 1 << 22, rows)}):
            split = open_split(
                folder / str(group), manifest, "train", DataSettings(shuffle_rows=shuffle_rows)
            )
            rates = [
                float(batch.labels.mean())
                for batch in split.batches(BATCHES[0], rank=0, world_size=1, order=(0, 0), keep_last=False)
            ]
            lanes = "whole" if shuffle_rows >= rows else f"{max(1, min(64, shuffle_rows // group))}"
            expected = "" if shuffle_rows >= rows else f"{np.sqrt(BATCHES[0] / (shuffle_rows / group)):.1f}"
            print(
                f"| {group:,} | {shuffle_rows:,} | {lanes} | {np.std(rates):.4f} "
                f"| {np.std(rates) / true:.1f} | {expected} |",
                flush=True,
            )


def options(folder: Path, rounds: int) -> None:
    """Prints how Parquet options affect size, writing and reading of 524,288 rows of 39 fields."""
    print(
        "\n| compression | encoding | checksums | row group | bytes a row | million rows/s written | read |\n"
        "|---|---|---|---|---|---|---|"
    )
    table = pa.concat_tables(tables(1 << 19, NUM_EMBEDDINGS))
    split = dict.fromkeys(table.column_names[1:], "BYTE_STREAM_SPLIT")
    kinds: list[tuple[str, int, dict[str, Any]]] = [
        ("dictionary", ROW_GROUP, {}),
        ("dictionary", ROW_GROUP, {"write_page_checksum": False}),
        ("dictionary", 4 * ROW_GROUP, {}),
        ("dictionary", ROW_GROUP, {"compression": "zstd", "compression_level": 1}),
        ("plain", ROW_GROUP, {"compression": "none", "use_dictionary": False}),
        ("plain", ROW_GROUP, {"use_dictionary": False}),
        ("plain", ROW_GROUP, {"compression": "zstd", "compression_level": 1, "use_dictionary": False}),
        (
            "byte stream split",
            ROW_GROUP,
            {
                "compression": "zstd",
                "compression_level": 1,
                "use_dictionary": False,
                "column_encoding": split,
            },
        ),
    ]
    for encoding, group, changes in kinds:
        chosen = {**PARQUET, **changes}
        written, read = [], []
        for _ in range(rounds):
            start = time.perf_counter()
            pq.write_table(table, folder / "options.parquet", row_group_size=group, **chosen)
            written.append(table.num_rows / (time.perf_counter() - start) / 1e6)
            start = time.perf_counter()
            file = pq.ParquetFile(folder / "options.parquet", page_checksum_verification=True)
            for number in range(file.num_row_groups):
                file.read_row_group(number, use_threads=False)
            read.append(table.num_rows / (time.perf_counter() - start) / 1e6)
        size = (folder / "options.parquet").stat().st_size / table.num_rows
        checksums = "yes" if chosen["write_page_checksum"] else "no"
        speeds = f"{statistics.median(written):.2f} | {statistics.median(read):.2f}"
        print(
            f"| {chosen['compression']} | {encoding} | {checksums} | {group:,} | {size:.1f} | {speeds} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--shuffle-rows", type=int, default=DataSettings().shuffle_rows)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps",
        type=int,
        default=100,
        help="training steps of the smallest batch; about as many rows of the largest",
    )
    parser.add_argument("--sorted-rows", type=int, default=8_000_000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        manifest = write(folder / "data", "train", tables(chosen.rows, NUM_EMBEDDINGS), NUM_EMBEDDINGS)
        size = sum(shard.bytes for shard in manifest.splits["train"].shards)
        print(
            f"{chosen.rows:,} rows of {len(NUM_EMBEDDINGS)} fields, "
            f"{size / chosen.rows:.1f} bytes a row in files\n"
        )
        speed(folder / "data", manifest, chosen.shuffle_rows, chosen.rounds)
        waiting(folder / "data", manifest, chosen.shuffle_rows, chosen.steps)
        quality(folder / "sorted", chosen.sorted_rows)
        options(folder, chosen.rounds)


if __name__ == "__main__":
    main()
