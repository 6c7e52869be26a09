"""Writes generated data with planted truth (planted.py) in the format of `prepare`, one shard at a time.

An interrupted call is resumed.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ham_dist.config.synthetic import SyntheticSettings
from ham_dist.data.format.folder import already_there
from ham_dist.data.format.manifest import FORMAT_VERSION, DataField, Manifest, SplitEntry, StoredFile, Truth
from ham_dist.data.format.shards import (
    LABEL,
    ROW_GROUP,
    VOCABULARY_SCHEMA,
    shard_name,
    split_schema,
    stored_file,
    write_shard,
)
from ham_dist.data.prepare.workdir import clear_leftovers, work_on
from ham_dist.data.synthetic.planted import CHUNK, Planted, auc

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

NAME = "synthetic"
# A multiple of the chunk size, so that no chunk is in two shards.
ROWS_PER_SHARD = 5 * CHUNK
# Maximum number of test rows for the Bayes AUC and log loss: the AUC sorts them in memory.
BAYES_ROWS = 20 * CHUNK
# Values counted in one pass, 8 bytes each; a field with more values is counted alone.
_COUNTED_TOGETHER = 8_000_000
_SECONDS_PER_LINE = 10.0
# A vocabulary in Parquet takes 12 bytes per value, for any number of rows; logged above this many values.
_MANY_VALUES, _BYTES_PER_VALUE = 10_000_000, 12


def generate(settings: SyntheticSettings, out: str | Path) -> Manifest:
    """Writes generated data into the new folder `out`, in the format of `prepare`.

    Equal settings give equal rows. If `out` holds this data already, nothing is written. Shards finished by
    an earlier, interrupted call with the same settings are kept. Memory does not grow with the number of
    rows: it holds one shard, and the counts of the largest field (8 bytes per row of its table).

    Args:
        settings: Settings of the data.
        out: Output folder, which must not exist or be empty, or hold this data.
    Returns:
        The manifest of `out`, with the planted truth.
    Raises:
        DataError: The settings are invalid, or `out` holds something else.
    """
    out = Path(out)
    planted = Planted(settings)
    planted.check()
    planned: dict[str, Any] = {
        "name": NAME,
        "recipe": None,
        "settings": _written(settings),
        "seed": settings.seed,
        "rows_per_shard": ROWS_PER_SHARD,
        "raw": (),
    }
    there = already_there(out, planned)
    if there is not None:
        clear_leftovers(out)
        return there
    if (values := sum(settings.num_embeddings)) > _MANY_VALUES:
        log.info(
            "%s: the vocabularies of %s values take about %.1f GB",
            out,
            f"{values:,}",
            values * _BYTES_PER_VALUE / 1e9,
        )
    with work_on(out, planned | {"versions": _versions()}) as work:
        splits = _write_splits(planted, work.data)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            fields=tuple(_write_vocabularies(planted, work.data, splits["train"])),
            splits=splits,
            rows_in=settings.rows,
            rows_dropped=0,
            engine=_versions(),
            truth=_truth(planted),
            **planned,
        )
        manifest.save(work.data)
    return manifest


def generate_shard(planted: Planted, split: str, number: int, folder: Path) -> tuple[StoredFile, int]:
    """Writes a single shard, with the same bytes as `generate` writes, unless it exists already.

    Existing shards are complete, because shards are written atomically.

    Args:
        planted: Ground truth.
        split: Name of the split.
        number: Number of the shard, from 0.
        folder: Folder of the data.
    Returns:
        The shard's manifest entry, and its number of clicks.
    """
    file = shard_name(split, number)
    if (folder / file).exists():
        labels = pq.read_table(folder / file, columns=[LABEL], page_checksum_verification=True)[LABEL]
        return stored_file(folder, folder / file, len(labels)), pc.sum(labels).as_py()
    first = number * ROWS_PER_SHARD
    rows = min(ROWS_PER_SHARD, split_sizes(planted.settings.rows)[split] - first)
    schema = split_schema(dict.fromkeys(planted.names, False))
    chunks = (
        planted.chunk(split, (first + done) // CHUNK, min(CHUNK, rows - done))
        for done in range(0, rows, CHUNK)
    )
    return write_shard(
        folder, file, (pa.record_batch([labels, *ids], schema=schema) for ids, labels, _ in chunks), schema
    )


def split_sizes(rows: int) -> dict[str, int]:
    """Rows of each split: 80, 10 and 10 %."""
    validation = rows // 10
    return {"train": rows - 2 * validation, "validation": validation, "test": validation}


def _written(settings: SyntheticSettings) -> dict[str, Any]:
    """The settings by the manifest's keys: `cardinalities`, and `missing` only if values are missing.

    Earlier versions wrote these keys; their data stays usable.
    """
    written = settings.model_dump(mode="json", exclude=None if settings.missing else {"missing"})
    return {"cardinalities" if key == "num_embeddings" else key: value for key, value in written.items()}


def _versions() -> dict[str, str]:
    return {"numpy": np.__version__, "pyarrow": pa.__version__}


def _write_splits(planted: Planted, folder: Path) -> dict[str, SplitEntry]:
    start = last_line = time.monotonic()
    done, total = 0, planted.settings.rows
    splits = {}
    for split, rows in split_sizes(total).items():
        shards, positives = [], 0
        for number in range(-(-rows // ROWS_PER_SHARD)):
            shard, clicks = generate_shard(planted, split, number, folder)
            shards.append(shard)
            positives += clicks
            done += shard.rows
            if (now := time.monotonic()) - last_line > _SECONDS_PER_LINE:
                last_line, speed = now, done / (now - start)
                log.info(
                    "%s of %s rows, %s rows/s, %.0f s left",
                    f"{done:,}",
                    f"{total:,}",
                    f"{speed:,.0f}",
                    (total - done) / speed,
                )
        splits[split] = SplitEntry(rows=rows, positives=positives, shards=tuple(shards))
    return splits


def _write_vocabularies(planted: Planted, folder: Path, train: SplitEntry) -> Iterator[DataField]:
    """Write each field's vocabulary: the value of an id is the id as text, counted in the training split."""
    sizes = dict(zip(planted.names, planted.settings.num_embeddings, strict=True))
    for names in _counted_together(sizes):
        files = {name: f"vocabulary/{name}.parquet" for name in names}
        if not all((folder / file).exists() for file in files.values()):
            counts = {name: np.zeros(sizes[name], dtype=np.int64) for name in names}
            for shard in train.shards:
                table = pq.read_table(folder / shard.file, columns=names, page_checksum_verification=True)
                for name in names:
                    _add(counts[name], table[name].to_numpy())
            for name, file in files.items():
                write_shard(folder, file, _numbered(counts[name]), VOCABULARY_SCHEMA)
        for name, file in files.items():
            yield DataField(
                name=name,
                rows=sizes[name],
                multi_valued=False,
                vocabulary=stored_file(folder, folder / file, sizes[name] - 1),
            )


def _counted_together(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Groups of fields, in order; each group is counted in one pass over the shards."""
    names: list[str] = []
    for name, rows in sizes.items():
        if names and sum(sizes[other] for other in names) + rows > _COUNTED_TOGETHER:
            yield names
            names = []
        names.append(name)
    yield names


def _add(counts: Array, ids: Array) -> None:
    if len(counts) > len(ids):
        seen, times = np.unique(ids, return_counts=True)
        counts[seen] += times
    else:
        counts += np.bincount(ids, minlength=len(counts))


def _numbered(counts: Array) -> Iterator[pa.RecordBatch]:
    """Rows of a vocabulary whose values are the ids as text."""
    for first in range(1, len(counts), ROW_GROUP):
        ids = pa.array(np.arange(first, min(first + ROW_GROUP, len(counts)), dtype=np.int32))
        yield pa.record_batch(
            [ids.cast(pa.string()), ids, pa.array(counts[first : first + ROW_GROUP])],
            schema=VOCABULARY_SCHEMA,
        )


def _truth(planted: Planted) -> Truth:
    rows = min(split_sizes(planted.settings.rows)["test"], BAYES_ROWS)
    labels, logits = map(
        np.concatenate,
        zip(*((labels, logits) for _, labels, logits in planted.chunks("test", rows)), strict=True),
    )
    return Truth(
        planted_ranks=dict(zip(planted.names, planted.settings.planted_ranks, strict=True)),
        bayes_auc=auc(labels, logits),
        bayes_log_loss=float(np.logaddexp(0, np.where(labels == 1, -logits, logits)).mean()),
    )
