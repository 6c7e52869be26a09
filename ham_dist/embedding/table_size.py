"""One table before and after the search: an entry of sizes.json. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ham_dist.errors import CheckpointError
from ham_dist.io.untrusted import parse_json, read_bytes


@dataclass(frozen=True)
class TableSize:
    """One table before and after.

    rows:           C_j.
    base_width:     columns in the supernet.
    kept_columns:   their numbers in the supernet's table, ascending.
    searched_width: how many they are.
    stored_width:   columns in memory after the cut, padding included; 0 for a table that has left.
    bytes_before:   in the tables' precision, at the base width.
    bytes_after:    in the tables' precision, at the searched width: without padding. The run's own bundle stores float32 and float16 so; bfloat16
                    goes into it as float32, in twice as many.
    """

    field: str
    rows: int
    base_width: int
    kept_columns: list[int]
    searched_width: int
    stored_width: int
    bytes_before: int
    bytes_after: int


def read_sizes(path: Path) -> list[TableSize]:
    """The tables in a run folder's sizes.json.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        content = read_bytes(path)
        parse_json(content)  # pydantic's own parser has no limits
        sizes = TypeAdapter(list[TableSize]).validate_json(content, strict=True)
        for size in sizes:
            _check(size)
    except (OSError, ValueError) as error:
        detail = str(error)
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False, include_input=False)[0]
            detail = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise CheckpointError(
            f"{path}: is damaged: {detail}\n  Copy it again from where the run was made, or train again."
        ) from None
    return sizes


def _check(size: TableSize) -> None:
    kept = size.kept_columns
    if kept != sorted(set(kept)) or not all(0 <= column < size.base_width for column in kept):
        raise ValueError(
            f"{size.field}: kept_columns are not ascending columns of 0 to {size.base_width - 1}"
        )
    if size.searched_width != len(kept):
        raise ValueError(
            f"{size.field}: searched_width = {size.searched_width}, but {len(kept)} columns are kept"
        )
