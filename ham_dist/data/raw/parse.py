"""Parses the lines of a block into columns, and collects rejected lines with their reasons.

Every row is one line, so a bad line never affects its neighbours. Every row keeps its line number.
"""

import codecs
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ham_dist.data.raw.blocks import Block
from ham_dist.data.recipe.fields import Format
from ham_dist.io.printable import printable

# Reasons to reject a line. A line with several gets the first of them.
TOO_LONG = "line too long"
NOT_TEXT = "not text in the encoding"
CONTROL = "control character"
QUOTE = "stray quote"
COLUMNS = "wrong number of columns"
NUMBER = "not a number"
MISSING_LABEL = "missing label"

# Replaces a separator of several characters. ASCII's unit separator does not occur in text.
_UNIT = b"\x1f"
_SHOWN_BYTES = 200

REJECTED_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("text", pa.string()),
    ]
)


@dataclass(frozen=True)
class RejectedLine:
    """One rejected line.

    Attributes:
        line: Line number, from 1.
        reason: One of the reasons above.
        detail: Description of the problem.
        text: Beginning of the line.
    """

    line: int
    reason: str
    detail: str
    text: str


def rejected_table(file: str, lines: Sequence[RejectedLine]) -> pa.Table:
    """Table of the rejected lines of one file, with REJECTED_SCHEMA."""
    return pa.Table.from_pylist([{"file": file} | asdict(one) for one in lines], schema=REJECTED_SCHEMA)


@dataclass(frozen=True)
class ParsedLines:
    """The parsed lines of a block.

    Attributes:
        table: The wanted columns of the good lines, as strings or float64; null is a missing value.
        lines: Line number of each row in the file, from 0, int64.
        rejected: The rejected lines, in order.
    """

    table: pa.Table
    lines: np.ndarray[Any, np.dtype[np.int64]]
    rejected: list[RejectedLine]

    def reasons(self) -> dict[str, int]:
        """Number of rejected lines by reason."""
        return dict(Counter(one.reason for one in self.rejected))


def parse(
    block: Block,
    columns: Sequence[str],
    wanted: Mapping[str, str],
    format: Format,
    required: Sequence[str] = (),
) -> ParsedLines:
    """Parses the lines of a block.

    Args:
        block: The lines.
        columns: Names of all columns of the file, left to right.
        wanted: Columns to keep -> `string` or `float64`. A line with a number that is not finite is rejected.
        format: Format of the text.
        required: Columns that must not be missing: the label's. If they are numbers, `true` counts as 1,
            `false` as 0.
    """
    first = block.start.lines
    if block.cut:
        return ParsedLines(
            _nothing(wanted), np.empty(0, np.int64), [_rejected(block.data, first, TOO_LONG, "")]
        )
    lines = _lines(block.data)
    reasons = _reasons(block.data, lines, len(columns), format)
    full = pc.binary_length(lines).to_numpy() > 1
    good = full if reasons is None else full & (reasons == "")
    rejected = []
    for place in [] if reasons is None else np.flatnonzero(full & (reasons != "")).tolist():
        line = lines[place].as_py()
        rejected.append(
            _rejected(line, first + place, reasons[place], _detail(line, reasons[place], columns, format))
        )
    places = first + np.flatnonzero(good)
    kept = lines if good.all() else lines.filter(pa.array(good))
    try:
        table = _table(kept, columns, wanted, format)
    except pa.lib.ArrowInvalid:
        table = _table_with_invalid_numbers(kept, columns, wanted, format, required)
    bad = _bad_cells(table, wanted, required)
    if bad:
        rejected += [
            _rejected(kept[n].as_py(), places[n], reason, detail) for n, (reason, detail) in bad.items()
        ]
        fine = np.ones(len(kept), dtype=bool)
        fine[list(bad)] = False
        places = places[fine]
        table = table.filter(pa.array(fine))
    return ParsedLines(table, places, sorted(rejected, key=lambda one: one.line))


def _nothing(wanted: Mapping[str, str]) -> pa.Table:
    return pa.schema([(name, _TYPES[kind]) for name, kind in wanted.items()]).empty_table()


_TYPES = {"string": pa.string(), "float64": pa.float64()}


def _lines(data: bytes) -> pa.Array:
    """Array of the lines of `data`, each with its line end; shares memory with `data`."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.Array.from_buffers(pa.binary(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _reasons(data: bytes, lines: pa.Array, columns: int, format: Format) -> Any:
    """Reason to reject each line, empty for a good line; None if all lines are good."""
    reasons = np.full(len(lines), "", dtype=object)

    def note(mask: Any, reason: str) -> None:
        if mask.any():
            reasons[mask & (reasons == "")] = reason

    lengths = pc.binary_length(lines).to_numpy() - 1
    if lengths.max(initial=0) > format.max_line_bytes:
        note(lengths > format.max_line_bytes, TOO_LONG)
    if not _is_utf8(data):
        note(np.array([not _is_utf8(line) for line in lines.to_pylist()]), NOT_TEXT)
    for letter in (b"\0", b"\r", *([_UNIT] if len(format.separator) > 1 else [])):
        if letter in data:
            note(pc.match_substring(lines, letter).to_numpy(zero_copy_only=False), CONTROL)
    plain = lines
    if format.quote and b'"' in data:
        quoted = pc.match_substring(lines, b'"').to_numpy(zero_copy_only=False)
        # Quotes must enclose whole values; a quote inside a value is doubled.
        bare, whole = f'[^"{re.escape(format.separator)}\n]*', '"(?:[^"]|"")*"'
        pattern = f"^(?:{bare}|{whole})(?:{re.escape(format.separator)}(?:{bare}|{whole}))*\n$"
        strings = lines.filter(pa.array(quoted & (reasons == ""))).cast(pa.string())
        mask = quoted & (reasons == "")
        mask[mask] = ~pc.match_substring_regex(strings, pattern).to_numpy(zero_copy_only=False)
        note(mask, QUOTE)
        plain = pc.replace_substring_regex(lines, b'"[^"]*"', b"")
    found = _count(plain, format.separator.encode()) + 1
    note((found != columns) & (lengths > 0), COLUMNS)
    return reasons if (reasons != "").any() else None


def _count(lines: pa.Array, separator: bytes) -> Any:
    """Number of separators in each line."""
    if len(separator) > 1 or lines.offset or not len(lines):
        return pc.count_substring(lines, separator).to_numpy()
    _, offsets, data = lines.buffers()
    ends = np.frombuffer(offsets, np.int32)[: len(lines) + 1]
    # Takes half the time of count_substring, which searches for substrings of any length. No line is empty,
    # since its line end is part of it.
    return np.add.reduceat(
        (np.frombuffer(data, np.uint8)[: ends[-1]] == ord(separator)).view(np.int8), ends[:-1], dtype=np.int32
    )


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _table(lines: pa.Array, columns: Sequence[str], wanted: Mapping[str, str], format: Format) -> pa.Table:
    """The wanted columns of good lines. Raises ArrowInvalid if a cell of a number column is not a number."""
    if not len(lines):
        return _nothing(wanted)
    offsets = np.frombuffer(lines.buffers()[1], np.int32)[lines.offset : lines.offset + len(lines) + 1]
    data = memoryview(lines.buffers()[2])[offsets[0] : offsets[-1]]
    separator = format.separator.encode()
    if len(separator) > 1:
        data, separator = memoryview(bytes(data).replace(separator, _UNIT)), _UNIT
    return _read(data, separator, format.quote, columns, wanted, format.null)


def _read(
    data: Any,
    separator: bytes,
    quote: str,
    columns: Sequence[str],
    wanted: Mapping[str, str],
    null: Sequence[str],
) -> pa.Table:
    if bytes(data[:3]) == codecs.BOM_UTF8:
        # Arrow would drop a byte order mark at the beginning of a block or cell, and only there.
        data = b"\n" + data
    return pyarrow.csv.read_csv(
        pa.BufferReader(pa.py_buffer(data)),
        pyarrow.csv.ReadOptions(column_names=list(columns), use_threads=False, block_size=len(data) + 1),
        pyarrow.csv.ParseOptions(delimiter=separator.decode(), quote_char=quote or False),
        pyarrow.csv.ConvertOptions(
            include_columns=list(wanted),
            column_types={name: _TYPES[kind] for name, kind in wanted.items()},
            null_values=["", *null],
            strings_can_be_null=True,
            check_utf8=False,
        ),
    )


def _table_with_invalid_numbers(
    lines: pa.Array,
    columns: Sequence[str],
    wanted: Mapping[str, str],
    format: Format,
    required: Sequence[str],
) -> pa.Table:
    """The wanted columns, with infinity where a cell is not a number.

    Each distinct cell is parsed alone, by the same parser as whole blocks.
    """
    texts = _table(lines, columns, dict.fromkeys(wanted, "string"), format)
    return pa.table(
        {
            name: numbers_of(texts[name].combine_chunks(), format, words=name in required)
            if kind == "float64"
            else texts[name]
            for name, kind in wanted.items()
        }
    )


_WORDS = {"true": 1.0, "false": 0.0}


def numbers_of(texts: pa.Array, format: Format, words: bool = False) -> pa.Array:
    """Parses strings as numbers.

    Args:
        texts: (n,) strings.
        format: Format of the text, which defines the strings that mean a missing value.
        words: If True, `true` and `false` (upper or lower case) are 1 and 0.
    Returns:
        (n,) float64: null for a missing value, infinity for a string that is not a number.
    """
    distinct = texts.dictionary_encode()
    numbers: list[float | None] = []
    for text in distinct.dictionary.to_pylist():
        if words and text.lower() in _WORDS:
            numbers.append(_WORDS[text.lower()])
            continue
        try:
            if "\n" in text or "\r" in text:  # a line end would make two lines
                raise pa.lib.ArrowInvalid
            one = _read(text.encode() + b"\n", _UNIT, "", ["x"], {"x": "float64"}, format.null)
            numbers.append(one["x"][0].as_py() if one.num_rows else None)
        except pa.lib.ArrowInvalid:
            numbers.append(float("inf"))
    return pa.array(numbers, pa.float64()).take(distinct.indices)


def _bad_cells(
    table: pa.Table, wanted: Mapping[str, str], required: Sequence[str]
) -> dict[int, tuple[str, str]]:
    """Rows with a number that is not finite, or with a missing required cell.

    Returns:
        Row -> reason and detail of the first such column.
    """
    bad: dict[int, tuple[str, str]] = {}
    for name, kind in wanted.items():
        cells = table[name].combine_chunks()
        if kind == "float64":
            wrong = pc.invert(pc.is_finite(cells)).fill_null(name in required)
            reason, detail = NUMBER, f"{printable(name)} is not a number"
        elif name in required:
            wrong, reason, detail = pc.is_null(cells), MISSING_LABEL, f"{printable(name)} is missing"
        else:
            continue
        for row in np.flatnonzero(wrong.to_numpy(zero_copy_only=False)):
            bad.setdefault(int(row), (reason, detail))
    return bad


def _rejected(line: bytes, number: int, reason: str, detail: str) -> RejectedLine:
    text = line[:_SHOWN_BYTES].decode("utf-8", "backslashreplace").rstrip("\n")
    return RejectedLine(int(number) + 1, reason, detail or _DETAILS.get(reason, reason), text)


_DETAILS = {
    TOO_LONG: "is longer than format.max_line_bytes",
    NOT_TEXT: "is not text in the recipe's encoding",
    QUOTE: "has a quote that is not around a whole value",
}


def _detail(line: bytes, reason: str, columns: Sequence[str], format: Format) -> str:
    """Description of the problem of a line; empty if the reason is enough."""
    if reason == COLUMNS:
        found = count_cells(line, format)
        return f"{found} column{'' if found == 1 else 's'}; expected {len(columns)}"
    if reason == CONTROL:
        return "has a NUL byte" if b"\0" in line else "has a line end or control character inside it"
    return ""


def count_cells(line: bytes, format: Format) -> int:
    """Number of cells in a line."""
    plain = re.sub(rb'"[^"]*"', b"", line) if format.quote else line
    return plain.count(format.separator.encode()) + 1
