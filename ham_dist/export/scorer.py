"""Probabilities of records by a bundle alone: what `ham-dist score` does. Needs torch, but neither TorchRec nor a process group."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ham_dist.errors import BundleError
from ham_dist.export.bundle import open_bundle
from ham_dist.export.files import writing
from ham_dist.export.records import Values, read_blocks

BLOCK_ROWS = 65_536
"""Records in memory at a time."""
SUFFIXES = (".txt", ".csv", ".parquet")
_SCHEMA = pa.schema([("probability", pa.float32())])


@torch.inference_mode()
def score(
    bundle_path: str | Path,
    input_path: str | Path,
    out_path: str | Path,
    values: Values = "auto",
    block_rows: int = BLOCK_ROWS,
) -> int:
    """Write the probability of each record of `input_path`, in its order, and give their number.

    bundle_path: folder of a bundle of kind `ctr`.
    input_path:  raw records, or ids in Parquet; see `records.read_blocks`, also for `values`.
    out_path:    .txt (one number a line), .csv (the same under the header `probability`) or .parquet (a float32 column `probability`); what is there
                 is replaced when all is scored, and stays where scoring fails.
    block_rows:  records in memory at a time (raw records of one file are first turned into ids as a whole, 4 bytes an id).
    raises:      BundleError for the bundle and the output, DataError for the input.
    """
    out = Path(out_path)
    if out.suffix not in SUFFIXES:
        raise BundleError(f"{out}: ends in {out.suffix!r}; give a name that ends in {', '.join(SUFFIXES)}")
    bundle = open_bundle(bundle_path)
    model = bundle.model()
    read = set(model.read_fields)
    fields = [field for field in bundle.manifest.fields if field.name in read]
    rows = 0
    with _output(out) as write:
        for block in read_blocks(bundle, input_path, fields, values, block_rows):
            probabilities = torch.sigmoid(model(block))
            write(probabilities)
            rows += len(probabilities)
    return rows


@contextmanager
def _output(out: Path) -> Iterator[Callable[[torch.Tensor], None]]:
    """Takes probabilities block by block; the file gets its name when all are there."""
    partial = out.with_name(out.name + ".partial")
    try:
        with writing(out):
            if out.suffix == ".parquet":
                with pq.ParquetWriter(partial, _SCHEMA) as writer:
                    yield lambda block: writer.write_table(pa.table([block.numpy()], schema=_SCHEMA))
            else:
                with partial.open("w", encoding="utf-8") as file:
                    file.write("probability\n" if out.suffix == ".csv" else "")
                    # 9 digits give the same float32 back.
                    yield lambda block: file.writelines(
                        f"{probability:.9g}\n" for probability in block.tolist()
                    )
            os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
