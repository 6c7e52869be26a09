"""Changes of one file: rows of fixed size that are replaced or inserted, found and applied in blocks.

A file is a head, then one or two columns of rows, then a tail. Head and tail are stored whole. Rows come from
the old file, except those at `places`, which the patch holds. The patch file is, one after the other and
without padding: the head, the places (int64, little-endian), the changed rows of each column, and the tail.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from ham_dist.errors import BundleError
from ham_dist.export.manifest import Count, PositiveCount, RelativeName

BLOCK_BYTES = 1 << 24
"""Bytes of rows that are compared or copied at once."""
PAGE = 4096
"""Bytes of a row of a file that has no rows of its own."""
_PLACE = np.dtype("<i8")
ADVICE = "Copy the delta again from where it was written, or write it again."

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Places = np.ndarray[Any, np.dtype[np.int64]]


class Column(BaseModel):
    """Rows of fixed size, one after the other, and their place in the old file."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    row_bytes: PositiveCount
    """Bytes of a row."""
    old_start: Count
    """Place of the first row in the old file, in bytes."""
    old_rows: Count
    """Rows in the old file."""


class Patch(BaseModel):
    """Changes of one file of a bundle."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["replace", "insert"]
    """`replace`: row i is the old row i, or a changed row. `insert`: old rows keep their order, with changed
    rows between them."""
    file: RelativeName
    """The patch file in the delta."""
    head: Count
    """Bytes in front of the rows."""
    rows: Count
    """Rows of each column in the new file."""
    changed: Count
    """Rows of each column that the patch holds."""
    columns: tuple[Column, ...]
    """One column for `replace`, two for `insert`."""
    tail: Count
    """Bytes behind the rows."""

    @property
    def bytes(self) -> int:
        """Size of the patch file."""
        row = _PLACE.itemsize + sum(column.row_bytes for column in self.columns)
        return self.head + self.changed * row + self.tail


class FileRows(NamedTuple):
    """The rows of a column in a file.

    Attributes:
        start: Place of the first row in bytes.
        row_bytes: Bytes of a row.
        rows: Number of rows.
    """

    start: int
    row_bytes: int
    rows: int

    @property
    def end(self) -> int:
        """Place behind the last row."""
        return self.start + self.rows * self.row_bytes

    def read(self, path: Path) -> Bytes:
        """The rows, mapped, (rows, row_bytes)."""
        return _mapped(path, self.start, self.rows, self.row_bytes)


def _mapped(path: Path, start: int, count: int, row_bytes: int) -> Bytes:
    if not count:  # an empty file cannot be mapped
        return np.empty((0, row_bytes), np.uint8)
    return np.memmap(path, np.uint8, "r", start, (count, row_bytes))


def _blocks(rows: int, row_bytes: int) -> Iterator[slice]:
    size = max(1, BLOCK_BYTES // row_bytes)
    for first in range(0, rows, size):
        yield slice(first, min(first + size, rows))


def replaced_places(old: Bytes, new: Bytes) -> Places:
    """Places of the new rows that differ from the old row of the same place, or have none."""
    common = min(len(old), len(new))
    found = [
        np.flatnonzero((old[rows] != new[rows]).any(axis=1)) + rows.start
        for rows in _blocks(common, new.shape[1])
    ]
    return np.concatenate([*found, np.arange(common, len(new))]).astype(np.int64)


def inserted_places(old_keys: np.ndarray[Any, Any], new_keys: np.ndarray[Any, Any]) -> Places | None:
    """Places of the keys that the old ones lack; None if an old key is gone.

    Args:
        old_keys, new_keys: Ascending, without repetitions in `old_keys`.
    """
    found = []
    for rows in _blocks(len(new_keys), new_keys.itemsize):
        block = new_keys[rows]
        places = old_keys.searchsorted(block)
        known = places < len(old_keys)
        known[known] = old_keys[places[known]] == block[known]
        found.append(np.flatnonzero(~known) + rows.start)
    inserted = np.concatenate([np.empty(0, np.int64), *found]).astype(np.int64)
    return inserted if len(new_keys) - len(inserted) == len(old_keys) else None


def write_patch(path: Path, new: Path, columns: Sequence[FileRows], places: Places) -> None:
    """Write the patch file of the file `new`, whose columns are one after the other."""
    with path.open("wb") as target, new.open("rb") as source:
        target.write(source.read(columns[0].start))
        target.write(places.astype(_PLACE).tobytes())
        for column in columns:
            rows = column.read(new)
            for block in _blocks(len(places), column.row_bytes):
                target.write(np.ascontiguousarray(rows[places[block]]).data)
        source.seek(columns[-1].end)
        target.write(source.read())


def rebuilt(old: Path, patch: Patch, path: Path) -> Iterator[memoryview]:
    """Yields the content of the new file, in blocks.

    Args:
        old: The old file.
        patch: The entry of the patch.
        path: The patch file.
    Raises:
        BundleError: The patch is damaged, or does not fit the old file.
    """
    _require_fits(old, patch, path)
    with path.open("rb") as file:
        yield memoryview(file.read(patch.head))
    start = patch.head + patch.changed * _PLACE.itemsize
    places = _mapped(path, patch.head, patch.changed, _PLACE.itemsize).reshape(-1).view(_PLACE)
    _require_ascending(patch, places, path)
    fill = _replaced if patch.kind == "replace" else _inserted
    for column in patch.columns:
        of_old = _mapped(old, column.old_start, column.old_rows, column.row_bytes)
        changed = _mapped(path, start, patch.changed, column.row_bytes)
        start += changed.nbytes
        yield from _column(patch.rows, of_old, places, changed, fill)
    with path.open("rb") as file:
        file.seek(start)
        yield memoryview(file.read())


_Fill = Callable[[Bytes, slice, int, Places], Bytes]


def _column(rows: int, old: Bytes, places: Places, changed: Bytes, fill: _Fill) -> Iterator[memoryview]:
    for block in _blocks(rows, changed.shape[1]):
        first, last = places.searchsorted([block.start, block.stop])
        inside = places[first:last] - block.start
        content = fill(old, block, int(first), inside)
        if len(inside):
            content[inside] = changed[first:last]
        yield np.ascontiguousarray(content).reshape(-1).data


def _replaced(old: Bytes, block: slice, before: int, inside: Places) -> Bytes:
    """Old rows of the same places, to be overwritten at `inside`."""
    del before
    kept = old[block]
    if not len(inside):
        return kept
    content = np.empty((block.stop - block.start, old.shape[1]), np.uint8)
    content[: len(kept)] = kept
    return content


def _inserted(old: Bytes, block: slice, before: int, inside: Places) -> Bytes:
    """Old rows around the places `inside`, after `before` inserted rows in earlier blocks."""
    count, first = block.stop - block.start, block.start - before
    if not len(inside):
        return old[first : first + count]
    is_old = np.ones(count, bool)
    is_old[inside] = False
    content = np.empty((count, old.shape[1]), np.uint8)
    content[is_old] = old[first : first + count - len(inside)]
    return content


def _require_fits(old: Path, patch: Patch, path: Path) -> None:
    size = path.stat().st_size
    if size != patch.bytes:
        raise BundleError(f"{path}: {size} bytes, expected {patch.bytes}. {ADVICE}")
    if len(patch.columns) != (1 if patch.kind == "replace" else 2):
        raise BundleError(f"{path}: {len(patch.columns)} columns to {patch.kind}. {ADVICE}")
    for column in patch.columns:
        end = column.old_start + column.old_rows * column.row_bytes
        if end > old.stat().st_size:
            raise BundleError(f"{path}: reads {old} up to byte {end:,}, behind its end. {ADVICE}")


def _require_ascending(patch: Patch, places: Places, path: Path) -> None:
    """Checks that each new row is either changed or an old one."""
    ascending = not len(places) or (
        places[0] >= 0 and places[-1] < patch.rows and bool((np.diff(places) > 0).all())
    )
    for column in patch.columns:
        if patch.kind == "insert":
            whole = patch.rows == patch.changed + column.old_rows
        else:
            added = max(0, patch.rows - column.old_rows)
            whole = not added or (patch.changed >= added and places[-added] == column.old_rows)
        if not (ascending and whole):
            raise BundleError(f"{path}: its places are not those of {patch.rows:,} rows. {ADVICE}")
