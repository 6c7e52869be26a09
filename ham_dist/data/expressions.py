"""The work of preparing and of scoring as Ibis expressions, which any engine that Ibis knows can run. Nothing here reads or writes a file."""

from typing import Any

import ibis

from ham_dist.data.recipe import Join, Label

# Position of a sample in its file, from 0. No recipe can name a column so.
ROW = "_row"

_LOW_32 = 0xFFFF_FFFF


def mix(number: Any) -> Any:
    """Scatter a number in [0, 2^32) over [0, 2^32), one to one; takes a Python integer or an Ibis expression.

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


def split_of(row: Any, seed: int) -> Any:
    """`train`, `validation` or `test` (80, 10 and 10 %) for the sample at position `row` of its file. Samples 2^32 apart go together."""
    tenth = mix((row & _LOW_32) ^ seed_key(seed)) % 10
    return ibis.cases((tenth < 8, "train"), (tenth == 8, "validation"), else_="test")


def label_of(number: Any, label: Label) -> Any:
    """1, 0, or null where the sample is neither positive nor negative; int8."""
    return ibis.cases((number > label.positive_above, 1), (number < label.negative_below, 0), else_=None).cast("int8")


def joined(samples: ibis.Table, joins: list[tuple[Join, ibis.Table]]) -> ibis.Table:
    """`samples` with the columns of each side file added by its key; null where a key is not there."""
    for join, side in joins:
        side = side.drop(ROW).rename({f"_{join.key}_key": join.key})
        samples = samples.left_join(side, samples[join.key] == side[f"_{join.key}_key"]).drop(f"_{join.key}_key")
    return samples


def vocabulary_of(table: ibis.Table, field: str, separator: str | None, min_count: int) -> ibis.Table:
    """value, id, count of the values of `field` seen at least `min_count` times: ids from 1 by descending count, then by value.

    `separator` stands between the values of a multi-valued field, and is None for a field of one value.
    """
    cells = table.select(whole=table[field]).filter(lambda t: t.whole.notnull()).group_by("whole").aggregate(count=lambda t: t.count())
    if separator is None:
        counted = cells.select(value=cells.whole, count=cells["count"])
    else:
        # Cells repeat, so they are counted before they are cut.
        counted = _pieces(cells, separator).group_by("value").aggregate(count=lambda t: t["count"].sum())
    counted = counted.filter(counted["count"] >= min_count)
    place = ibis.row_number().over(order_by=[counted["count"].desc(), counted.value.asc()])
    return counted.select("value", id=(place + 1).cast("int32"), count=counted["count"].cast("int64")).order_by("id")


def _pieces(table: ibis.Table, separator: str) -> ibis.Table:
    """One row for each value in the column `whole` (text, or a list), with `value` and `position` beside the other columns; no empty pieces."""
    values = table.whole if table.whole.type().is_array() else table.whole.split(separator)
    pieces = table.mutate(value=values).unnest("value", offset="position")
    pieces = pieces.mutate(value=pieces.value.cast("string"))
    return pieces.filter(pieces.value != "")


def encoded(table: ibis.Table, vocabularies: dict[str, ibis.Table], separators: dict[str, str | None], keep: list[str]) -> ibis.Table:
    """`table` with each field of `vocabularies` as ids (int32; a list of int32 where `separators` has one), and the columns `keep` as they are.

    A missing value, and one that the vocabulary lacks, is 0; so is a multi-valued cell without values: one id 0.
    """
    ids = {}
    for field, vocabulary in vocabularies.items():
        separator = separators[field]
        key, code = f"_{field}_key", f"_{field}_id"
        if separator is None:
            lookup = vocabulary.select(**{key: vocabulary.value, code: vocabulary.id})
            nothing = ibis.literal(0)
        else:
            lookup = _encoded_cells(table, field, vocabulary, separator).rename({key: "whole", code: "ids"})
            nothing = ibis.array([ibis.literal(0)])
        table = table.left_join(lookup, table[field] == lookup[key])
        ids[field] = table[code].coalesce(nothing.cast(table[code].type()))
    return table.select(*keep, **ids)


def _encoded_cells(table: ibis.Table, field: str, vocabulary: ibis.Table, separator: str) -> ibis.Table:
    """Each distinct cell `whole` of a multi-valued field with its `ids` in the cell's order. Cells repeat: there are far fewer than samples."""
    cells = table.select(whole=table[field]).distinct()
    pieces = _pieces(cells.filter(cells.whole.notnull()), separator)
    lookup = vocabulary.select(_value=vocabulary.value, _id=vocabulary.id)
    pieces = pieces.left_join(lookup, pieces.value == lookup._value)
    placed = ibis.struct({"position": pieces.position, "id": pieces._id.coalesce(ibis.literal(0).cast("int32"))})
    # Not collect(order_by=...), which Spark cannot do; structs sort by their first entry.
    cells = pieces.select("whole", placed=placed).group_by("whole").aggregate(placed=lambda t: t.placed.collect())
    return cells.select("whole", ids=cells.placed.sort().map(lambda item: item["id"]))
