"""Lines of a block -> columns, and the lines that are none, each with its reason.

Every row is one line, so that a bad one never takes its neighbours with it, and every row keeps the number of its line.
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

# Reasons, the first that holds counts.
TOO_LONG = "line too long"
NOT_TEXT = "not text in the encoding"
CONTROL = "control character"
QUOTE = "stray quote"
COLUMNS = "wrong number of columns"
NUMBER = "not a number"
MISSING_LABEL = "missing label"

# Stands in for a separator of several characters; text does not hold ASCII's unit separator.
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
    """One line that is no row. `line` counts from 1; `text` is its beginning."""

    line: int
    reason: str
    detail: str
    text: str


def rejected_table(file: str, lines: Sequence[RejectedLine]) -> pa.Table:
    """Bad lines of one file, as REJECTED_SCHEMA."""
    return pa.Table.from_pylist([{"file": file} | asdict(one) for one in lines], schema=REJECTED_SCHEMA)


@dataclass(frozen=True)
class ParsedLines:
    """What a block holds.

    table:    the wanted columns of the good lines, as strings or float64; null is missing.
    lines:    the number of each row's line in the file, from 0, int64.
    rejected: the bad lines, in order.
    """

    table: pa.Table
    lines: np.ndarray[Any, np.dtype[np.int64]]
    rejected: list[RejectedLine]

    def reasons(self) -> dict[str, int]:
        """How many lines are bad for which reason."""
        return dict(Counter(one.reason for one in self.rejected))


def parse(
    block: Block,
    columns: Sequence[str],
    wanted: Mapping[str, str],
    format: Format,
    required: Sequence[str] = (),
) -> ParsedLines:
    """The rows of a block.

    columns:  names of all columns of the file, left to right.
    wanted:   the columns to keep, each as `string` or `float64`. A number that is not finite is none.
    required: columns that may not be missing: the label's. If they are of numbers, `true` and `false` count as 1 and 0.
    """
    first = block.start.lines
    if block.cut:
        return ParsedLines(
            _nothing(wanted), np.empty(0, np.int64), [_rejected(block.data, first, TOO_LONG, "")]
        )
    lines = _lines(block.data)
    reasons = _faults(block.data, lines, len(columns), format)
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
        table = _tried_numbers(kept, columns, wanted, format, required)
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
    """The lines of `data`, each with its line end, without a copy."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.Array.from_buffers(pa.binary(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _faults(data: bytes, lines: pa.Array, columns: int, format: Format) -> Any:
    """For each line its reason, empty for a good one; None where all are good."""
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
        # Quotes around whole values only, and twice within them.
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
    """How often the separator stands in each line."""
    if len(separator) > 1 or lines.offset or not len(lines):
        return pc.count_substring(lines, separator).to_numpy()
    _, offsets, data = lines.buffers()
    ends = np.frombuffer(offsets, np.int32)[: len(lines) + 1]
    # Half the time of count_substring, which looks for substrings of any length. No line is empty: its line end belongs to it.
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
    """The wanted columns of lines that are rows. raises: ArrowInvalid where a number is none."""
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
        data = (
            b"\n" + data
        )  # Arrow would leave the mark out here, where a block or cell happens to begin, and nowhere else.
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


def _tried_numbers(
    lines: pa.Array,
    columns: Sequence[str],
    wanted: Mapping[str, str],
    format: Format,
    required: Sequence[str],
) -> pa.Table:
    """The wanted columns, with infinity where a number is none: each distinct cell is read alone, by what reads whole blocks."""
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
    """The numbers that `texts` (string) hold, as float64: null for what means missing, infinity for what is no number.

    Args:
        words: `true` and `false`, in any case, are 1 and 0.
    """
    distinct = texts.dictionary_encode()
    numbers: list[float | None] = []
    for text in distinct.dictionary.to_pylist():
        if words and text.lower() in _WORDS:
            numbers.append(_WORDS[text.lower()])
            continue
        try:
            if "\n" in text or "\r" in text:  # which would be two lines
                raise pa.lib.ArrowInvalid
            one = _read(text.encode() + b"\n", _UNIT, "", ["x"], {"x": "float64"}, format.null)
            numbers.append(one["x"][0].as_py() if one.num_rows else None)
        except pa.lib.ArrowInvalid:
            numbers.append(float("inf"))
    return pa.array(numbers, pa.float64()).take(distinct.indices)


def _bad_cells(
    table: pa.Table, wanted: Mapping[str, str], required: Sequence[str]
) -> dict[int, tuple[str, str]]:
    """Rows with a number that is not finite, or without a required cell, each with reason and detail of the first such column."""
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
    """What is wrong with a line, where more can be said than the reason."""
    if reason == COLUMNS:
        found = count_cells(line, format)
        return f"{found} column{'' if found == 1 else 's'} where {len(columns)} are wanted"
    if reason == CONTROL:
        return "has a NUL byte" if b"\0" in line else "has a line end or control character within it"
    return ""


def count_cells(line: bytes, format: Format) -> int:
    """The number of cells in a line."""
    plain = re.sub(rb'"[^"]*"', b"", line) if format.quote else line
    return plain.count(format.separator.encode()) + 1
