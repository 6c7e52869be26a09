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


def split_of(row: Any, seed: int) -> Any:
    """`train`, `validation` or `test` (80, 10 and 10 %) for the sample at position `row` of its file."""
    key = mix(mix(seed & _LOW_32) ^ ((seed >> 32) & _LOW_32))
    tenth = mix(mix((row & _LOW_32) ^ key) ^ (row >> 32)) % 10
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


def vocabulary_of(values: ibis.Table, min_count: int) -> ibis.Table:
    """value, id, count of the values (column `value`) seen at least `min_count` times: ids from 1 by descending count, then by value."""
    counted = values.filter(values.value.notnull()).group_by("value").aggregate(count=lambda t: t.count())
    counted = counted.filter(counted["count"] >= min_count)
    place = ibis.row_number().over(order_by=[counted["count"].desc(), counted.value.asc()])
    return counted.select("value", id=(place + 1).cast("int32"), count=counted["count"].cast("int64")).order_by("id")


def single_values(table: ibis.Table, field: str) -> ibis.Table:
    """One row a sample: `value`."""
    return table.select(value=table[field])


def several_values(table: ibis.Table, field: str, separator: str) -> ibis.Table:
    """One row for each value of each sample: `value`."""
    return _pieces(table.select(whole=table[field]), separator).select("value")


def _pieces(table: ibis.Table, separator: str) -> ibis.Table:
    """One row for each value in the column `whole` (text, or a list): whole, value, position. Empty pieces are left out."""
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
    pieces = pieces.mutate(_id=pieces._id.coalesce(ibis.literal(0).cast("int32")))
    return pieces.group_by("whole").aggregate(ids=pieces._id.collect(order_by=pieces.position))
