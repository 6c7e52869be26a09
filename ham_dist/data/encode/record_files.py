"""Reads files of records to score: text in the recipe's format, or Parquet.

A record has the same columns and the same missing values in each kind of file, and as in training. A line or
value that cannot be read is an error: skipping it would shift all probabilities after it.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from ham_dist.data.encode.columns import Kind, converted
from ham_dist.data.raw.blocks import Block, Position, read_blocks
from ham_dist.data.raw.files import SHOWN, described, header_names, sample_blocks
from ham_dist.data.raw.parse import ParsedLines, count_cells, parse
from ham_dist.data.recipe.fields import Format
from ham_dist.errors import DataError

log = logging.getLogger(__name__)

CARRIED = "_carried"
"""Name of a column that is returned unchanged. A recipe cannot use this column name."""

_MAGIC = b"PAR1"
"""First and last bytes of a Parquet file."""


class RecordFile(Protocol):
    """A file of records to score."""

    path: Path

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns, without duplicates."""

    def tables(self, kinds: Mapping[str, Kind], carried: str | None) -> Iterator[pa.Table]:
        """Reads the columns of `kinds` block by block, in order.

        Args:
            kinds: Column name -> its content.
            carried: A column that is also returned unchanged, under the name CARRIED.
        Returns:
            Tables of string, list of string, or float64 columns; null is a missing value. If the file has no
            records, one empty table.
        Raises:
            DataError: A line or a value cannot be read; the message has its position.
        """


def open_records(path: Path, format: Format, columns: Sequence[str], label: str | None) -> RecordFile:
    """Opens a file of records. It is read as Parquet if its content or its suffix is Parquet, otherwise as
    text.

    Args:
        path: The file; text may be compressed (a name that ends in .gz, .bz2 or .zst).
        format: Format of text files.
        columns: Column names of text without a header, left to right.
        label: The column that may be left out.
    Raises:
        DataError: It is not a regular file, or it cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path}: is not a regular file\n  Copy its content to a file, and give that.")
    if path.name.endswith(".parquet") or _is_parquet(path):
        return ParquetRecords(path, format)
    return TextRecords(path, format, columns, label)


def require_columns(path: Path, found: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises DataError if wanted columns are missing; the message lists all of them."""
    if not set(wanted) <= set(found):
        raise DataError(lacking_columns(path, found, wanted))


def lacking_columns(path: Path | str, found: Sequence[str], wanted: Sequence[str]) -> str:
    """Message that lists all missing columns, each with the most similar name in the file."""
    missing = [column for column in dict.fromkeys(wanted) if column not in found]
    near = {name: get_close_matches(name, found, n=1) for name in missing}
    lacks = ", ".join(f"{name} (did you mean {near[name][0]}?)" if near[name] else name for name in missing)
    return f"{path}: lacks the column {lacks}; it has {', '.join(found)}"


class TextRecords:
    """A text file in the recipe's format.

    The header gives the columns. Without a header, the file has all columns of the recipe, or all but the
    label.
    """

    def __init__(self, path: Path, format: Format, columns: Sequence[str], label: str | None) -> None:
        self.path, self._format = path, format
        head = _first_line(path, format)
        if format.header is True:
            if head is None:
                raise DataError(f"{path}: is empty; expected a first line with the column names")
            self._names = header_names(head, format)
        else:
            self._names = list(columns)
            found = len(columns) if head is None else count_cells(head, format)
            if (
                head is not None
                and not format.header
                and set(header_names(head, format)) >= set(columns) - {label}
            ):
                raise DataError(
                    f"{path}: line 1 names the columns, and files of this recipe have no header\n"
                    "  Delete the line."
                )
            if label is not None and found == len(columns) - 1:
                self._names.remove(label)
                log.info(
                    "%s: lines have %d columns, one fewer than the recipe's %d; "
                    "reading them as lines without the label %s",
                    path, found, len(columns), label,
                )  # fmt: skip

    @property
    def columns(self) -> Sequence[str]:
        return list(dict.fromkeys(self._names))

    def tables(self, kinds: Mapping[str, Kind], carried: str | None) -> Iterator[pa.Table]:
        used = _used_columns(self.path, self._names, kinds, carried)
        # Unused columns may have any names, even duplicate ones: they are renamed. No used name has a control
        # character.
        names = [name if name in used else f"\x1f{place}" for place, name in enumerate(self._names)]
        wanted = {name: "float64" if kind == "number" else "string" for name, kind in kinds.items()}
        unchanged = self._format.model_copy(update={"null": ()})
        for block in self._blocks():
            rows = parse(block, names, wanted, self._format)
            refuse_rejected(self.path, block, rows, columns=len(names))
            if carried is None:
                yield rows.table
            else:
                text = parse(block, names, {carried: "string"}, unchanged).table[carried]
                yield rows.table.append_column(CARRIED, text)

    def _blocks(self) -> Iterator[Block]:
        blocks = sample_blocks(self.path, self._names, self._format)
        yield next(blocks, Block(b"", Position(), Position(), share=1.0))
        yield from blocks


class ParquetRecords:
    """A Parquet file with text, integers or lists of these, and numbers for numeric fields."""

    def __init__(self, path: Path, format: Format) -> None:
        self.path, self._format = path, format
        with _reading(path), pq.ParquetFile(path) as file:
            self._names: list[str] = file.schema_arrow.names

    @property
    def columns(self) -> Sequence[str]:
        return list(dict.fromkeys(self._names))

    def tables(self, kinds: Mapping[str, Kind], carried: str | None) -> Iterator[pa.Table]:
        used = _used_columns(self.path, self._names, kinds, carried)
        first = 0
        with _reading(self.path), pq.ParquetFile(self.path, page_checksum_verification=True) as file:
            for batch in _batches(file, used):
                columns = {
                    name: converted(batch.column(name), kind, self._format, f"{self.path}", name, first)
                    for name, kind in kinds.items()
                }
                if carried is not None:
                    columns[CARRIED] = batch.column(carried)
                first += batch.num_rows
                yield pa.table(columns)


def refuse_rejected(path: Path, block: Block, rows: ParsedLines, columns: int) -> None:
    """Raises DataError if a line of the block was rejected.

    Empty lines are ignored. In a file of one column, an empty line could also be a record with a missing
    value, so it is an error there.
    """
    if rows.rejected:
        shown = [described(path, one) for one in rows.rejected[:SHOWN]]
        if more := len(rows.rejected) - len(shown):
            shown.append(f"{path}: and at least {more:,} more such line{'s' if more > 1 else ''}")
        raise DataError(
            "\n".join(shown) + "\n  Correct or delete these lines: each record must get a probability."
        )
    if columns == 1 and len(rows.lines) < block.end.lines - block.start.lines:
        full = set(rows.lines.tolist())
        line = next(line for line in range(block.start.lines, block.end.lines) if line not in full)
        raise DataError(
            f"{path}: line {line + 1:,} is empty: it could be a record with a missing value, or no record\n"
            "  Delete it, or add a column (the label, with any value) to each line."
        )


def _first_line(path: Path, format: Format) -> bytes | None:
    """The header, or without a header the first line that is not empty; None if there is none."""
    for block in read_blocks(path, format):
        for line in block.data.split(b"\n"):
            if line or format.header:
                return line
    return None


def _used_columns(
    path: Path, names: Sequence[str], kinds: Mapping[str, Kind], carried: str | None
) -> list[str]:
    """Returns the columns that are read: those of the fields, and the one carried to the output.

    Raises:
        DataError: One of them is missing from `names`, or is there more than once.
    """
    used = [*kinds, *([] if carried is None else [carried])]
    require_columns(path, names, used)
    twice = [name for name in dict.fromkeys(used) if names.count(name) > 1]
    if twice:
        raise DataError(
            f"{path}: has {names.count(twice[0])} columns called {twice[0]}\n"
            "  Keep only the one that the field is made from."
        )
    return used


def _batches(file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    if not file.metadata.num_rows:
        yield pa.RecordBatch.from_pylist([], schema=file.schema_arrow)
    yield from file.iter_batches(columns=list(dict.fromkeys(columns)))


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return False
        file.seek(-len(_MAGIC), 2)
        return file.read() == _MAGIC


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: is not a readable Parquet file ({reason})") from None
