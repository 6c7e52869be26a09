"""A data folder whose rows are numbered, so that the rows of a batch are known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ham_dist.data.format.manifest import FORMAT_VERSION, DataField, Manifest, SplitEntry, StoredFile
from ham_dist.data.format.shards import split_schema, stored_file
from ham_dist.data.reader.batch import Batch

SEVERAL = 5
"""Table rows of the multi-valued field."""


def write_numbered(folder: Path, shards: Sequence[int], row_group: int, split: str = "train") -> Manifest:
    """Writes shards with these numbers of rows.

    Field `row` is the number of the row in the split, `several` has row % 3 ids from row % 5 on, the label is
    row % 2.
    """
    multi_valued = {"row": False, "several": True, "one": False}
    schema = split_schema(multi_valued)
    (folder / split).mkdir(parents=True)
    stored, first = [], 0
    for number, rows in enumerate(shards):
        path = folder / split / f"part-{number:05d}.parquet"
        numbers = np.arange(first, first + rows)
        several = [[(row + place) % SEVERAL for place in range(row % 3)] for row in numbers.tolist()]
        columns = [
            pa.array((numbers % 2).astype(np.int8)),
            numbers.astype(np.int32),
            pa.array(several, pa.list_(pa.int32())),
            numbers % 2,
        ]
        pq.write_table(
            pa.table([pa.array(column) for column in columns], names=schema.names).cast(schema),
            path,
            row_group_size=row_group,
        )
        stored.append(stored_file(folder, path, rows))
        first += rows
    nothing = StoredFile(file="none", rows=0, bytes=0, sha256="")
    counts = {"row": max(1, first), "several": SEVERAL, "one": 2}
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name="numbered",
        recipe=None,
        settings={},
        seed=0,
        rows_per_shard=max(shards),
        fields=tuple(
            DataField(name=name, rows=counts[name], multi_valued=several, vocabulary=nothing)
            for name, several in multi_valued.items()
        ),
        splits={split: SplitEntry(rows=first, positives=first // 2, shards=tuple(stored))},
        rows_in=first,
        rows_dropped=0,
        raw=(),
        engine={},
        truth=None,
    )
    manifest.save(folder)
    return manifest


def numbers_of(batch: Batch) -> list[int]:
    """The numbers of a batch's rows; checks that its other values belong to these rows."""
    features = batch.sparse_features.to_dict()
    rows = features["row"].values()
    assert torch.equal(batch.labels, (rows % 2).float())
    assert torch.equal(features["one"].values(), rows % 2)
    assert torch.equal(features["several"].lengths(), rows % 3)
    starts = torch.repeat_interleave(rows, rows % 3)
    within = torch.cat([torch.arange(int(row) % 3) for row in rows]) if len(rows) else rows
    assert torch.equal(features["several"].values(), (starts + within) % SEVERAL)
    return rows.tolist()
