"""More than fifty kinds of damaged input.

Each bad line is stored with its line number and reason, its neighbours are kept, and none is lost silently.
"""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
import tomlkit
from typer.testing import CliRunner

from ham_dist.cli import app
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.raw import blocks
from ham_dist.data.raw.blocks import read_blocks
from ham_dist.data.raw.parse import COLUMNS, CONTROL, NOT_TEXT, NUMBER, QUOTE, TOO_LONG, parse
from ham_dist.data.recipe.fields import Format
from ham_dist.data.recipe.load import Recipe
from ham_dist.errors import DataError
from tests.support.raw_everything import everything, write_everything
from tests.support.small_log import NAMES, recipe_of, write_log

GOOD = b"1\t2.5\tshop"
TAB, CSV, LONG = (
    Format(separator="\t", null=("NULL",), max_line_bytes=200),
    Format(separator=",", quote='"'),
    Format(separator="::"),
)
FORMATS = {"tab": TAB, "csv": CSV, "long": LONG}

# What is said of a bad line beside its reason.
NO_TEXT, NUL, WITHIN = (
    "is not text in the recipe's encoding",
    "has a NUL byte",
    "has a line end or control character inside it",
)
LENGTH, STRAY = "is longer than format.max_line_bytes", "has a quote that is not around a whole value"
CLICK, PRICE = "click is not a number", "price is not a number"


def wanted(columns: int) -> str:
    return f"{columns} column{'' if columns == 1 else 's'}; expected 3"


class Bad(NamedTuple):
    """A line that is no row."""

    name: str
    line: bytes
    reason: str
    detail: str
    format: str = "tab"


BAD_LINES = [
    Bad("one-column", b"1", COLUMNS, wanted(1)),
    Bad("two-columns", b"1\t2.5", COLUMNS, wanted(2)),
    Bad("four-columns", b"1\t2.5\tshop\tx", COLUMNS, wanted(4)),
    Bad("trailing-separator", b"1\t2.5\tshop\t", COLUMNS, wanted(4)),
    Bad("only-separators-too-few", b"\t", COLUMNS, wanted(2)),
    Bad("only-separators-too-many", b"\t\t\t", COLUMNS, wanted(4)),
    Bad("spaces-for-tabs", b"1 2.5 shop", COLUMNS, wanted(1)),
    Bad("other-separator", b"1,2.5,shop", COLUMNS, wanted(1)),
    Bad("two-lines-in-one", GOOD + GOOD, COLUMNS, wanted(5)),
    Bad("only-spaces", b"   ", COLUMNS, wanted(1)),
    Bad("html", b"<html><body>404 Not Found</body></html>", COLUMNS, wanted(1)),
    Bad("merge-conflict", b"<<<<<<< HEAD", COLUMNS, wanted(1)),
    Bad("log-message", b"2014-10-21 00:00:01 ERROR disk full", COLUMNS, wanted(1)),
    Bad("a-header-within", b"click\tprice\tsite", NUMBER, CLICK),
    Bad("text-in-label", b"yes\t2.5\tshop", NUMBER, CLICK),
    Bad("no-label", b"\t2.5\tshop", NUMBER, CLICK),
    Bad("null-word-in-label", b"NULL\t2.5\tshop", NUMBER, CLICK),
    Bad("nan-in-label", b"nan\t2.5\tshop", NUMBER, CLICK),
    Bad("infinite-label", b"inf\t2.5\tshop", NUMBER, CLICK),
    Bad("byte-order-mark", b"\xef\xbb\xbf1\t2.5\tshop", NUMBER, CLICK),
    Bad("columns-swapped", b"shop\t2.5\t1", NUMBER, CLICK),
    Bad("text-in-number", b"1\tcheap\tshop", NUMBER, PRICE),
    Bad("decimal-comma", b"1\t2,5\tshop", NUMBER, PRICE),
    Bad("thousands", b"1\t2,500.0\tshop", NUMBER, PRICE),
    Bad("unit", b"1\t2.5EUR\tshop", NUMBER, PRICE),
    Bad("hexadecimal-number", b"1\t0x1F\tshop", NUMBER, PRICE),
    Bad("two-points", b"1\t2.5.1\tshop", NUMBER, PRICE),
    Bad("lonely-minus", b"1\t-\tshop", NUMBER, PRICE),
    Bad("half-exponent", b"1\t2e\tshop", NUMBER, PRICE),
    Bad("nan", b"1\tnan\tshop", NUMBER, PRICE),
    Bad("minus-infinity", b"1\t-inf\tshop", NUMBER, PRICE),
    Bad("number-beyond-float64", b"1\t1e999\tshop", NUMBER, PRICE),
    Bad("other-null-word", b"1\tN/A\tshop", NUMBER, PRICE),
    Bad("wide-digits", "1\t\uff12\tshop".encode(), NUMBER, PRICE),
    Bad("latin-1", b"1\t2.5\tK\xf6ln", NOT_TEXT, NO_TEXT),
    Bad("half-a-letter", b"1\t2.5\t\xe2\x82", NOT_TEXT, NO_TEXT),
    Bad("overlong-utf-8", b"1\t2.5\t\xc0\xaf", NOT_TEXT, NO_TEXT),
    Bad("surrogate", b"1\t2.5\t\xed\xa0\x80", NOT_TEXT, NO_TEXT),
    Bad("byte-ff", b"\xff\xfe1\t2.5\tshop", NOT_TEXT, NO_TEXT),
    Bad("nul-in-text", b"1\t2.5\tsh\0op", CONTROL, NUL),
    Bad("nul-in-number", b"1\t2\0.5\tshop", CONTROL, NUL),
    Bad("only-nuls", b"\0" * 40, CONTROL, NUL),
    Bad("carriage-return", b"1\t2.5\tsh\rop", CONTROL, WITHIN),
    Bad("two-carriage-returns", GOOD + b"\r\r", CONTROL, WITHIN),
    Bad("stand-in-for-the-separator", b"1::2\x1f5::shop", CONTROL, WITHIN, "long"),
    Bad("too-long", b"1\t2.5\t" + b"x" * 300, TOO_LONG, LENGTH),
    Bad("too-long-and-no-text", b"\xff" * 300, TOO_LONG, LENGTH),
    Bad("quote-not-closed", b'1,2.5,"shop', QUOTE, STRAY, "csv"),
    Bad("quote-not-opened", b'1,2.5,shop"', QUOTE, STRAY, "csv"),
    Bad("quote-within", b'1,2.5,sh"o"p', QUOTE, STRAY, "csv"),
    Bad("text-behind-a-quote", b'1,2.5,"shop"s', QUOTE, STRAY, "csv"),
    Bad("three-quotes", b'1,2.5,"""', QUOTE, STRAY, "csv"),
    Bad("space-before-a-quote", b'1,2.5, "shop"', QUOTE, STRAY, "csv"),
    Bad("quoted-separator-too-few", b'1,"2.5,shop"', COLUMNS, wanted(2), "csv"),
    Bad("quoted-text-in-number", b'1,"cheap",shop', NUMBER, PRICE, "csv"),
    Bad("single-colon", b"1:2.5:shop", COLUMNS, wanted(1), "long"),
    Bad("three-colons", b"1:::2.5::shop", NUMBER, PRICE, "long"),
]

# Lines that are rows, strange as they look, each with the site that it names.
STRANGE = {
    "missing-number": ("tab", b"1\t\tnumberless", "numberless"),
    "quote-without-quoting": ("tab", b'1\t2.5\t"shop', '"shop'),
    "windows-line-end": ("tab", b"1\t2.5\twindows\r", "windows"),
    "four-byte-letters": ("tab", "1\t2.5\t🛒".encode(), "🛒"),
    "spaces-around": ("tab", b"1\t 2.5 \t shop ", " shop "),
    "null-word-for-a-number": ("tab", b"1\tNULL\tnull word", "null word"),
    "quoted-quote": ("csv", b'1,2.5,"a ""b"", c"', 'a "b", c'),
    "quoted-number": ("csv", b'"1","2.5","quoted"', "quoted"),
}
# So often that training has some, whatever the split.
TIMES = 30


def raw_lines(format: str) -> list[bytes]:
    """Every bad line of a format between two good ones, and then the strange ones."""
    good = GOOD.replace(b"\t", FORMATS[format].separator.encode())
    strange = [line for its, line, _ in STRANGE.values() if its == format]
    return (
        [line for bad in BAD_LINES if bad.format == format for line in (good, bad.line)]
        + [good] * TIMES
        + strange * TIMES
    )


@pytest.fixture(scope="module", params=FORMATS)
def damaged(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Manifest]:
    """A format, and the folder and manifest of what is prepared of its lines."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "log").write_bytes(b"\n".join(raw_lines(request.param)) + b"\n")
    recipe = recipe_of(max_rejected=1.0, format=FORMATS[request.param].model_dump())
    return request.param, folder / "out", prepare(recipe, folder, folder / "out")


def test_every_bad_line_is_kept_aside_with_file_line_reason_and_detail(
    damaged: tuple[str, Path, Manifest],
) -> None:
    format, out, manifest = damaged
    bad = [one for one in BAD_LINES if one.format == format]
    assert manifest.rejected.stored is not None
    found = pq.read_table(out / manifest.rejected.stored.file).to_pylist()
    assert [(one["file"], one["line"], one["reason"], one["detail"]) for one in found] == [
        ("log", 2 * place + 2, one.reason, one.detail) for place, one in enumerate(bad)
    ]
    # The line end of Windows is one as well.
    assert [one["text"] for one in found] == [
        one.line.removesuffix(b"\r")[:200].decode("utf-8", "backslashreplace") for one in bad
    ]
    assert manifest.rejected.reasons == Counter(one.reason for one in bad)
    assert manifest.rejected.samples == len(bad)


def test_their_neighbours_stay_and_rows_in_are_rows_out_and_rejected(
    damaged: tuple[str, Path, Manifest],
) -> None:
    format, out, manifest = damaged
    lines = raw_lines(format)
    assert manifest.rows_in == len(lines)
    assert sum(split.rows for split in manifest.splits.values()) == len(lines) - manifest.rejected.samples
    sites = {row["value"] for row in pq.read_table(out / "vocabulary/site.parquet").to_pylist()}
    assert sites == {"shop"} | {site for its, _, site in STRANGE.values() if its == format}
    manifest.check(out, deep=True)


def test_there_are_more_than_fifty_kinds() -> None:
    assert len({bad.line for bad in BAD_LINES}) == len({bad.name for bad in BAD_LINES}) == len(BAD_LINES) > 50


@pytest.mark.parametrize("bad", BAD_LINES, ids=lambda bad: bad.name)
def test_a_bad_line_by_itself(bad: Bad, tmp_path: Path) -> None:
    """What a bad line is does not depend on what else is bad in its block."""
    good = GOOD.replace(b"\t", FORMATS[bad.format].separator.encode())
    (tmp_path / "x").write_bytes(b"\n".join([good, good, bad.line, good]) + b"\n")
    (block,) = read_blocks(tmp_path / "x", FORMATS[bad.format])
    rows = parse(
        block,
        NAMES,
        {"click": "float64", "price": "float64", "site": "string"},
        FORMATS[bad.format],
        required=["click"],
    )
    assert [(one.line, one.reason, one.detail) for one in rows.rejected] == [(3, bad.reason, bad.detail)]
    assert rows.lines.tolist() == [0, 1, 3]
    assert rows.table["site"].to_pylist() == ["shop"] * 3


def test_the_command_says_where_what_and_how_to_mend_it(tmp_path: Path) -> None:
    """No traceback, exit code 2; and with --max-rejected the same command goes on."""
    bad = {bad.name: bad.line for bad in BAD_LINES}
    write_log(tmp_path / "log", [bad["two-columns"], bad["unit"], bad["nul-in-text"], bad["latin-1"]])
    (tmp_path / "recipe.toml").write_text(
        tomlkit.dumps(recipe_of().model_dump(mode="json", exclude_none=True))
    )
    command = [
        "prepare",
        str(tmp_path / "recipe.toml"),
        "--raw",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
    ]
    refused = CliRunner().invoke(app, command)
    log = tmp_path / "log"
    assert (refused.exit_code, refused.stderr) == (
        2,
        f"ham-dist: {log}: line 2: 2 columns; expected 3, in '1\\t2.5'\n"
        f"{log}: line 43: price is not a number, in '1\\t2.5EUR\\tshop'\n"
        f"{log}: line 84: has a NUL byte, in '1\\t2.5\\tsh\\x00op'\n"
        f"{log}: line 125: is not text in the recipe's encoding, in '1\\t2.5\\tK\\\\xf6ln'\n"
        "  4 of 1,004 lines are rejected (1 wrong number of columns, 1 not a number, 1 control character, "
        "1 not text in the encoding); "
        "max_rejected = 0.0001 allows fewer.\n"
        "  Correct or delete these lines, and check that this is the right file for the recipe; "
        "or raise max_rejected.\n",
    )
    allowed = CliRunner().invoke(app, [*command, "--max-rejected", "0.004"])
    assert allowed.exit_code == 0, allowed.stderr
    assert Manifest.load(tmp_path / "out").rejected.samples == 4


@pytest.fixture
def recipe() -> Recipe:
    return recipe_of(max_rejected=0.05)


BAD = [b"1\t2", b"x\t1\ts1", b"1\t1\t\xff", b"1\t\0\ts1", b"1\t1\t" + b"y" * 300, b"", b"1\t1\ts1\t1"]


@pytest.mark.parametrize("block_bytes", [1 << 20, 100])
def test_nothing_is_dropped_silently(
    recipe: Recipe, tmp_path: Path, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the size of a block: with 100 bytes, the line of 300 does not fit into one."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    write_log(tmp_path / "log", BAD)
    manifest = prepare(recipe, tmp_path, tmp_path / "out")
    assert manifest.rows_in == 1006
    assert sum(split.rows for split in manifest.splits.values()) == 1000
    assert manifest.rejected.samples == 6
    assert manifest.rejected.reasons == {COLUMNS: 2, CONTROL: 1, NUMBER: 1, TOO_LONG: 1, NOT_TEXT: 1}
    assert manifest.rejected.stored is not None
    kept = pq.read_table(tmp_path / "out" / manifest.rejected.stored.file).to_pylist()
    assert [(one["file"], one["line"], one["reason"]) for one in kept] == [
        ("log", 2, COLUMNS), ("log", 43, NUMBER), ("log", 84, NOT_TEXT), ("log", 125, CONTROL),
        ("log", 166, TOO_LONG), ("log", 248, COLUMNS),
    ]  # fmt: skip
    assert kept[1]["detail"] == "click is not a number"
    assert kept[2]["text"] == "1\t1\t\\xff"
    manifest.check(tmp_path / "out", deep=True)


def test_bad_lines_of_a_side_file_are_kept_aside_too(tmp_path: Path) -> None:
    raw = write_everything(tmp_path / "raw")
    with (raw / "users").open("a", encoding="utf-8") as file:
        file.write("u99\n")
    with pytest.raises(DataError, match="users: line 22: 1 column; expected 3, in 'u99'"):
        prepare(everything(), raw, tmp_path / "out")
    manifest = prepare(everything(max_rejected=0.1), raw, tmp_path / "out")
    assert (manifest.rows_in, manifest.rejected.samples, manifest.rejected.reasons) == (900, 0, {COLUMNS: 1})
    assert manifest.rejected.stored is not None
    (line,) = pq.read_table(tmp_path / "out" / manifest.rejected.stored.file).to_pylist()
    assert line == {
        "file": "users",
        "line": 22,
        "reason": COLUMNS,
        "detail": "1 column; expected 3",
        "text": "u99",
    }


def test_too_many_bad_lines_stop_the_work(tmp_path: Path) -> None:
    write_log(tmp_path / "log", BAD)
    with pytest.raises(DataError) as caught:
        prepare(recipe_of(), tmp_path, tmp_path / "out")
    message = str(caught.value).splitlines()
    assert message[0] == f"{tmp_path}/log: line 2: 2 columns; expected 3, in '1\\t2'"
    assert message[5] == f"{tmp_path}/log: and 1 more such line"
    assert message[6].startswith(
        "  6 of 1,006 lines are rejected (2 wrong number of columns, 1 not a number,"
    )
    assert message[6].endswith("max_rejected = 0.0001 allows fewer.")
    assert not (tmp_path / "out").exists()


def test_who_allows_more_or_mends_a_file_loses_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_everything(tmp_path / "raw")
    good = (raw / "day_2").read_bytes()
    (raw / "day_2").write_bytes(good + b"oops\n")
    read: list[int] = []

    def count_and_parse(block: Any, *rest: Any, **options: Any) -> Any:
        read.append(len(block.data))
        return parse(block, *rest, **options)

    monkeypatch.setattr("ham_dist.data.prepare.stage.parse", count_and_parse)
    for _ in range(2):
        with pytest.raises(DataError, match="day_2: line 302: 1 column; expected 9, in 'oops'"):
            prepare(everything(), raw, tmp_path / "out")
    assert len(read) == 3, "three days, none of them again"
    assert prepare(everything(max_rejected=0.01), raw, tmp_path / "out").rejected.samples == 1
    assert len(read) == 3
    with pytest.raises(DataError, match="day_2: line 302"):
        prepare(everything(), raw, tmp_path / "mended")
    (raw / "day_2").write_bytes(good)
    assert prepare(everything(), raw, tmp_path / "mended").rows_in == 900
    assert len(read) == 3 + 3 + 1


def test_a_full_disk_is_told_before_the_work(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(tmp_path / "log", [])
    monkeypatch.setattr(
        "ham_dist.data.prepare.room.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})
    )
    with pytest.raises(
        DataError,
        match=r"preparing damaged needs about 0\.00 GB of disk space, but 0\.00 GB are free\n"
        r"  Free some space",
    ):
        prepare(recipe, tmp_path, tmp_path / "out")
