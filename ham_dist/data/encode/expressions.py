"""Encoding as Ibis expressions, for preparing. Any engine that Ibis supports can run them.

Nothing here reads or writes files.
"""

from collections.abc import Sequence
from typing import Any

import ibis

from ham_dist.data.encode.rules import MISSING, UNIT
from ham_dist.data.encode.transforms import number_value, time_value
from ham_dist.data.mixing import LOW_32, mix
from ham_dist.data.recipe.fields import AnyField, Categorical, Join, MultiValued, Numeric, Time

# Position of a sample in the files, from 0: the number of lines before it, so it is the same with every
# engine. A recipe cannot use this column name.
ROW = "_row"
# Value in a raw column, and its ids. A recipe cannot use these column names either.
CELL, ID = "_cell", "_ids"
_KEY = "_key"

Sides = Sequence[tuple[Join, ibis.Table]]
"""The side files of a recipe: settings and rows of each."""


def seed_key(seed: int) -> int:
    """Returns 32 bits that depend on the lower 64 bits of `seed`."""
    return int(mix(mix(seed & LOW_32) ^ ((seed >> 32) & LOW_32)))


def tenth_of(row: Any, seed: int) -> Any:
    """Digit that assigns the sample at position `row` to a split: 0 to 7 training, 8 validation, 9 test.

    Samples that are 2^32 positions apart have the same digit.
    """
    return mix((row & LOW_32) ^ seed_key(seed)) % 10


def cells_of(samples: ibis.Table, sides: Sides, column: str) -> ibis.Table:
    """Selects ROW and CELL (the value of `column`, null if missing) of each sample.

    Args:
        samples: The samples.
        sides: The side files, which are joined if the samples lack the column.
        column: Name of the raw column.
    """
    if column not in samples.columns:
        samples = _joined(samples, sides)
    return samples.select(ROW, **{CELL: samples[column]})


def _joined(samples: ibis.Table, sides: Sides) -> ibis.Table:
    for join, side in sides:
        side = side.rename({_KEY: join.key})
        samples = samples.left_join(side, samples[join.key] == side[_KEY]).drop(_KEY)
    return samples


def _value(cell: Any, field: AnyField) -> Any:
    """The field's value of a cell, as text or a list, before the lookup of ids. Null is unknown."""
    match field:
        case Categorical():
            return cell if field.missing == "unknown" else cell.fill_null(MISSING)
        case Numeric():
            return number_value(cell, field).fill_null(MISSING)
        case Time():
            return time_value(cell, field)
        case MultiValued():
            return cell


def counts_of(cells: ibis.Table) -> ibis.Table:
    """Each distinct CELL of `cells`, including null, with its `count`."""
    return cells.group_by(CELL).aggregate(count=lambda t: t.count())


def valued(counted: ibis.Table, field: AnyField) -> ibis.Table:
    """`counted` (see counts_of) with the field's `value` of each cell; null is unknown."""
    return counted.mutate(value=_value(counted[CELL], field))


def vocabulary_of(cells: ibis.Table, field: AnyField, min_count: int, max_rows: int | None) -> ibis.Table:
    """The vocabulary of a field: ids from 1 by descending count, then by value.

    Args:
        cells: The column CELL, or counts_of it.
        field: The field.
        min_count: Minimum count of a value to get an id.
        max_rows: Maximum number of ids, including 0; the most frequent values get them. None for no limit.
    Returns:
        Columns value, id (int32) and count (int64), ordered by id.
    """
    if isinstance(field, Categorical):
        counted = (
            cells.select(value=_value(cells[CELL], field))
            .group_by("value")
            .aggregate(count=lambda t: t.count())
        )
        counted = counted.filter(counted.value.notnull())
    else:
        # Cells repeat, so they are counted before they are transformed.
        counted = _values(cells if "count" in cells.columns else counts_of(cells), field)
        counted = counted.group_by("value").aggregate(count=lambda t: t["count"].sum())
    counted = counted.filter(counted["count"] >= min_count)
    if max_rows is not None:
        counted = counted.order_by(counted["count"].desc(), counted.value.asc()).limit(max_rows - 1)
    place = ibis.row_number().over(order_by=[counted["count"].desc(), counted.value.asc()])
    return counted.select(
        "value", id=(place + 1).cast("int32"), count=counted["count"].cast("int64")
    ).order_by("id")


def _values(table: ibis.Table, field: AnyField) -> ibis.Table:
    """One row per value of the column CELL: adds `value` and its `position` in the cell.

    Unknown cells have no row.
    """
    value = _value(table[CELL], field)
    if not isinstance(field, MultiValued):
        table = table.mutate(value=value, position=ibis.literal(0))
        return table.filter(table.value.notnull())
    # Spark's split takes a regular expression; this character is not special in one.
    pieces = table.mutate(
        value=value if value.type().is_array() else value.replace(field.separator, UNIT).split(UNIT)
    )
    pieces = pieces.unnest("value", offset="position")
    pieces = pieces.mutate(value=pieces.value.cast("string"))
    return pieces.filter(pieces.value != "")


def ids_of(cells: ibis.Table, vocabulary: ibis.Table, field: AnyField) -> ibis.Table:
    """Looks up the ids of cells in a vocabulary.

    A missing value, and a value that the vocabulary lacks, has id 0. A multi-valued cell without values has
    one id 0.

    Args:
        cells: ROW and CELL.
        vocabulary: The vocabulary of the field.
        field: The field.
    Returns:
        ROW and ID in any order; ID is int32, or a list of int32 for a multi-valued field.
    """
    if isinstance(field, Categorical):
        values = cells.select(ROW, _value=_value(cells[CELL], field))
        lookup = vocabulary.select(_key=vocabulary.value, _found=vocabulary.id)
        found = values.left_join(lookup, values._value == lookup._key)
    else:
        lookup = _ids_of_cells(cells, vocabulary, field)
        # A missing number has a value of its own, so null must match null.
        found = cells.left_join(lookup, cells[CELL].identical_to(lookup._key))
    nothing = ibis.array([ibis.literal(0)]) if isinstance(field, MultiValued) else ibis.literal(0)
    return found.select(ROW, **{ID: found._found.coalesce(nothing.cast(found._found.type()))})


def _ids_of_cells(cells: ibis.Table, vocabulary: ibis.Table, field: AnyField) -> ibis.Table:
    """Each distinct cell with its id, or with its ids in the order of the cell's values.

    Cells repeat, so there are far fewer distinct cells than samples.
    """
    values = _values(cells.select(CELL).distinct(), field)
    lookup = vocabulary.select(_known=vocabulary.value, _id=vocabulary.id)
    values = values.left_join(lookup, values.value == lookup._known)
    id = values._id.coalesce(ibis.literal(0).cast("int32"))
    if not isinstance(field, MultiValued):
        return values.select(_key=values[CELL], _found=id)
    placed = ibis.struct({"position": values.position, "id": id})
    # Spark does not support collect(order_by=...); structs are sorted by their first entry.
    lists = values.select(CELL, placed=placed).group_by(CELL).aggregate(placed=lambda t: t.placed.collect())
    return lists.select(_key=lists[CELL], _found=lists.placed.sort().map(lambda item: item["id"]))


def hashed_ids(cells: ibis.Table, field: AnyField, rows: int) -> ibis.Table:
    """Ids of cells without a vocabulary: 1 + hash of the value modulo (`rows` - 1), and 0 for a missing
    value.

    The hash is the first 32 bits of MD5, which every engine has.

    Args:
        cells: ROW and CELL.
        field: The field.
        rows: Hash bucket size, row 0 included.
    Returns:
        ROW and ID (int32).
    """
    digest = _value(cells[CELL], field).hexdigest("md5")
    number: Any = 0
    for place in range(8):
        # The digits 0 to 9 are 48 to 57 in ASCII, a to f 97 to 102.
        code = digest.substr(place, 1).ascii_str().cast("int64")
        number = number * 16 + ibis.ifelse(code >= 97, code - 87, code - 48)
    return cells.select(ROW, **{ID: (number % (rows - 1) + 1).coalesce(0).cast("int32")})
