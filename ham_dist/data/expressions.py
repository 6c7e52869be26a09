"""The work of preparing and of scoring as Ibis expressions, which any engine that Ibis knows can run. Nothing here reads or writes a file."""

from collections.abc import Sequence
from typing import Any

import ibis

from ham_dist.data.columns import AnyField, Categorical, Join, MultiValued, Numeric, Time

# Position of a sample in the files, from 0: the number of lines before it, and so the same whatever engine reads it. No recipe can name a column so.
ROW = "_row"
# What a field has for a sample, and the ids that come of it. They are no names of a recipe either.
VALUE, ID = "_value", "_id"
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


def values_of(samples: ibis.Table, sides: Sides, column: str, field: AnyField) -> ibis.Table:
    """ROW and VALUE: the text (or list) that a field has for each sample before it becomes ids, made from `column`. Null is unknown.

    sides: the side files, by whose keys a column comes that the samples lack; null where a key is not there.
    """
    if column not in samples.columns:
        samples = _joined(samples, sides)
    return samples.select(ROW, **{VALUE: _value(samples[column], field)})


def _joined(samples: ibis.Table, sides: Sides) -> ibis.Table:
    for join, side in sides:
        side = side.rename({f"_{join.key}_key": join.key})
        samples = samples.left_join(side, samples[join.key] == side[f"_{join.key}_key"]).drop(f"_{join.key}_key")
    return samples


def _value(cell: Any, field: AnyField) -> Any:
    match field:
        case Categorical():
            return cell if field.missing == "unknown" else cell.fill_null(MISSING)
        case Numeric():
            # A logarithm of what is not above 2 is not asked for: of 0 it is an error in DuckDB.
            logarithm = ibis.greatest(cell, 2.0).ln()
            cut = ibis.cases((cell > 2, (logarithm * logarithm).floor()), else_=_whole(cell) - 2)
            # The same word for 3 and 3.0, and for 0 and -0.0.
            return cut.cast("int64").cast("string").fill_null(MISSING)
        case Time():
            return _time_part(cell, field)
        case MultiValued():
            return cell


def _whole(number: Any) -> Any:
    """Towards 0, as Python's int; engines round in a cast, each in its way."""
    return ibis.cases((number < 0, number.ceil()), else_=number.floor())


def _time_part(cell: Any, field: Time) -> Any:
    """Null where the digits are no time. Whole numbers only, as engines differ in what they take for a date."""
    years = len(field.layout) - len("MMDDHH")
    well_written = (cell.length() == len(field.layout)) & cell.re_search("^[0-9]+$")

    def digits(first: int, count: int) -> Any:
        return ibis.ifelse(well_written, cell.substr(first, count), "0").cast("int64")

    year, month, day, hour = digits(0, years) + (2000 if years == 2 else 0), digits(years, 2), digits(years + 2, 2), digits(years + 4, 2)
    is_time = well_written & month.between(1, 12) & day.between(1, 31) & (hour <= 23)
    if field.part == "hour":
        return ibis.ifelse(is_time, cell.substr(years + 4, 2), ibis.null("string"))
    # Zeller's congruence: January and February are months 13 and 14 of the year before; 0 is Saturday.
    early = month <= 2
    year, month = year - early.cast("int64"), month + early.cast("int64") * 12
    weekday = (day + 13 * (month + 1) // 5 + year + year // 4 - year // 100 + year // 400 + 5) % 7
    return ibis.ifelse(is_time, weekday.cast("string"), ibis.null("string"))


def vocabulary_of(values: ibis.Table, separator: str | None, min_count: int, max_rows: int | None) -> ibis.Table:
    """value, id, count of the values (column VALUE) seen at least `min_count` times: ids from 1 by descending count, then by value.

    separator: what stands between the values of a multi-valued field; None for a field of one value.
    max_rows:  the most ids, 0 counted; the most frequent values get them.
    """
    cells = values.filter(values[VALUE].notnull()).group_by(VALUE).aggregate(count=lambda t: t.count())
    if separator is None:
        counted = cells.select(value=cells[VALUE], count=cells["count"])
    else:
        # Cells repeat, so they are counted before they are cut.
        counted = _pieces(cells, separator).group_by("value").aggregate(count=lambda t: t["count"].sum())
    counted = counted.filter(counted["count"] >= min_count)
    if max_rows is not None:
        counted = counted.order_by(counted["count"].desc(), counted.value.asc()).limit(max_rows - 1)
    place = ibis.row_number().over(order_by=[counted["count"].desc(), counted.value.asc()])
    return counted.select("value", id=(place + 1).cast("int32"), count=counted["count"].cast("int64")).order_by("id")


def _pieces(table: ibis.Table, separator: str) -> ibis.Table:
    """One row for each value in the column VALUE (text, or a list), with `value` and `position` beside the other columns; no empty pieces."""
    cell = table[VALUE]
    # Spark takes what it splits by for a pattern, in which this sign stands for itself.
    pieces = table.mutate(value=cell if cell.type().is_array() else cell.replace(separator, _UNIT).split(_UNIT)).unnest("value", offset="position")
    pieces = pieces.mutate(value=pieces.value.cast("string"))
    return pieces.filter(pieces.value != "")


def ids_of(values: ibis.Table, vocabulary: ibis.Table, separator: str | None) -> ibis.Table:
    """ROW and ID of `values` (ROW and VALUE), in no order: int32, or a list of int32 where there is a separator.

    A missing value, and one that the vocabulary lacks, is 0; so is a multi-valued cell without values: one id 0.
    """
    if separator is None:
        lookup = vocabulary.select(_key=vocabulary.value, _found=vocabulary.id)
        nothing = ibis.literal(0)
    else:
        lookup = _ids_of_cells(values, vocabulary, separator)
        nothing = ibis.array([ibis.literal(0)])
    found = values.left_join(lookup, values[VALUE] == lookup._key)
    return found.select(ROW, **{ID: found._found.coalesce(nothing.cast(found._found.type()))})


def _ids_of_cells(values: ibis.Table, vocabulary: ibis.Table, separator: str) -> ibis.Table:
    """Each distinct cell of a multi-valued field with its ids in the cell's order. Cells repeat: there are far fewer than samples."""
    cells = values.filter(values[VALUE].notnull()).select(VALUE).distinct()
    pieces = _pieces(cells, separator)
    lookup = vocabulary.select(_known=vocabulary.value, _id=vocabulary.id)
    pieces = pieces.left_join(lookup, pieces.value == lookup._known)
    placed = ibis.struct({"position": pieces.position, "id": pieces._id.coalesce(ibis.literal(0).cast("int32"))})
    # Not collect(order_by=...), which Spark cannot do; structs sort by their first entry.
    cells = pieces.select(VALUE, placed=placed).group_by(VALUE).aggregate(placed=lambda t: t.placed.collect())
    return cells.select(_key=cells[VALUE], _found=cells.placed.sort().map(lambda item: item["id"]))


def hashed_ids(values: ibis.Table, rows: int) -> ibis.Table:
    """ROW and ID of `values` without a vocabulary: 1 + a hash of the value into `rows` - 1, and 0 for a missing one.

    The hash is the first 32 bits of MD5, which every engine has. 32 bits over fewer than 2^31 places are even to one part in two.
    """
    digest = values[VALUE].hexdigest("md5")
    number: Any = 0
    for place in range(8):
        # The digits 0 to 9 are 48 to 57 in ASCII, a to f 97 to 102.
        code = digest.substr(place, 1).ascii_str().cast("int64")
        number = number * 16 + ibis.ifelse(code >= 97, code - 87, code - 48)
    return values.select(ROW, **{ID: (number % (rows - 1) + 1).coalesce(0).cast("int32")})
