"""The work of preparing and of scoring as Ibis expressions, which any engine that Ibis knows can run. Nothing here reads or writes a file."""

from collections.abc import Sequence
from typing import Any

import ibis

from ham_dist.data.encode.transforms import number_value, time_value
from ham_dist.data.recipe.fields import AnyField, Categorical, Join, MultiValued, Numeric, Time

# Position of a sample in the files, from 0: the number of lines before it, and so the same whatever engine reads it. No recipe can name a column so.
ROW = "_row"
# What stands in a sample's column, and the ids that come of it. They are no names of a recipe either.
CELL, ID = "_cell", "_ids"
_KEY = "_key"
# The value of a missing number, and of a missing category that is a value of its own.
MISSING = "missing"

Sides = Sequence[tuple[Join, ibis.Table]]
"""The side files of a recipe, each with its rows."""

_LOW_32 = 0xFFFF_FFFF
# ASCII's unit separator, which text does not hold.
_UNIT = "\x1f"


def mix(number: Any) -> Any:
    """Scatter a number in [0, 2^32) over [0, 2^32), one to one; takes a Python integer, an array of int64 or an Ibis expression.

    An engine's own hash differs from engine to engine and from version to version; xor, shift, multiply and mask do not. Both factors are below
    2^31, so that no product leaves a signed 64-bit integer (engines disagree on what happens there).
    source: the xorshift-multiply form and these constants come from the search "hash-prospector" (two rounds).
    """
    number = number ^ (number >> 15)
    number = (number * 0x2C1B_3C6D) & _LOW_32
    number = number ^ (number >> 12)
    number = (number * 0x297A_2D39) & _LOW_32
    return number ^ (number >> 15)


def seed_key(seed: int) -> int:
    """32 bits that depend on the lower 64 of `seed`."""
    return int(mix(mix(seed & _LOW_32) ^ ((seed >> 32) & _LOW_32)))


def tenth_of(row: Any, seed: int) -> Any:
    """A digit for the sample at position `row`: 0 to 7 is training, 8 validation, 9 test. Samples 2^32 apart go together."""
    return mix((row & _LOW_32) ^ seed_key(seed)) % 10


def cells_of(samples: ibis.Table, sides: Sides, column: str) -> ibis.Table:
    """ROW and CELL of each sample: what stands in `column`, null where nothing does.

    sides: the side files, by whose keys a column comes that the samples lack.
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
    """The text (or list) that a field makes of a cell, before it becomes ids. Null is unknown."""
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
    """Each distinct CELL of `cells`, null too, with its `count`."""
    return cells.group_by(CELL).aggregate(count=lambda t: t.count())


def valued(counted: ibis.Table, field: AnyField) -> ibis.Table:
    """`counted` (see counts_of) with the `value` that the field makes of each cell; null is unknown."""
    return counted.mutate(value=_value(counted[CELL], field))


def vocabulary_of(cells: ibis.Table, field: AnyField, min_count: int, max_rows: int | None) -> ibis.Table:
    """value, id, count of the values that `cells` hold at least `min_count` times: ids from 1 by descending count, then by value.

    Args:
        cells: The column CELL, or counts_of it.
        max_rows: The most ids, 0 counted; the most frequent values get them.
    """
    if isinstance(field, Categorical):
        counted = (
            cells.select(value=_value(cells[CELL], field))
            .group_by("value")
            .aggregate(count=lambda t: t.count())
        )
        counted = counted.filter(counted.value.notnull())
    else:
        # Cells repeat, so they are counted before something is made of them.
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
    """One row for each value of the column CELL, with `value` and its `position` in the cell beside the other columns; none for unknown cells."""
    value = _value(table[CELL], field)
    if not isinstance(field, MultiValued):
        table = table.mutate(value=value, position=ibis.literal(0))
        return table.filter(table.value.notnull())
    # Spark takes what it splits by for a pattern, in which this sign stands for itself.
    pieces = table.mutate(
        value=value if value.type().is_array() else value.replace(field.separator, _UNIT).split(_UNIT)
    )
    pieces = pieces.unnest("value", offset="position")
    pieces = pieces.mutate(value=pieces.value.cast("string"))
    return pieces.filter(pieces.value != "")


def ids_of(cells: ibis.Table, vocabulary: ibis.Table, field: AnyField) -> ibis.Table:
    """ROW and ID of `cells` (ROW and CELL), in no order: int32, or a list of int32 where the field is multi-valued.

    A missing value, and one that the vocabulary lacks, is 0; so is a multi-valued cell without values: one id 0.
    """
    if isinstance(field, Categorical):
        values = cells.select(ROW, _value=_value(cells[CELL], field))
        lookup = vocabulary.select(_key=vocabulary.value, _found=vocabulary.id)
        found = values.left_join(lookup, values._value == lookup._key)
    else:
        lookup = _ids_of_cells(cells, vocabulary, field)
        # A missing number has a value, so null must find null.
        found = cells.left_join(lookup, cells[CELL].identical_to(lookup._key))
    nothing = ibis.array([ibis.literal(0)]) if isinstance(field, MultiValued) else ibis.literal(0)
    return found.select(ROW, **{ID: found._found.coalesce(nothing.cast(found._found.type()))})


def _ids_of_cells(cells: ibis.Table, vocabulary: ibis.Table, field: AnyField) -> ibis.Table:
    """Each distinct cell with its id, or its ids in the cell's order. Cells repeat: there are far fewer than samples."""
    values = _values(cells.select(CELL).distinct(), field)
    lookup = vocabulary.select(_known=vocabulary.value, _id=vocabulary.id)
    values = values.left_join(lookup, values.value == lookup._known)
    id = values._id.coalesce(ibis.literal(0).cast("int32"))
    if not isinstance(field, MultiValued):
        return values.select(_key=values[CELL], _found=id)
    placed = ibis.struct({"position": values.position, "id": id})
    # Not collect(order_by=...), which Spark cannot do; structs sort by their first entry.
    lists = values.select(CELL, placed=placed).group_by(CELL).aggregate(placed=lambda t: t.placed.collect())
    return lists.select(_key=lists[CELL], _found=lists.placed.sort().map(lambda item: item["id"]))


def hashed_ids(cells: ibis.Table, field: AnyField, rows: int) -> ibis.Table:
    """ROW and ID of `cells` without a vocabulary: 1 + a hash of the value into `rows` - 1, and 0 for a missing one.

    The hash is the first 32 bits of MD5, which every engine has.
    """
    digest = _value(cells[CELL], field).hexdigest("md5")
    number: Any = 0
    for place in range(8):
        # The digits 0 to 9 are 48 to 57 in ASCII, a to f 97 to 102.
        code = digest.substr(place, 1).ascii_str().cast("int64")
        number = number * 16 + ibis.ifelse(code >= 97, code - 87, code - 48)
    return cells.select(ROW, **{ID: (number % (rows - 1) + 1).coalesce(0).cast("int32")})
