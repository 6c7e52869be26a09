"""The size of one table before and after the search, an entry of sizes.json. Needs no torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ham_dist.errors import CheckpointError
from ham_dist.io.untrusted import parse_json, read_bytes

_RENAMED = {
    "rows": "num_embeddings",
    "base_width": "base_dim",
    "searched_width": "searched_dim",
    "stored_width": "stored_dim",
}
"""Key of version 0.1.0 -> key of this version."""


@dataclass(frozen=True)
class TableSize:
    """The size of one table before and after the search.

    Attributes:
        field: The field that reads the table.
        num_embeddings: C_j.
        base_dim: Columns in the supernet.
        kept_columns: Numbers of the kept columns in the supernet's table, ascending.
        searched_dim: Number of kept columns.
        stored_dim: Columns in memory after slicing, with padding; 0 for a table that was removed.
        bytes_before: Bytes at the base dim, in the table's precision.
        bytes_after: Bytes at the searched dim, in the table's precision, without padding. The run's own
            bundle takes as many bytes for float32 and float16 tables; it stores bfloat16 tables as float32,
            in twice as many.
    """

    field: str
    num_embeddings: int
    base_dim: int
    kept_columns: list[int]
    searched_dim: int
    stored_dim: int
    bytes_before: int
    bytes_after: int


def read_sizes(path: Path) -> list[TableSize]:
    """Reads the entries of a run folder's sizes.json.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        content = parse_json(read_bytes(path))  # pydantic's own parser has no limits
        sizes = TypeAdapter(list[TableSize]).validate_json(json.dumps(_migrated(content)), strict=True)
        for size in sizes:
            _check(size)
    except (OSError, ValueError) as error:
        detail = str(error)
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False, include_input=False)[0]
            detail = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise CheckpointError(
            f"{path}: is damaged: {detail}\n"
            "  Copy the file again from the original run folder, or train again."
        ) from None
    return sizes


def _migrated(content: Any) -> Any:
    """Returns the entries with the keys of version 0.1.0 replaced by those of this version."""
    if not isinstance(content, list):
        return content
    return [
        {_RENAMED.get(key, key): value for key, value in entry.items()} if isinstance(entry, dict) else entry
        for entry in content
    ]


def _check(size: TableSize) -> None:
    kept = size.kept_columns
    if kept != sorted(set(kept)) or not all(0 <= column < size.base_dim for column in kept):
        raise ValueError(f"{size.field}: kept_columns are not ascending columns of 0 to {size.base_dim - 1}")
    if size.searched_dim != len(kept):
        raise ValueError(
            f"{size.field}: searched_dim = {size.searched_dim}, but {len(kept)} columns are kept"
        )


def sparse_bytes(num_embeddings: int, dim: int, nonzeros: int, number_bytes: int) -> dict[str, int]:
    """Returns the bytes of a table with zeros in two forms, by name.

    `bitmap`: one bit for each number, and the numbers that are not 0. `csr`: these numbers, each with its
    column in as few whole bytes as the dim allows, and the first position of each row in 4 bytes (8 from 2^32
    numbers on).

    Args:
        num_embeddings: Rows.
        dim: Columns.
        nonzeros: Numbers that are not 0.
        number_bytes: Bytes of one number.
    """
    column_bytes = max(1, -(-max(0, dim - 1).bit_length() // 8))
    position_bytes = 4 if nonzeros < 1 << 32 else 8
    return {
        "bitmap": -(-num_embeddings * dim // 8) + nonzeros * number_bytes,
        "csr": nonzeros * (number_bytes + column_bytes) + (num_embeddings + 1) * position_bytes,
    }
