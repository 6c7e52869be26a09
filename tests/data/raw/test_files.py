"""Raw files that are damaged, or do not fit the recipe; and valid encodings and compression."""

import codecs
import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.raw import blocks
from ham_dist.data.raw.blocks import Block, Position, read_blocks
from ham_dist.data.raw.parse import parse
from ham_dist.data.recipe.fields import Format
from ham_dist.errors import DataError
from tests.support.small_log import recipe_of, write_log

WHOLE = b"".join(b"%d\t%d\ts%d\n" % (row % 2, row % 7, row % 5) for row in range(400))
PACKED = gzip.compress(WHOLE, mtime=0)
FLIPPED = PACKED[:-50] + bytes([PACKED[-50] ^ 8]) + PACKED[-49:]
COLUMNS_OF_ANOTHER = "log: line 1: 1 column; expected 3"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param(
            "log.gz", PACKED[: len(PACKED) // 2], "log.gz: not a whole gzip file (", id="gzip-cut-short"
        ),
        pytest.param("log.gz", PACKED[:-4], "log.gz: not a whole gzip file (", id="gzip-without-its-length"),
        pytest.param(
            "log.gz",
            b"",
            "log.gz: not a whole gzip file (it is empty)\n  Download it again.",
            id="gzip-of-no-bytes",
        ),
        pytest.param("log.gz", FLIPPED, "log.gz: not a whole gzip file (", id="gzip-with-a-flipped-bit"),
        pytest.param("log.gz", WHOLE, "log.gz: not a whole gzip file (", id="text-that-is-called-gzip"),
        pytest.param("log.bz2", PACKED, "log.bz2: not a whole bz2 file (", id="gzip-that-is-called-bzip2"),
        pytest.param("log.zst", PACKED, "log.zst: not a whole zstd file (", id="gzip-that-is-called-zstd"),
        pytest.param("log", PACKED, "log: is a gzip file; expected text", id="gzip-that-is-called-text"),
        pytest.param(
            "log",
            b"",
            "log: has 0 samples; expected samples with a label in each split,"
            " but found none in test, train, validation",
            id="no-bytes",
        ),
        pytest.param(
            "log", b"\n\r\n\n", "log: has 0 samples; expected samples with a label", id="blank-lines"
        ),
        pytest.param(
            "log",
            WHOLE.replace(b"\n", b"\r"),
            "log: line 1: is longer than format.max_line_bytes, in '0\\t0\\ts0\\r1",
            id="old-line-ends",
        ),
        pytest.param(
            "log", WHOLE.replace(b"\t", b";"), COLUMNS_OF_ANOTHER + ", in '0;0;s0'", id="another-separator"
        ),
        pytest.param(
            "log",
            WHOLE.decode().encode("utf-16"),
            "log: line 1: is not text in the recipe's encoding",
            id="utf-16-for-utf-8",
        ),
        pytest.param(
            "log",
            b"click\tprice\tsite\n" + WHOLE,
            "log: line 1: click is not a number, in 'click\\tprice\\tsite'",
            id="a-header",
        ),
        pytest.param(
            "log", WHOLE[:-4], "log: line 400: 2 columns; expected 3, in '1\\t0'", id="text-cut-short"
        ),
        pytest.param(
            "log",
            WHOLE + b"\0" * 5000,
            "log: line 401: is longer than format.max_line_bytes",
            id="zeros-at-the-end",
        ),
        pytest.param("log", bytes(range(256)) * 40, "log: line 1: ", id="a-binary-file"),
        pytest.param(
            "log",
            b"<!DOCTYPE html>\n<title>Sign in</title>\n",
            COLUMNS_OF_ANOTHER + ", in '<!DOCTYPE html>'",
            id="a-page-of-the-web",
        ),
        pytest.param("log/x", WHOLE, ": lacks log (plain or with .gz behind the name)", id="a-folder"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_written(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "raw" / name).parent.mkdir(parents=True)
    (tmp_path / "raw" / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        prepare(recipe_of(), tmp_path / "raw", tmp_path / "out")
    assert str(caught.value).startswith(f"{tmp_path}/raw{'' if message.startswith(':') else '/'}{message}")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, (
        "a library's traceback would be shown"
    )
    assert not (tmp_path / "out").exists()


def test_the_last_line_may_lack_its_end(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(WHOLE.removesuffix(b"\n"))
    assert prepare(recipe_of(), tmp_path, tmp_path / "out").rows_in == 400


def test_a_wrong_file_is_given_up_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1000)
    (tmp_path / "log").write_bytes(b"a line of something else\n" * 4000)
    with pytest.raises(
        DataError,
        match=r"and at least \d+ more such lines\n"
        r"  \d\d of \d\d lines are rejected \(\d\d wrong number of columns\)",
    ):
        prepare(recipe_of(), tmp_path, tmp_path / "out")


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_a_compressed_file_cut_short(suffix: str, tmp_path: Path) -> None:
    write_log(tmp_path / "whole", [])
    with pa.output_stream(
        str(tmp_path / f"log{suffix}"), compression={".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}[suffix]
    ) as stream:
        stream.write((tmp_path / "whole").read_bytes())
    manifest = prepare(recipe_of(), tmp_path, tmp_path / "out")
    assert manifest.rows_in == 1000
    path = tmp_path / f"log{suffix}"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"log\.\w+: not a whole \w+ file \(.*\)\n  Download it again\."):
        prepare(recipe_of(), tmp_path, tmp_path / "other")


def test_a_gzip_of_several_members_is_read_whole(tmp_path: Path) -> None:
    write_log(tmp_path / "part", [])
    (tmp_path / "log.gz").write_bytes(gzip.compress((tmp_path / "part").read_bytes()) * 2)
    assert prepare(recipe_of(), tmp_path, tmp_path / "out").rows_in == 2000


def test_a_mark_of_utf_8_at_the_beginning_is_no_part_of_a_value(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(codecs.BOM_UTF8 + WHOLE)
    assert prepare(recipe_of(), tmp_path, tmp_path / "out").rows_in == 400
    (block, *_) = read_blocks(tmp_path / "log", Format(separator="\t"))
    assert (block.data, block.end) == (WHOLE, Position(len(WHOLE) + 3, 400))


def test_a_mark_of_utf_8_within_a_file_is_a_letter_wherever_its_block_begins() -> None:
    lines = "\ufeffshop\t1\nshop\t0\n\ufeffshop\t1\n".encode()
    for data, sites in ((lines, ["\ufeffshop", "shop", "\ufeffshop"]), (lines[10:], ["shop", "\ufeffshop"])):
        block = Block(data, Position(100, 7), Position(100 + len(data), 7 + len(sites)), share=0.5)
        rows = parse(
            block,
            ("site", "click"),
            {"site": "string", "click": "float64"},
            Format(separator="\t"),
            required=["click"],
        )
        assert rows.table["site"].to_pylist() == sites


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_other_encodings(encoding: str, tmp_path: Path) -> None:
    recipe = recipe_of(format={"separator": "\t", "encoding": encoding})
    (tmp_path / "log").write_bytes(
        "".join(f"{row % 2}\t{row}\tKöln\r\n" for row in range(300)).encode(encoding)
    )
    prepare(recipe, tmp_path, tmp_path / "out")
    assert pq.read_table(tmp_path / "out/vocabulary/site.parquet")["value"].to_pylist() == ["Köln"]


def test_a_file_of_utf_16_goes_on_at_the_line_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its letters take 2 bytes there, and 3 in the blocks that positions count."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1000)
    path, format = tmp_path / "log", Format(separator="\t", encoding="utf-16")
    path.write_bytes("".join(f"{row}\t漢字かな交じり文\n" for row in range(500)).encode("utf-16"))
    found = list(read_blocks(path, format))
    assert len(found) > 10
    for number in (1, 5, len(found) - 1):
        rest = list(read_blocks(path, format, found[number].start))
        assert b"".join(block.data for block in rest) == b"".join(block.data for block in found[number:])
        assert rest[-1].end == found[-1].end


def packed_unevenly(bad: int) -> bytes:
    """Gzip: 100 lines that hardly get smaller, of which `bad` are bad, and 20,000 that nearly vanish."""
    random = np.random.default_rng(0)
    first = [b"1\t2\t" + random.bytes(60).hex().encode() for _ in range(100)]
    first[10 : 10 + bad] = [b"?"] * bad
    return gzip.compress(b"\n".join(first + [b"0\t1\tshop"] * 20_000) + b"\n", mtime=0)


@pytest.mark.parametrize("block_bytes", [20_000, 1 << 20])
def test_a_gzip_is_not_judged_by_how_densely_it_begins(
    block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its beginning suggests 150 lines, 2 of them bad; it has 20,100, of which 2 may be bad."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    (tmp_path / "log.gz").write_bytes(packed_unevenly(bad=2))
    manifest = prepare(recipe_of(), tmp_path, tmp_path / "out")
    assert (manifest.rows_in, manifest.rejected.samples) == (20_100, 2)
    (tmp_path / "log.gz").write_bytes(packed_unevenly(bad=3))
    with pytest.raises(DataError, match=r"3 of 20,100 lines are rejected"):
        prepare(recipe_of(), tmp_path, tmp_path / "other")


def test_a_wrong_gzip_is_given_up_early_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 10_000)
    random = np.random.default_rng(0)
    (tmp_path / "log.gz").write_bytes(
        gzip.compress(b"\n".join(random.bytes(60).hex().encode() for _ in range(10_000)))
    )
    with pytest.raises(
        DataError, match=r"and at least [\d,]+ more such lines\n  [\d,]{1,5} of [\d,]{1,5} lines are rejected"
    ):
        prepare(recipe_of(), tmp_path, tmp_path / "out")


@pytest.mark.parametrize("raw", ["s3://bucket/logs", "https://example.org/logs"])
def test_a_raw_folder_that_is_elsewhere(raw: str, tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=f"{raw}: is a remote location; expected a folder on this machine\n"
        "  Copy log to a local folder, and give",
    ):
        prepare(recipe_of(), raw, tmp_path / "out")
