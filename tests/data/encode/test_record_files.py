"""A record has the same ids in every kind of file: raw folder, text file, compressed, no label, Parquet."""

import gzip
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ham_dist.data.format.shards import VOCABULARY_SCHEMA, write_shard
from ham_dist.data.recipe.fields import Format
from ham_dist.data.recipe.load import Recipe, parse_recipe
from ham_dist.errors import DataError
from tests.support.encoded import encode_blocks, encode_raw, table_of

FIELDS: dict[str, Any] = {
    "site": {"kind": "categorical"},
    "city": {"kind": "categorical", "missing": "own"},
    "device": {"kind": "categorical", "hash": True, "max_rows": 1000},
    "price": {"kind": "numeric"},
    "hour": {"kind": "time", "layout": "YYMMDDHH", "part": "hour"},
    "tags": {"kind": "multi_valued", "separator": "/"},
}
COLUMNS = ("click", *FIELDS)
TEXT = ("site", "city", "device", "tags")


def make_recipe(**format: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "clicks",
            "source": "tests",
            "format": {"separator": ",", **format},
            "samples": {"file": "log", "columns": COLUMNS},
            "label": {"column": "click", "positive_above": 0.5, "negative_below": 0.5},
            "fields": FIELDS,
        },
        where="tests",
    )


def write_vocabulary(folder: Path, values: dict[str, list[str]]) -> Path:
    for field, known in values.items():
        rows = {"value": known, "id": range(1, len(known) + 1), "count": [1] * len(known)}
        table = pa.table(rows, schema=VOCABULARY_SCHEMA)
        write_shard(folder, f"{field}.parquet", [table], VOCABULARY_SCHEMA)
    return folder


def lines(format: Format, names: tuple[str, ...], rows: list[dict[str, str]], quoted: bool) -> bytes:
    def cell(text: str) -> str:
        if format.quote and (quoted or format.separator in text or '"' in text):
            return '"' + text.replace('"', '""') + '"'
        return text

    head = [format.separator.join(names)] if format.header else []
    body = [format.separator.join(cell(row[name]) for name in names) for row in rows]
    return "".join(f"{line}\n" for line in [*head, *body]).encode(format.encoding)


@st.composite
def formats(draw: st.DrawFn) -> Format:
    separator = draw(st.sampled_from([",", ";", "\t", "::", "|"]))
    return Format(
        separator=separator,
        header=draw(st.booleans()),
        quote=draw(st.sampled_from(["", '"'])) if len(separator) == 1 else "",
        encoding=draw(st.sampled_from(["utf-8", "latin-1", "utf-16"])),
        null=draw(st.sampled_from([(), ("NULL",), ("-", "\\N", "missing")])),
    )


def cells(format: Format) -> st.SearchStrategy[str]:
    """Text that the format can hold: no line ends, no separator where nothing can quote it."""
    without = "\ufeff" if format.quote else "\ufeff" + format.separator
    letters = st.characters(
        codec="latin-1" if format.encoding == "latin-1" else "utf-8",
        exclude_categories=["Cc", "Cs"],
        exclude_characters=without,
    )
    return st.text(letters, max_size=5) | st.sampled_from(["a", "b", "", "NULL", "missing", *format.null])


@st.composite
def logs(draw: st.DrawFn) -> tuple[Format, list[dict[str, str]]]:
    format = draw(formats())
    text = cells(format)
    missing = st.sampled_from(["", *format.null])
    one = st.fixed_dictionaries(
        {
            "click": st.sampled_from(["0", "1", "?", ""]),
            **dict.fromkeys(TEXT, text),
            "tags": st.lists(text, max_size=3).map("/".join),
            "price": st.floats(-1e9, 1e9).map(repr) | st.integers(-5, 10**6).map(str) | missing,
            "hour": st.sampled_from(["14102100", "14102123", "2014", "", "1 hour"]),
        }
    )
    return format, draw(st.lists(one, min_size=1, max_size=8))


def ways(folder: Path, format: Format, rows: list[dict[str, str]], quoted: bool) -> list[Path]:
    """The rows in every kind of file."""
    unlabelled = tuple(name for name in COLUMNS if name != "click")
    (folder / "raw").mkdir()
    (folder / "raw" / "log").write_bytes(lines(format, COLUMNS, rows, quoted))
    (folder / "packed").mkdir()
    (folder / "packed" / "log.gz").write_bytes(gzip.compress(lines(format, COLUMNS, rows, quoted)))
    (folder / "unlabelled").mkdir()
    (folder / "unlabelled" / "log").write_bytes(lines(format, unlabelled, rows, quoted))
    (folder / "late.csv").write_bytes(lines(format, COLUMNS, rows, quoted))
    (folder / "no suffix").write_bytes(lines(format, unlabelled, rows, quoted))
    (folder / "late.tsv.gz").write_bytes(gzip.compress(lines(format, unlabelled, rows, quoted)))
    text = {name: [row[name] for row in rows] for name in unlabelled}
    pq.write_table(pa.table(text), folder / "text.parquet")
    nulls = {name: [None if cell in ("", *format.null) else cell for cell in text[name]] for name in text}
    numbers = [None if cell is None else float(cell) for cell in nulls["price"]]
    tags = [None if cell is None else cell.split("/") for cell in nulls["tags"]]
    typed = {
        **nulls,
        "price": pa.array(numbers, pa.float64()),
        "tags": pa.array(tags, pa.list_(pa.string())),
        "site": pa.array(nulls["site"], pa.string()).dictionary_encode(),
    }
    pq.write_table(pa.table(typed), folder / "typed")
    words = {**text, "tags": pa.array([cell.split("/") for cell in text["tags"]], pa.list_(pa.string()))}
    pq.write_table(pa.table(words), folder / "words.parquet")
    return [folder / name for name in ("raw", "packed", "unlabelled", "late.csv", "no suffix", "late.tsv.gz",
                                       "text.parquet", "typed", "words.parquet")]  # fmt: skip


@given(log=logs(), quoted=st.booleans(), known=st.data())
@settings(max_examples=12, deadline=None)
def test_every_way_gives_the_same_ids(
    log: tuple[Format, list[dict[str, str]]],
    quoted: bool,
    known: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    format, rows = log
    folder = tmp_path_factory.mktemp("ways")
    recipe = make_recipe().model_copy(update={"format": format})
    values = {
        field: known.draw(st.lists(cells(format).filter(bool), unique=True, max_size=4)) for field in TEXT[:2]
    }
    for field in TEXT[:2]:  # Half of what occurs is known.
        values[field] = sorted({*values[field], *(row[field] for row in rows[::2]), "missing"} - {""})
    values["tags"] = sorted({tag for row in rows[::2] for tag in row["tags"].split("/")} - {""})
    values["price"] = ["missing", *map(str, range(-5, 400))]
    values["hour"] = ["00", "23"]
    vocabulary = write_vocabulary(folder / "vocabulary", values)
    found = {path.name: encode_raw(recipe, vocabulary, path) for path in ways(folder, format, rows, quoted)}
    expected = found.pop("raw")
    null = ("", *format.null)
    assert expected["site"].to_pylist() == [
        0
        if row["site"] in null or row["site"] not in values["site"]
        else values["site"].index(row["site"]) + 1
        for row in rows
    ]
    city = [values["city"].index("missing" if row["city"] in null else row["city"]) + 1
            if row["city"] in (*null, *values["city"]) else 0 for row in rows]  # fmt: skip
    assert expected["city"].to_pylist() == city
    for name, ids in found.items():
        assert ids.to_pydict() == expected.to_pydict(), name


@pytest.fixture
def known(tmp_path: Path) -> Path:
    return write_vocabulary(tmp_path / "vocabulary", {"site": ["a", "b"], "city": ["missing", "x"]})


def encoded(recipe: Recipe, known: Path, path: Path, fields: tuple[str, ...] = ("site",)) -> list[Any]:
    return encode_raw(recipe, known, path, fields=fields)[fields[0]].to_pylist()


def test_a_header_decides_the_columns(tmp_path: Path, known: Path) -> None:
    """In any order, with others between them, also in a raw folder."""
    (tmp_path / "raw").mkdir()
    for path in (tmp_path / "late", tmp_path / "raw" / "log"):
        path.write_text("extra;site;extra;city\n1;b;;x\n2;;;\n")
    recipe = make_recipe(separator=";", header=True)
    for given_path in (tmp_path / "late", tmp_path / "raw"):
        assert encoded(recipe, known, given_path) == [2, 0]
        assert encoded(recipe, known, given_path, ("city",)) == [2, 1]


def test_a_header_with_a_quoted_separator(tmp_path: Path, known: Path) -> None:
    (tmp_path / "late").write_text('"id, of the shop",site\n1,"b"\n')
    assert encoded(make_recipe(header=True, quote='"'), known, tmp_path / "late") == [2]


SIDES: dict[str, Any] = {
    "name": "joined",
    "source": "tests",
    "format": {"separator": "\t"},
    "samples": {"file": "log", "columns": ["click", "user"]},
    "joins": [
        {"file": "users", "key": "user", "columns": ["user", "town"]},
        {"file": "towns", "key": "town", "columns": ["town", "site"]},
    ],
    "label": {"column": "click", "positive_above": 0.5, "negative_below": 0.5},
    "fields": {"user": {"kind": "categorical"}, "site": {"kind": "categorical"}},
    "ignored": {"town": "a key only"},
}


def test_side_files_lie_next_to_a_single_file(tmp_path: Path, known: Path) -> None:
    recipe = parse_recipe(SIDES, where="tests")
    (tmp_path / "users").write_text("u1\tt1\nu2\tt2\n")
    (tmp_path / "towns.gz").write_bytes(gzip.compress(b"t1\tb\nt2\ta\n"))
    (tmp_path / "log").write_text("1\tu2\n0\tu1\n0\tu9\n")
    (tmp_path / "late").write_text("u2\nu1\nu9\n")
    pq.write_table(pa.table({"user": ["u2", "u1", "u9"]}), tmp_path / "users.parquet")
    pq.write_table(pa.table({"town": ["t2", "t1", "t9"]}), tmp_path / "towns.parquet")
    for name in ("", "log", "late", "users.parquet", "towns.parquet"):
        assert encoded(recipe, known, tmp_path / name) == [1, 2, 0], name
    (tmp_path / "users").unlink()
    with pytest.raises(
        DataError, match=r"late: lacks the column town.*\n  The recipe takes these from users: put"
    ):
        encoded(recipe, known, tmp_path / "late")


def test_a_column_is_carried_as_it_is(tmp_path: Path, known: Path) -> None:
    recipe = make_recipe(header=True, null=["NULL"])
    (tmp_path / "late").write_text("id,site,price\n007,NULL,1\nNULL,a,2.50\n,b,\n")
    values = {"id": [7, None, 9], "site": ["", "a", "b"], "price": [1.0, 2.5, None]}
    pq.write_table(pa.table(values), tmp_path / "late.parquet")

    def carried(path: Path, column: str) -> list[Any]:
        blocks = list(encode_blocks(recipe, known, path, fields=["site"], carried=column, block_rows=2))
        assert [id for block in blocks for id in table_of(block)["site"].to_pylist()] == [0, 1, 2]
        return [one for block in blocks if block.carried is not None for one in block.carried.to_pylist()]

    assert carried(tmp_path / "late", "id") == ["007", "NULL", None]
    assert carried(tmp_path / "late", "site") == ["NULL", "a", "b"]
    assert carried(tmp_path / "late", "price") == ["1", "2.50", None]
    assert carried(tmp_path / "late.parquet", "id") == [7, None, 9]
    assert carried(tmp_path / "late.parquet", "site") == ["", "a", "b"]
    with pytest.raises(
        DataError, match=r"late: lacks the column ids \(did you mean id\?\); it has id, site, price"
    ):
        carried(tmp_path / "late", "ids")


@pytest.mark.parametrize(
    ("format", "content", "message"),
    [
        ({"header": True}, "", "late: is empty; expected a first line with the column names"),
        ({"header": True}, "1,b\n", "late: lacks the column site; it has 1, b"),
        ({"header": True}, "site,site\na,b\n", "late: has 2 columns called site"),
        (
            {"header": True},
            "site\na\n\nb\n",
            "late: line 3 is empty: it could be a record with a missing value",
        ),
        (
            {},
            ",".join(COLUMNS) + "\n",
            "late: line 1 names the columns, and files of this recipe have no header",
        ),
        (
            {},
            "1,a\n0,b\n",
            r"late: line 1: 2 columns; expected 7, in '1,a'(?s:.*)Correct or delete these lines",
        ),
        ({}, "1,a,x,d,3,h,t\n" + "0,b\n" * 8, "late: and at least 3 more such lines"),
        ({"header": True}, "site\nb\x00\n", "late: line 2: has a NUL byte"),
    ],
)
def test_text_that_is_refused(
    tmp_path: Path, known: Path, format: dict[str, Any], content: str, message: str
) -> None:
    (tmp_path / "late").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        encoded(make_recipe(**format), known, tmp_path / "late")
    assert "max_rejected" not in str(caught.value)


def test_parquet_that_is_refused(tmp_path: Path, known: Path) -> None:
    write_vocabulary(tmp_path / "vocabulary", {"price": ["1"]})
    twice = pa.table([["a"], ["b"]], names=["site", "site"])
    price = pa.table({"price": ["1", "3.5", "4 EUR"]})
    for table, field, message in (
        (twice, "site", "late: has 2 columns called site"),
        (price, "price", r"late: record 2 \(from 0\): column price is 4 EUR, which is not a finite number"),
        (
            pa.table({"price": [[1.0]]}),
            "price",
            "late: column price is list<element: double>; expected numbers",
        ),
        (pa.table({"site": [1.5]}), "site", "late: column site is double; expected text or integers"),
    ):
        pq.write_table(table, tmp_path / "late")
        with pytest.raises(DataError, match=message):
            encoded(make_recipe(), known, tmp_path / "late", (field,))


def test_what_is_no_file_is_refused(tmp_path: Path, known: Path) -> None:
    os.mkfifo(tmp_path / "late")
    with pytest.raises(DataError, match="late: is not a regular file"):
        encoded(make_recipe(), known, tmp_path / "late")


def test_no_records(tmp_path: Path, known: Path) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "header").write_text("site\n")
    pq.write_table(pa.table({"site": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    assert encoded(make_recipe(), known, tmp_path / "empty") == []
    assert encoded(make_recipe(header=True), known, tmp_path / "header") == []
    assert encoded(make_recipe(), known, tmp_path / "empty.parquet") == []
