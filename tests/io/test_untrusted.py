"""Files from outside are read within limits."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ham_dist.io.atomic import write_json
from ham_dist.io.printable import printable
from ham_dist.io.untrusted import inside, open_regular, parse_json, read_json

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
)


@given(JSON)
def test_what_is_written_is_what_is_read(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested deeper than 100"),
        ("[" * 101 + "]" * 101, "nested deeper than 100"),
        ("9" * 5_000, "a number has 5,000 digits"),
        ("1e400", "the number 1e400 is too large"),
        ("-1e400", "too large"),
        ("NaN", "NaN is not JSON"),
        ("-Infinity", "-Infinity is not JSON"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ("", "Expecting value"),
        ('{"a": ', "Expecting value"),
        ("\ufeff{}", "BOM"),
    ],
)
def test_odd_json_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text.encode())


def test_bytes_that_are_not_utf_8_and_large_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not UTF-8 at byte 1"):
        parse_json(b'"\xff"')
    (tmp_path / "large.json").write_text(" " * 1001)
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        read_json(tmp_path / "large.json", limit=1000)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, kind in ((tmp_path / "fifo", "FIFO"), (tmp_path, "folder"), (Path("/dev/zero"), "device")):
        with pytest.raises(OSError, match=f"is a {kind}, not a regular file"):
            open_regular(path)
    (tmp_path / "file").write_bytes(b"x")
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"x"


def test_paths_stay_inside_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    assert inside(folder, "a/b") == folder / "a" / "b"
    for name in ("../x", "a/../../x", "/etc/passwd", "link/x"):
        with pytest.raises(ValueError, match="leads out of"):
            inside(folder, name)


def test_text_from_outside_does_nothing_to_a_terminal() -> None:
    assert printable("plain, Köln 漢字\n\tx") == "plain, Köln 漢字\n\tx"
    assert printable("\x1b[31mred\x07\r") == "\\x1b[31mred\\x07\\r"
    assert printable("\u202eabc\ud800") == "\\u202eabc\\ud800"
