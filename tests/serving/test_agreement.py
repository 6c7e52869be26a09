"""The encoder of serving gives the ids, and refuses the records, of the expressions that prepare uses.

The same values go through both: by DuckDB from a Parquet file, and by the encoder as an Arrow table and as
dicts.
"""

import math
import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ham_dist.data.recipe.fields import TIME_LAYOUTS, AnyField, Categorical, MultiValued, Numeric, Time
from ham_dist.data.recipe.load import Recipe, parse_recipe
from ham_dist.errors import DataError
from tests.support.by_duckdb import encode_by_duckdb
from tests.support.encoders import as_lists, fields_encoder, write_parquet_vocabulary

NULLS = ["NULL", "-1", "a", "12"]
SEPARATORS = [",", "|", "::", "aa", "1"]
MOST_INTEGER = 2**63 - 1

blank = st.sampled_from(["", " ", "\t", "a ", " a", "A", "\0", "a\0b", "\x1f", "a\x1fb", "missing", *NULLS])
letters = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
few = st.text(st.sampled_from("aA1|:,é\U0001f600"), max_size=6)
texts = blank | few | letters
integers = st.integers(-MOST_INTEGER - 1, MOST_INTEGER) | st.integers(-30, 30)


def _near(number: float, ulps: int) -> float:
    for _ in range(abs(ulps)):
        number = math.nextafter(number, math.inf if ulps > 0 else 0.0)
    return number


edges = st.sampled_from([0.0, -0.0, 0.5, -0.5, 2.0, 2.0000000000000004, -1.5, 1e300, -1e300, -9e18, 5e-324])
# The square of their logarithm is near a whole number: at the edge of two values.
near_edges = st.builds(
    lambda n, ulps: _near(math.exp(math.sqrt(n)), ulps), st.integers(1, 900), st.integers(-2, 2)
)
numbers = st.floats(allow_nan=False, allow_infinity=False) | edges | near_edges | st.floats(-100, 100)
number_texts = (
    numbers.map(repr)
    | integers.map(str)
    | st.from_regex(r"\A-?[0-9]{1,25}([.][0-9]{1,5})?([eE][+-]?[0-9]{1,2})?\Z")
    | st.sampled_from(["", "NULL", "-1", "1e5", ".5", "5.", " 7 ", "-0", "007"])
)
wrong_numbers = st.sampled_from(
    [
        *[
            "nan",
            "inf",
            "-Infinity",
            "1e400",
            "1e-400",
            "true",
            "one",
            "1,5",
            "1_0",
            "+1",
            "٣",
            "0x1",
            "--1",
            "1e",
            "-",
        ],
        *["\n", "\x1f", "\0", " ", "1\n", "1\0", f"0.{'0' * 330}1", "1" * 400],
    ]
)


@st.composite
def times(draw: st.DrawFn) -> str:
    """Times in all layouts, right and wrong."""
    year, month, day = draw(st.integers(1978, 2102)), draw(st.integers(0, 13)), draw(st.integers(0, 32))
    hour, minute, second = draw(st.integers(0, 25)), draw(st.integers(0, 61)), draw(st.integers(0, 62))
    date, clock = f"{year:04}-{month:02}-{day:02}", f"{hour:02}:{minute:02}:{second:02}"
    iso = [date, f"{date} {clock[:5]}", f"{date}T{clock[:2]}", f"{date}t{clock}", f"{date}T{clock}\n"]
    iso += [f"{date}T{clock}{end}" for end in ("", "Z", ",5+0100", ".25-08:00", ".", "+1")]
    digits = f"{month:02}{day:02}{hour:02}"
    whole = [f"{year % 100:02}{digits}", f"{year}{digits}", f"{year}{digits}\n", f"{year}{digits[:-1]}\u0663"]
    seconds = draw(st.integers(-5, 4_200_000_000) | st.sampled_from([315532799, 315532800, 4133980799]))
    epoch = [f"{seconds}{end}" for end in ("", ".9", "999", "e0", ".", "999.99999999999999999")]
    return draw(st.sampled_from([*iso, *whole, *epoch, f"0{seconds}", "", "NULL"]))


@st.composite
def fields(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of one field."""
    kind = draw(st.sampled_from(["categorical", "numeric", "time", "multi_valued"]))
    if kind == "categorical":
        hashed = {"hash": True, "max_rows": draw(st.integers(2, 2**31 - 1))} if draw(st.booleans()) else {}
        return {"kind": kind, "missing": draw(st.sampled_from(["own", "unknown"]))} | hashed
    if kind == "time":
        part = draw(st.sampled_from(["hour", "weekday"]))
        return {"kind": kind, "layout": draw(st.sampled_from(list(TIME_LAYOUTS))), "part": part}
    if kind == "multi_valued":
        return {"kind": kind, "separator": draw(st.sampled_from(SEPARATORS))}
    transform = draw(st.sampled_from(["log_square", "log", "quantile"]))
    numeric: dict[str, Any] = {"kind": kind, "transform": transform}
    if transform == "log":
        numeric["scale"] = draw(st.sampled_from([1.0, 10.0, 0.3, 1e6]) | st.floats(1e-3, 1e6))
    if transform == "quantile":
        numeric["boundaries"] = sorted(draw(st.sets(numbers, max_size=9)))
    return numeric


def recipe_of(settings_of: dict[str, dict[str, Any]]) -> Recipe:
    """A recipe of these fields."""
    columns = {field.get("column", name) for name, field in settings_of.items()}
    return parse_recipe(
        {
            "name": "any",
            "source": "tests",
            "format": {"separator": "\t", "null": NULLS},
            "samples": {"file": "x", "columns": ["label", *sorted(columns)]},
            "label": {"column": "label", "positive_above": 0.5, "negative_below": 0.5},
            "fields": settings_of,
        },
        where="tests",
    )


def cells_of(field: AnyField) -> st.SearchStrategy[list[Any]]:
    """Cells of one Arrow type, among them wrong ones."""
    several = st.lists(st.none() | texts, max_size=4)
    few_integers = st.lists(st.none() | integers, max_size=3)
    few_numbers = st.lists(numbers, min_size=1, max_size=2)
    one: list[st.SearchStrategy[Any]]
    match field:
        case Numeric():
            any_number = numbers | st.sampled_from([math.nan, math.inf])
            one = [
                numbers,
                integers,
                number_texts,
                number_texts | wrong_numbers,
                any_number,
                st.booleans(),
                several,
            ]
        case Time():
            one = [times(), times(), texts, integers, numbers]
        case MultiValued():
            one = [texts, several, integers, few_integers, few_numbers, numbers]
        case Categorical():
            one = [texts, texts, integers, numbers, st.booleans(), several]
    return st.sampled_from(one).flatmap(lambda cell: st.lists(st.none() | cell, min_size=1, max_size=8))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Recipe, dict[str, list[Any]]]:
    """A recipe, and cells of each of its columns."""
    settings_of = {f"f{number}": draw(fields()) for number in range(draw(st.integers(1, 3)))}
    if draw(st.booleans()):
        # Another field of the same column: a number for both, or for none.
        number = settings_of["f0"]["kind"] == "numeric"
        again = draw(fields().filter(lambda field: (field["kind"] == "numeric") == number))
        settings_of["again"] = again | {"column": "f0"}
    recipe = recipe_of(settings_of)
    columns = {name: draw(cells_of(field)) for name, field in recipe.fields.items() if name != "again"}
    rows = min(map(len, columns.values()))
    return recipe, {name: cells[:rows] for name, cells in columns.items()}


def known_values(field: AnyField, cells: list[Any]) -> list[str]:
    """Values that the field may have for these cells, and more."""
    parts = [one for cell in cells for one in (cell if isinstance(cell, list) else [cell])]
    words = {str(one) for one in parts if one is not None} | {"missing"}
    if isinstance(field, MultiValued):
        words |= {piece for word in words for piece in word.split(field.separator)}
    if isinstance(field, Numeric):
        words |= {str(number) for number in range(-40, 200)}
    if isinstance(field, Time):
        words |= {f"{hour:02}" for hour in range(24)} | set("0123456")
    return sorted(words)


@given(case=cases(), data=st.data())
@settings(max_examples=25)
def test_any_recipe_and_any_values(
    case: tuple[Recipe, dict[str, list[Any]]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    recipe, columns = case
    folder = tmp_path_factory.mktemp("any")
    for name, field in recipe.fields.items():
        values = data.draw(st.permutations(known_values(field, columns[recipe.column(name)])))
        write_parquet_vocabulary(folder / f"vocabulary/{name}.parquet", values)
    path = folder / "records.parquet"
    pq.write_table(pa.table(columns), path)
    table = pq.read_table(path)
    encoder = fields_encoder(recipe, folder / "vocabulary", folder / "hashed", where=str(path))
    records = table.to_pylist()
    try:
        expected = encode_by_duckdb(recipe, folder / "vocabulary", path).to_pydict()
    except DataError as error:
        message = str(error)
    else:
        assert as_lists(encoder.encode(table)) == expected
        assert as_lists(encoder.encode(records)) == expected
        for number, record in enumerate(records):
            one = as_lists(encoder.encode(record))
            assert one == {name: [ids[number]] for name, ids in expected.items()}
        return
    with pytest.raises(DataError) as of_table:
        encoder.encode(table)
    assert str(of_table.value) == message
    with pytest.raises(DataError) as of_dicts:
        encoder.encode(records)
    assert of_any_record(str(of_dicts.value)) == of_any_record(message)


def of_any_record(message: str) -> str:
    """A message without the number of the record and the type in a list, which differ for a whole column."""
    return re.sub("list<[^>]*>", "list", re.sub(r"record \d+ \(from 0\): ", "", message, count=1))
