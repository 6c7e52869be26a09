"""Fifty kinds of damaged input: each bad line is kept aside with its line and reason, its neighbours stay, and nothing is dropped silently."""

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ham_dist.data import text
from ham_dist.data.columns import Format
from ham_dist.data.lines import COLUMNS, CONTROL, NOT_TEXT, NUMBER, QUOTE, TOO_LONG, parse
from ham_dist.data.prepare import prepare
from ham_dist.data.recipe import Recipe, parse_recipe
from ham_dist.data.text import read_blocks
from ham_dist.errors import DataError
from tests.data.raw_everything import everything, write_everything

NAMES = ("click", "price", "site")
GOOD = b"1\t2.5\tshop"
TAB, CSV, LONG = Format(separator="\t", null=("NULL",), max_line_bytes=200), Format(separator=",", quote='"'), Format(separator="::")


def case(name: str, line: bytes, reason: str | None, format: Format = TAB) -> Any:
    return pytest.param(line, reason, format, id=name)


# None: the line is a row, strange as it looks.
CASES = [
    case("one-column", b"1", COLUMNS),
    case("two-columns", b"1\t2.5", COLUMNS),
    case("four-columns", b"1\t2.5\tshop\tx", COLUMNS),
    case("trailing-separator", b"1\t2.5\tshop\t", COLUMNS),
    case("only-separators-too-few", b"\t", COLUMNS),
    case("only-separators-too-many", b"\t\t\t", COLUMNS),
    case("spaces-for-tabs", b"1 2.5 shop", COLUMNS),
    case("other-separator", b"1,2.5,shop", COLUMNS),
    case("two-lines-in-one", GOOD + GOOD, COLUMNS),
    case("only-spaces", b"   ", COLUMNS),
    case("html", b"<html><body>404 Not Found</body></html>", COLUMNS),
    case("merge-conflict", b"<<<<<<< HEAD", COLUMNS),
    case("text-in-label", b"yes\t2.5\tshop", NUMBER),
    case("no-label", b"\t2.5\tshop", NUMBER),
    case("null-word-in-label", b"NULL\t2.5\tshop", NUMBER),
    case("nan-in-label", b"nan\t2.5\tshop", NUMBER),
    case("infinite-label", b"inf\t2.5\tshop", NUMBER),
    case("text-in-number", b"1\tcheap\tshop", NUMBER),
    case("decimal-comma", b"1\t2,5\tshop", NUMBER),
    case("thousands", b"1\t2,500.0\tshop", NUMBER),
    case("unit", b"1\t2.5EUR\tshop", NUMBER),
    case("hexadecimal-number", b"1\t0x1F\tshop", NUMBER),
    case("two-points", b"1\t2.5.1\tshop", NUMBER),
    case("lonely-minus", b"1\t-\tshop", NUMBER),
    case("half-exponent", b"1\t2e\tshop", NUMBER),
    case("nan", b"1\tnan\tshop", NUMBER),
    case("minus-infinity", b"1\t-inf\tshop", NUMBER),
    case("number-beyond-float64", b"1\t1e999\tshop", NUMBER),
    case("other-null-word", b"1\tN/A\tshop", NUMBER),
    case("wide-digits", "1\t\uff12\tshop".encode(), NUMBER),
    case("latin-1", b"1\t2.5\tK\xf6ln", NOT_TEXT),
    case("half-a-letter", b"1\t2.5\t\xe2\x82", NOT_TEXT),
    case("overlong-utf-8", b"1\t2.5\t\xc0\xaf", NOT_TEXT),
    case("surrogate", b"1\t2.5\t\xed\xa0\x80", NOT_TEXT),
    case("byte-ff", b"\xff\xfe1\t2.5\tshop", NOT_TEXT),
    case("nul-in-text", b"1\t2.5\tsh\0op", CONTROL),
    case("nul-in-number", b"1\t2\0.5\tshop", CONTROL),
    case("only-nuls", b"\0" * 40, CONTROL),
    case("carriage-return", b"1\t2.5\tsh\rop", CONTROL),
    case("two-carriage-returns", GOOD + b"\r\r", CONTROL),
    case("stand-in-for-the-separator", b"1::2\x1f5::shop", CONTROL, LONG),
    case("too-long", b"1\t2.5\t" + b"x" * 300, TOO_LONG),
    case("too-long-and-no-text", b"\xff" * 300, TOO_LONG),
    case("quote-not-closed", b'1,2.5,"shop', QUOTE, CSV),
    case("quote-not-opened", b'1,2.5,shop"', QUOTE, CSV),
    case("quote-within", b'1,2.5,sh"o"p', QUOTE, CSV),
    case("text-behind-a-quote", b'1,2.5,"shop"s', QUOTE, CSV),
    case("three-quotes", b'1,2.5,"""', QUOTE, CSV),
    case("space-before-a-quote", b'1,2.5, "shop"', QUOTE, CSV),
    case("quoted-separator-too-few", b'1,"2.5,shop"', COLUMNS, CSV),
    case("quoted-text-in-number", b'1,"cheap",shop', NUMBER, CSV),
    case("single-colon", b"1:2.5:shop", COLUMNS, LONG),
    case("three-colons", b"1:::2.5::shop", NUMBER, LONG),
    case("missing-number", b"1\t\tshop", None),
    case("null-word", b"1\tNULL\tNULL", None),
    case("quote-without-quoting", b'1\t2.5\t"shop', None),
    case("windows-line-end", GOOD + b"\r", None),
    case("quoted-quote", b'1,2.5,"a ""b"", c"', None, CSV),
    case("four-byte-letters", "1\t2.5\t🛒".encode(), None),
]


def lines_of(format: Format, line: bytes) -> bytes:
    good = GOOD.replace(b"\t", format.separator.encode())
    return b"\n".join([good, good, line, good]) + b"\n"


@pytest.mark.parametrize(("line", "reason", "format"), CASES)
def test_a_bad_line_is_kept_aside_and_its_neighbours_stay(line: bytes, reason: str | None, format: Format, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(lines_of(format, line))
    (block,) = read_blocks(tmp_path / "x", format)
    rows = parse(block, NAMES, {"click": "float64", "price": "float64", "site": "string"}, format, required=["click"])
    assert rows.reasons() == ({} if reason is None else {reason: 1})
    assert rows.lines.tolist() == ([0, 1, 2, 3] if reason is None else [0, 1, 3])
    assert rows.table.num_rows == len(rows.lines)
    assert rows.table["site"].to_pylist()[:2] == ["shop", "shop"]
    assert [one.line for one in rows.rejected] == ([] if reason is None else [3])


def test_there_are_fifty_kinds() -> None:
    assert sum(parameters.values[1] is not None for parameters in CASES) >= 50


@pytest.fixture
def recipe() -> Recipe:
    return recipe_of(max_rejected=0.05)


def recipe_of(**changes: Any) -> Recipe:
    settings = {
        "name": "damaged",
        "source": "tests",
        "format": {"separator": "\t", "max_line_bytes": 200},
        "samples": {"file": "log", "columns": list(NAMES)},
        "label": {"column": "click", "positive_above": 0.5, "negative_below": 0.5},
        "fields": {"price": {"kind": "numeric"}, "site": {"kind": "categorical"}},
    }
    return parse_recipe(settings | changes, where="tests")


def write_log(path: Path, bad: Iterable[bytes], rows: int = 1000) -> None:
    """Good lines, every 40th followed by a bad one."""
    waiting = list(bad)
    lines = []
    for row in range(rows):
        lines.append(b"%d\t%d\ts%d" % (row % 2, row % 7, row % 5))
        if row % 40 == 0 and waiting:
            lines.append(waiting.pop(0))
    path.write_bytes(b"\n".join(lines) + b"\n")


BAD = [b"1\t2", b"x\t1\ts1", b"1\t1\t\xff", b"1\t\0\ts1", b"1\t1\t" + b"y" * 300, b"", b"1\t1\ts1\t1"]


@pytest.mark.parametrize("block_bytes", [1 << 20, 100])
def test_nothing_is_dropped_silently(recipe: Recipe, tmp_path: Path, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of a block: with 100 bytes, the line of 300 does not fit into one."""
    monkeypatch.setattr(text, "BLOCK_BYTES", block_bytes)
    write_log(tmp_path / "log", BAD)
    manifest = prepare(recipe, tmp_path, tmp_path / "out")
    assert manifest.rows_in == 1006
    assert sum(split.rows for split in manifest.splits.values()) == 1000
    assert manifest.rejected.samples == 6
    assert manifest.rejected.reasons == {COLUMNS: 2, CONTROL: 1, NUMBER: 1, TOO_LONG: 1, NOT_TEXT: 1}
    assert manifest.rejected.stored is not None
    kept = pq.read_table(tmp_path / "out" / manifest.rejected.stored.file).to_pylist()
    assert [(one["file"], one["line"], one["reason"]) for one in kept] == [
        ("log", 2, COLUMNS), ("log", 43, NUMBER), ("log", 84, NOT_TEXT), ("log", 125, CONTROL), ("log", 166, TOO_LONG), ("log", 248, COLUMNS),
    ]  # fmt: skip
    assert kept[1]["detail"] == "click is not a number"
    assert kept[2]["text"] == "1\t1\t\\xff"
    manifest.check(tmp_path / "out", deep=True)


def test_bad_lines_of_a_side_file_are_kept_aside_too(tmp_path: Path) -> None:
    raw = write_everything(tmp_path / "raw")
    with (raw / "users").open("a", encoding="utf-8") as file:
        file.write("u99\n")
    with pytest.raises(DataError, match="users: line 22: 1 columns where 3 are wanted, in 'u99'"):
        prepare(everything(), raw, tmp_path / "out")
    manifest = prepare(everything(max_rejected=0.1), raw, tmp_path / "out")
    assert (manifest.rows_in, manifest.rejected.samples, manifest.rejected.reasons) == (900, 0, {COLUMNS: 1})
    assert manifest.rejected.stored is not None
    (line,) = pq.read_table(tmp_path / "out" / manifest.rejected.stored.file).to_pylist()
    assert line == {"file": "users", "line": 22, "reason": COLUMNS, "detail": "1 columns where 3 are wanted", "text": "u99"}


def test_too_many_bad_lines_stop_the_work(tmp_path: Path) -> None:
    write_log(tmp_path / "log", BAD)
    with pytest.raises(DataError) as caught:
        prepare(recipe_of(), tmp_path, tmp_path / "out")
    message = str(caught.value).splitlines()
    assert message[0] == f"{tmp_path}/log: line 2: 2 columns where 3 are wanted, in '1\\t2'"
    assert message[5] == f"{tmp_path}/log: and 1 more such line"
    assert message[6].startswith("  6 of 1,006 lines are rejected (2 wrong number of columns, 1 not a number,")
    assert message[6].endswith("max_rejected = 0.0001 allows fewer.")
    assert not (tmp_path / "out").exists()


def test_who_allows_more_or_mends_a_file_loses_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_everything(tmp_path / "raw")
    good = (raw / "day_2").read_bytes()
    (raw / "day_2").write_bytes(good + b"oops\n")
    read: list[int] = []

    def count_and_parse(block: Any, *rest: Any, **options: Any) -> Any:
        read.append(len(block.data))
        return parse(block, *rest, **options)

    monkeypatch.setattr("ham_dist.data.stage.parse", count_and_parse)
    for _ in range(2):
        with pytest.raises(DataError, match="day_2: line 302: 1 columns where 9 are wanted, in 'oops'"):
            prepare(everything(), raw, tmp_path / "out")
    assert len(read) == 4, "three days, and the last once more"
    assert prepare(everything(max_rejected=0.01), raw, tmp_path / "out").rejected.samples == 1
    assert len(read) == 5
    with pytest.raises(DataError, match="day_2: line 302"):
        prepare(everything(), raw, tmp_path / "mended")
    (raw / "day_2").write_bytes(good)
    assert prepare(everything(), raw, tmp_path / "mended").rows_in == 900
    assert len(read) == 5 + 3 + 1


def test_a_wrong_file_is_given_up_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 1000)
    (tmp_path / "log").write_bytes(b"a line of something else\n" * 4000)
    with pytest.raises(DataError, match=r"and at least \d+ more such lines\n  \d\d of \d\d lines are rejected \(\d\d wrong number of columns\)"):
        prepare(recipe_of(), tmp_path, tmp_path / "out")


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_a_compressed_file_cut_short(suffix: str, recipe: Recipe, tmp_path: Path) -> None:
    import pyarrow as pa

    write_log(tmp_path / "whole", [])
    with pa.output_stream(str(tmp_path / f"log{suffix}"), compression={".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}[suffix]) as stream:
        stream.write((tmp_path / "whole").read_bytes())
    manifest = prepare(recipe, tmp_path, tmp_path / "out")
    assert manifest.rows_in == 1000
    path = tmp_path / f"log{suffix}"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"log\.\w+: not a whole \w+ file \(.*\)\n  Download it again\."):
        prepare(recipe, tmp_path, tmp_path / "other")


def test_a_gzip_of_several_members_is_read_whole(recipe: Recipe, tmp_path: Path) -> None:
    write_log(tmp_path / "part", [])
    (tmp_path / "log.gz").write_bytes(gzip.compress((tmp_path / "part").read_bytes()) * 2)
    assert prepare(recipe, tmp_path, tmp_path / "out").rows_in == 2000


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_other_encodings(encoding: str, tmp_path: Path) -> None:
    recipe = recipe_of(format={"separator": "\t", "encoding": encoding})
    (tmp_path / "log").write_bytes("".join(f"{row % 2}\t{row}\tKöln\r\n" for row in range(300)).encode(encoding))
    prepare(recipe, tmp_path, tmp_path / "out")
    assert pq.read_table(tmp_path / "out/vocabulary/site.parquet")["value"].to_pylist() == ["Köln"]


def test_a_file_of_utf_16_goes_on_at_the_line_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its letters take 2 bytes there, and 3 in the blocks that positions count."""
    monkeypatch.setattr(text, "BLOCK_BYTES", 1000)
    path, format = tmp_path / "log", Format(separator="\t", encoding="utf-16")
    path.write_bytes("".join(f"{row}\t漢字かな交じり文\n" for row in range(500)).encode("utf-16"))
    blocks = list(read_blocks(path, format))
    assert len(blocks) > 10
    for number in (1, 5, len(blocks) - 1):
        rest = list(read_blocks(path, format, blocks[number].start))
        assert b"".join(block.data for block in rest) == b"".join(block.data for block in blocks[number:])
        assert rest[-1].end == blocks[-1].end


def test_a_full_disk_is_told_before_the_work(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(tmp_path / "log", [])
    monkeypatch.setattr("ham_dist.data.prepare.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(DataError, match=r"preparing damaged takes about 0\.00 GB, and 0\.00 GB are free\n  Make room, or give --out on another disk"):
        prepare(recipe, tmp_path, tmp_path / "out")
