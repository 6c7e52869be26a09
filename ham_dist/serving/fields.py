"""One function per field from a cell of a record to keys of the vocabulary, made of the recipe."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ham_dist.data.encode.columns import Kind
from ham_dist.data.encode.rules import MISSING
from ham_dist.data.recipe.fields import AnyField, Categorical, Format, MultiValued, Numeric, Time
from ham_dist.serving.cells import number_reader, text_reader, texts_reader, utf8
from ham_dist.serving.transforms import number_transform, time_transform
from ham_dist.serving.vocabulary import NO_KEY, key_of

HOURS = [f"{hour:02}" for hour in range(24)]
WEEKDAYS = [str(day) for day in range(7)]


@dataclass(frozen=True)
class FieldReader:
    """Reads one field from cells.

    Attributes:
        name: Name of the field.
        column: Column of the records that it is made from.
        kind: Content of the column.
        key: Returns the key of a cell; of a hashed field, the id itself. None if the field is multi-valued.
        keys: Returns the keys of the values of a cell, at least one. None if the field has one value.
        key_of_text: Returns the key of a value that is text.
        hashed: True if the field has no vocabulary.
    """

    name: str
    column: str
    kind: Kind
    key: Callable[[Any], int] | None
    keys: Callable[[Any], list[int]] | None
    key_of_text: Callable[[str], int]
    hashed: bool


def field_reader(
    name: str, field: AnyField, column: str, kind: Kind, format: Format, rows: int, seed: int
) -> FieldReader:
    """Returns the reader of a field.

    Args:
        rows: Rows of the table; the hash bucket size of a hashed field.
        seed: Seed of the field's keys.
    """

    def key_of_text(text: str) -> int:
        return key_of(utf8(text), seed)

    key: Callable[[Any], int] | None = None
    keys: Callable[[Any], list[int]] | None = None
    match field:
        case Categorical(hash=True):
            key = _hashed(field, format, rows)
        case Categorical():
            missing = key_of_text(MISSING) if field.missing == "own" else NO_KEY
            key = _categorical(format, seed, missing)
        case Numeric():
            key = _numeric(field, format, seed)
        case Time():
            key = _time(field, format, key_of_text)
        case MultiValued():
            keys = _multi_valued(field, format, kind, seed)
    hashed = isinstance(field, Categorical) and field.hash
    return FieldReader(name, column, kind, key, keys, key_of_text, hashed)


def _categorical(format: Format, seed: int, missing: int) -> Callable[[Any], int]:
    read, words = text_reader(format), frozenset(["", *format.null])

    def key(cell: Any) -> int:
        if type(cell) is not str:
            text = read(cell)
            return missing if text is None else key_of(utf8(text), seed)
        # As above, without two calls.
        if cell in words:
            return missing
        try:
            return key_of(cell.encode(), seed)
        except UnicodeEncodeError:
            return key_of(utf8(cell), seed)

    return key


def _hashed(field: Categorical, format: Format, rows: int) -> Callable[[Any], int]:
    read = text_reader(format)

    def id(cell: Any) -> int:
        text = read(cell)
        if text is None:
            if field.missing == "unknown":
                return 0
            text = MISSING
        return int(hashlib.md5(utf8(text), usedforsecurity=False).hexdigest()[:8], 16) % (rows - 1) + 1

    return id


def _numeric(field: Numeric, format: Format, seed: int) -> Callable[[Any], int]:
    read, transform = number_reader(format), number_transform(field)
    missing = key_of(MISSING.encode(), seed)

    def key(cell: Any) -> int:
        number = read(cell)
        return missing if number is None else key_of(b"%d" % transform(number), seed)

    return key


def _time(field: Time, format: Format, key_of_text: Callable[[str], int]) -> Callable[[Any], int]:
    read, transform = text_reader(format), time_transform(field)
    known = {value: key_of_text(value) for value in (HOURS if field.part == "hour" else WEEKDAYS)}

    def key(cell: Any) -> int:
        text = read(cell)
        if text is None:
            return NO_KEY
        value = transform(text)
        return NO_KEY if value is None else known[value]

    return key


def _multi_valued(field: MultiValued, format: Format, kind: Kind, seed: int) -> Callable[[Any], list[int]]:
    read = texts_reader(format, field.separator, kind)
    nothing = [NO_KEY]

    def keys(cell: Any) -> list[int]:
        texts: Sequence[str] = read(cell)
        return [key_of(utf8(text), seed) for text in texts] or nothing

    return keys
