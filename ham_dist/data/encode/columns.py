"""Converts columns of typed records to what text in the recipe's format gives."""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ham_dist.data.raw.parse import numbers_of
from ham_dist.data.recipe.fields import AnyField, Format, MultiValued, Numeric
from ham_dist.errors import DataError

Kind = Literal["text", "texts", "number"]
"""Content of a raw column: text, text or lists of text (`texts`), or numbers."""

EXPECTED: dict[Kind, str] = {
    "text": "expected text or integers\n  Write it as text.",
    "texts": "expected text, integers or lists of them\n  Write it as text.",
    "number": "expected numbers",
}
"""End of the message about a column of another type."""
NOT_FINITE = "which is not a finite number\n  Write null for a missing number: it has a value of its own."
"""End of the message about NaN, an infinity, or text that is not a number."""


def kinds_of(fields: Iterable[tuple[str, AnyField]]) -> dict[str, Kind]:
    """Content of the raw columns that fields are made from.

    A column of two fields may have lists only if both fields are multi-valued.

    Args:
        fields: Column and settings of each field.
    """
    kinds: dict[str, Kind] = {}
    for column, field in fields:
        kind: Kind = (
            "number" if isinstance(field, Numeric) else "texts" if isinstance(field, MultiValued) else "text"
        )
        kinds[column] = kind if kinds.get(column, kind) == kind else "text"
    return kinds


def converted(column: pa.Array, kind: Kind, format: Format, where: str, name: str, first: int) -> pa.Array:
    """Converts a column to strings, lists of strings, or float64; null is a missing value.

    Args:
        column: Text, integers, lists of these for `texts`, or numbers for `number`; may be
            dictionary-encoded.
        kind: Content of the column.
        format: Format of text, which defines the strings that mean a missing value.
        where: The records, for messages.
        name: Name of the column, for messages.
        first: Number of the first record of the column, for messages.
    Raises:
        DataError: The column has another type, or a number is not finite.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if kind == "number":
        return _numbers(column, format, where, name, first)
    several = kind == "texts" and is_list(column.type)
    one = column.type.value_type if several else column.type
    # Floats are refused: the vocabulary has "1", and 1.0 as text is "1.0", so every value would be unknown.
    if not (_is_text(one) or pa.types.is_integer(one) or pa.types.is_null(one)):
        raise DataError(f"{where}: column {name} is {column.type}; {EXPECTED[kind]}")
    if not several:
        texts = column.cast(pa.string())
        return pc.if_else(_is_missing(texts, format), pa.scalar(None, pa.string()), texts)
    lists = column.cast(pa.list_(pa.string()))
    # A list of one string that means missing is a missing cell in a text file.
    single = np.flatnonzero(pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False) == 1)
    words = lists.take(pa.array(single)).flatten()
    missing = np.zeros(len(lists), dtype=bool)
    missing[single] = _is_missing(words, format).to_numpy(zero_copy_only=False)
    return lists.take(pa.array(np.arange(len(lists)), mask=missing))


def is_list(type: pa.DataType) -> bool:
    """True for the types of lists that a multi-valued column may have."""
    return pa.types.is_list(type) or pa.types.is_large_list(type)


def _is_text(type: pa.DataType) -> bool:
    return pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type)


def _is_missing(texts: pa.Array, format: Format) -> pa.Array:
    return pc.is_in(texts, pa.array(["", *format.null], pa.string()), skip_nulls=True)


def _numbers(column: pa.Array, format: Format, where: str, name: str, first: int) -> pa.Array:
    if _is_text(column.type):
        numbers = numbers_of(column.cast(pa.string()), format)
    elif (
        pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_null(column.type)
    ):
        numbers = column.cast(pa.float64(), safe=False)
    else:
        raise DataError(f"{where}: column {name} is {column.type}; {EXPECTED['number']}")
    bad = np.flatnonzero(pc.invert(pc.is_finite(numbers)).fill_null(False).to_numpy(zero_copy_only=False))
    if len(bad):
        raise DataError(
            f"{where}: record {first + bad[0]:,} (from 0): column {name} is {column[bad[0]]}, {NOT_FINITE}"
        )
    return numbers
