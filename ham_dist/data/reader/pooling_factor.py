"""Mean pooling factor of each field, from the footers of prepared shards alone."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ham_dist.data.format.manifest import REDO, Manifest
from ham_dist.errors import DataError
from ham_dist.io.paths import open_file


def ids_per_row(folder: str | Path, manifest: Manifest) -> dict[str, float]:
    """Mean pooling factor of each field in the first training shard.

    Args:
        folder: Prepared data.
        manifest: Its manifest.
    Returns:
        Mean number of ids per row, by field. A row without ids counts as one with a single id.
    Raises:
        DataError: The shard cannot be read.
    """
    means = {field.name: 1.0 for field in manifest.fields}
    shards = manifest.splits["train"].shards
    if not shards or not any(field.multi_valued for field in manifest.fields):
        return means
    path = f"{folder}/{shards[0].file}"
    try:
        with open_file(path, "rb") as file:
            footer = pq.ParquetFile(file).metadata
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]})\n  {REDO}") from None
    for number in range(footer.num_columns):
        column = footer.row_group(0).column(number)
        field = column.path_in_schema.split(".")[0]
        if field in means:
            ids = sum(
                footer.row_group(group).column(number).num_values for group in range(footer.num_row_groups)
            )
            means[field] = ids / max(1, footer.num_rows)
    return means
