"""Reads records and their cells: text, lists of text, and numbers, as `data.encode.columns` reads columns."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from ham_dist.data.encode.columns import EXPECTED, NOT_FINITE, Kind
from ham_dist.data.encode.rules import UNIT
from ham_dist.data.raw.parse import numbers_of
from ham_dist.data.recipe.fields import Format
from ham_dist.errors import DataError

# Text that Python and the parser of text files read as the same number. Other text, such as 1e5 or " 1", is
# left to that parser.
_PLAIN_NUMBER = re.compile(r"-?[0-9]{1,20}(?:[.][0-9]{1,20})?")

_SHOWN_DEPTH = 8
"""Deepest nesting whose type is named in a message."""


class WrongCell(ValueError):
    """Raised for a cell that cannot be read. The message is its end, after the name of the column."""


def text_reader(format: Format, kind: Kind = "text") -> Callable[[Any], str | None]:
    """Returns a function that reads a cell as text; None is a missing value.

    Args:
        format: Format of text, which defines the strings that mean a missing value.
        kind: Content of the column, for messages.
    """
    missing = frozenset(["", *format.null])

    def read(cell: Any) -> str | None:
        if cell is None:
            return None
        text = cell if type(cell) is str else text_of(cell, kind, cell)
        return None if text in missing else text

    return read


def texts_reader(format: Format, separator: str, kind: Kind = "texts") -> Callable[[Any], list[str]]:
    """Returns a function that reads a cell as the values of a multi-valued field, in order.

    Args:
        format: Format of text, which defines the strings that mean a missing value.
        separator: Separator between two values in text.
        kind: Content of the column: lists only in `texts`.
    """
    read_text = text_reader(format, kind)
    missing = frozenset(["", *format.null])

    def read(cell: Any) -> list[str]:
        if isinstance(cell, np.ndarray):
            cell = cell.tolist()
        if isinstance(cell, list | tuple) and kind == "texts":
            texts = [
                one if type(one) is str else text_of(one, "texts", cell) for one in cell if one is not None
            ]
            if len(cell) == 1 and texts and texts[0] in missing:
                return []
            return [text for text in texts if text]
        text = read_text(cell)
        return [] if text is None else split(text, separator)

    return read


def split(text: str, separator: str) -> list[str]:
    """Values in the text of a multi-valued field."""
    # Training's expression replaces the separator by this character first, so it separates values too.
    return [piece for piece in text.replace(separator, UNIT).split(UNIT) if piece]


def text_of(one: Any, kind: Kind, cell: Any) -> str:
    """Text of a value that is text or an integer.

    Args:
        one: The value, other than None.
        kind: Content of the column.
        cell: The cell that the value is from, for messages.
    Raises:
        WrongCell: It is something else.
    """
    if isinstance(one, str):
        return str(one)
    if isinstance(one, int | np.integer) and not isinstance(one, bool):
        try:
            return str(int(one))
        except ValueError:
            raise WrongCell(f"has an integer with too many digits; {EXPECTED[kind]}") from None
    raise WrongCell(f"is {type_name(cell)}; {EXPECTED[kind]}")


def number_reader(format: Format) -> Callable[[Any], float | None]:
    """Returns a function that reads a cell as a finite number; None is a missing value.

    Args:
        format: Format of text, which defines the strings that mean a missing value.
    """
    missing = frozenset(["", *format.null])

    def read(cell: Any) -> float | None:
        if cell is None:
            return None
        if type(cell) is not float:
            if isinstance(cell, str):
                if cell in missing:
                    return None
                number = float(cell) if _PLAIN_NUMBER.fullmatch(cell) else _parsed(cell, format)
                if number is None:
                    return None
            else:
                number = _as_float(cell)
        else:
            number = cell
        if not math.isfinite(number):
            raise WrongCell(f"is {_shown(cell)}, {NOT_FINITE}")
        return number

    return read


def _parsed(text: str, format: Format) -> float | None:
    number: float | None = numbers_of(pa.array([utf8(text)]).cast(pa.string()), format)[0].as_py()
    return number


def _as_float(cell: Any) -> float:
    if isinstance(cell, int | float | np.integer | np.floating) and not isinstance(cell, bool):
        try:
            return float(cell)
        except OverflowError:
            return math.inf
    raise WrongCell(f"is {type_name(cell)}; {EXPECTED['number']}")


def utf8(text: str) -> bytes:
    """Bytes of `text`.

    Raises:
        WrongCell: It has a lone surrogate.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise WrongCell("holds a lone surrogate, which is not valid text\n  Decode it as UTF-8.") from None


def type_name(cell: Any) -> str:
    """Name of a cell's type, as a column of such cells would have it."""
    if _is_deeper(cell, _SHOWN_DEPTH):  # Arrow needs seconds for the name of a type that is 1000 deep
        return f"{type(cell).__name__} that is nested too deeply"
    try:
        return str(pa.array([cell]).type)
    except (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError):
        return type(cell).__name__


def _is_deeper(cell: Any, depth: int) -> bool:
    """True if containers in `cell` are nested more than `depth` deep."""
    if not isinstance(cell, list | tuple | dict):
        return False
    inner = cell.values() if isinstance(cell, dict) else cell
    return depth == 0 or any(_is_deeper(one, depth - 1) for one in inner)


def _shown(cell: Any) -> str:
    # Of all integers, only those beyond 10^308 are not finite numbers.
    return "a large integer" if isinstance(cell, int | np.integer) else str(cell)


def listed(records: Any) -> list[Any]:
    """Returns the records of an iterable.

    Raises:
        DataError: It is none, or a text.
    """
    if isinstance(records, str | bytes) or not isinstance(records, Iterable):
        raise DataError(
            f"records: {type(records).__name__}; expected a dict, a list of dicts or an Arrow table"
        )
    return list(records)
