"""Files of records to score, read as training's files are: text in the recipe's format, or Parquet.

A record has the same columns, with the same values missing, in each kind of file. A line or value that cannot be read
stops the reading: left out, it would shift all probabilities that follow.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ham_dist.data.raw.blocks import Block, Position, read_blocks
from ham_dist.data.raw.files import SHOWN, described, header_names, sample_blocks
from ham_dist.data.raw.parse import ParsedLines, count_cells, numbers_of, parse
from ham_dist.data.recipe.fields import Format
from ham_dist.errors import DataError

log = logging.getLogger(__name__)

CARRIED = "_carried"
"""Name of a column that is handed on as it is. No recipe can name a column so."""
Kind = Literal["text", "texts", "number"]
"""Content of a raw column: text, text or lists of text, or a number."""

_MAGIC = b"PAR1"
"""First and last bytes of a Parquet file."""


class RecordFile(Protocol):
    """One file of records."""

    path: Path

    @property
    def columns(self) -> Sequence[str]:
        """Names of its columns, each once."""

    def tables(self, kinds: Mapping[str, Kind], carried: str | None) -> Iterator[pa.Table]:
        """The columns of `kinds` (string, list of string, or float64; null is missing), block by block in order; without records one empty block.

        Args:
            kinds: Columns of the file.
            carried: A column that is also handed on as it is, under the name CARRIED.
        Raises:
            DataError: A line or a value that cannot be read, with its place.
        """


def open_records(path: Path, format: Format, columns: Sequence[str], label: str | None) -> RecordFile:
    """The file of records at `path`: Parquet if it looks like that or is called .parquet, and text otherwise.

    Args:
        path: A file; text may be compressed (a name that ends in .gz, .bz2 or .zst).
        format: Of text.
        columns: Names of the columns of text without a header, left to right.
        label: The one of them that may be left out.
    """
    if not path.is_file():
        raise DataError(f"{path}: is not a regular file\n  Copy its content to a file, and give that.")
    if path.name.endswith(".parquet") or _is_parquet(path):
        return ParquetRecords(path, format)
    return TextRecords(path, format, columns, label)


def require_columns(path: Path, found: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises DataError naming each wanted column that is not found."""
    if not set(wanted) <= set(found):
        raise DataError(lacking_columns(path, found, wanted))


def lacking_columns(path: Path, found: Sequence[str], wanted: Sequence[str]) -> str:
    """Message that names each wanted column that is not found, with the nearest name there is."""
    missing = [column for column in dict.fromkeys(wanted) if column not in found]
    near = {name: get_close_matches(name, found, n=1) for name in missing}
    lacks = ", ".join(f"{name} (did you mean {near[name][0]}?)" if near[name] else name for name in missing)
    return f"{path}: lacks the column {lacks}; it has {', '.join(found)}"


class TextRecords:
    """Lines in a recipe's format. A header decides the columns; without one there are all, or all but the label."""

    def __init__(self, path: Path, format: Format, columns: Sequence[str], label: str | None) -> None:
        self.path, self._format = path, format
        head = _first_line(path, format)
        if format.header is True:
            if head is None:
                raise DataError(f"{path}: is empty; its first line must name the columns")
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
                    f"{path}: line 1 names the columns, and files of this recipe have no header\n  Delete the line."
                )
            if label is not None and found == len(columns) - 1:
                self._names.remove(label)
                log.info(
                    "%s: lines have %d columns, one fewer than the recipe's %d; read as lines without the label %s",
                    path, found, len(columns), label,
                )  # fmt: skip

    @property
    def columns(self) -> Sequence[str]:
        return list(dict.fromkeys(self._names))

    def tables(self, kinds: Mapping[str, Kind], carried: str | None) -> Iterator[pa.Table]:
        used = [*kinds, *([] if carried is None else [carried])]
        _require_once(self.path, self._names, used)
        # Columns that are not used may have any names, also one name twice. No name that is used has a control character.
        names = [name if name in used else f"\x1f{place}" for place, name in enumerate(self._names)]
        wanted = {name: "float64" if kind == "number" else "string" for name, kind in kinds.items()}
        as_it_is = self._format.model_copy(update={"null": ()})
        for block in self._blocks():
            rows = parse(block, names, wanted, self._format)
            refuse_rejected(self.path, block, rows, columns=len(names))
            if carried is None:
                yield rows.table
            else:
                text = parse(block, names, {carried: "string"}, as_it_is).table[carried]
                yield rows.table.append_column(CARRIED, text)

    def _blocks(self) -> Iterator[Block]:
        blocks = sample_blocks(self.path, self._names, self._format)
        yield next(blocks, Block(b"", Position(), Position(), share=1.0))
        yield from blocks


class ParquetRecords:
    """Rows of a Parquet file: text, whole numbers or lists of them, and numbers where the field is numeric."""

    def __init__(self, path: Path, format: Format) -> None:
        self.path, self._format = path, format
        with _reading(path), pq.ParquetFile(path) as file:
            self._names: list[str] = file.schema_arrow.names

    @property
    def columns(self) -> Sequence[str]:
        return list(dict.fromkeys(self._names))

    def tables(self, kinds: Mapping[str, Kind], carried: str | None) -> Iterator[pa.Table]:
        used = [*kinds, *([] if carried is None else [carried])]
        _require_once(self.path, self._names, used)
        first = 0
        with _reading(self.path), pq.ParquetFile(self.path, page_checksum_verification=True) as file:
            for batch in _batches(file, used):
                columns = {
                    name: self._converted(batch.column(name), name, kind, first)
                    for name, kind in kinds.items()
                }
                if carried is not None:
                    columns[CARRIED] = batch.column(carried)
                first += batch.num_rows
                yield pa.table(columns)

    def _converted(self, column: pa.Array, name: str, kind: Kind, first: int) -> pa.Array:
        """A column as text in the recipe's format would give it. `first` is the number of its first record."""
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        several = kind == "texts" and (_is_list(column.type))
        one = column.type.value_type if several else column.type
        if kind == "number":
            return self._numbers(column, name, first)
        # A vocabulary has "1", and 1.0 as text is "1.0": every value would be unknown.
        if not (_is_text(one) or pa.types.is_integer(one) or pa.types.is_null(one)):
            wanted = "text, whole numbers or lists of them" if kind == "texts" else "text or whole numbers"
            raise DataError(
                f"{self.path}: column {name} is {column.type}; wanted are {wanted}\n  Write it as text."
            )
        if not several:
            texts = column.cast(pa.string())
            return pc.if_else(self._is_missing(texts), pa.scalar(None, pa.string()), texts)
        lists = column.cast(pa.list_(pa.string()))
        # A list of one word that means missing is, as text, a cell that is missing.
        single = np.flatnonzero(pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False) == 1)
        words = lists.take(pa.array(single)).flatten()
        missing = np.zeros(len(lists), dtype=bool)
        missing[single] = self._is_missing(words).to_numpy(zero_copy_only=False)
        return lists.take(pa.array(np.arange(len(lists)), mask=missing))

    def _is_missing(self, texts: pa.Array) -> pa.Array:
        return pc.is_in(texts, pa.array(["", *self._format.null], pa.string()), skip_nulls=True)

    def _numbers(self, column: pa.Array, name: str, first: int) -> pa.Array:
        if _is_text(column.type):
            numbers = numbers_of(column.cast(pa.string()), self._format)
        elif (
            pa.types.is_integer(column.type)
            or pa.types.is_floating(column.type)
            or pa.types.is_null(column.type)
        ):
            numbers = column.cast(pa.float64(), safe=False)
        else:
            raise DataError(f"{self.path}: column {name} is {column.type}; wanted are numbers")
        bad = np.flatnonzero(pc.invert(pc.is_finite(numbers)).fill_null(False).to_numpy(zero_copy_only=False))
        if len(bad):
            raise DataError(
                f"{self.path}: record {first + bad[0]:,} (from 0): column {name} is {column[bad[0]]}, which is not a finite number\n"
                "  Leave the value out (null): a missing number has a value of its own."
            )
        return numbers


def refuse_rejected(path: Path, block: Block, rows: ParsedLines, columns: int) -> None:
    """Raises DataError if a line of the block cannot be read.

    An empty line is no record. In a file of one column it could be a record whose value is missing: it is refused.
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
            f"{path}: line {line + 1:,} is empty: a record with a missing value, or none\n"
            "  Delete it, or add a column (the label, with any value) to each line."
        )


def _first_line(path: Path, format: Format) -> bytes | None:
    """The header, or the first line that is not empty; None if there is none."""
    for block in read_blocks(path, format):
        for line in block.data.split(b"\n"):
            if line or format.header:
                return line
    return None


def _require_once(path: Path, names: Sequence[str], used: Sequence[str]) -> None:
    require_columns(path, names, used)
    twice = [name for name in dict.fromkeys(used) if names.count(name) > 1]
    if twice:
        raise DataError(
            f"{path}: has {names.count(twice[0])} columns called {twice[0]}\n  Keep the one that the field is made from."
        )


def _batches(file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    if not file.metadata.num_rows:
        yield pa.RecordBatch.from_pylist([], schema=file.schema_arrow)
    yield from file.iter_batches(columns=list(dict.fromkeys(columns)))


def _is_text(type: pa.DataType) -> bool:
    return pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type)


def _is_list(type: pa.DataType) -> bool:
    return pa.types.is_list(type) or pa.types.is_large_list(type)


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
        raise DataError(f"{path}: not a Parquet file that can be read ({reason})") from None
