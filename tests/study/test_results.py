"""Files of lines: added once each, and whole after a writer was killed."""

from pathlib import Path

import pytest

from ham_dist.errors import ReportError
from ham_dist.study.results import Lines


@pytest.fixture
def lines(tmp_path: Path) -> Lines:
    return Lines(tmp_path / "results.jsonl")


def test_lines_are_read_as_added(lines: Lines) -> None:
    assert lines.read() == {}
    lines.add([{"key": "a", "value": 1.5}, {"key": "b", "name": "Æ"}])
    lines.add([{"key": "c"}])
    assert lines.read() == {
        "a": {"key": "a", "value": 1.5},
        "b": {"key": "b", "name": "Æ"},
        "c": {"key": "c"},
    }


def test_a_key_is_added_once(lines: Lines) -> None:
    lines.add([{"key": "a", "value": 1}])
    lines.add([{"key": "a", "value": 2}, {"key": "b"}])
    assert [entry.get("value") for entry in lines.read().values()] == [1, None]


def test_an_incomplete_line_is_left_out_and_removed(lines: Lines) -> None:
    lines.add([{"key": "a"}])
    whole = lines.path.read_bytes()
    lines.path.write_bytes(whole + b'{"key": "b", "val')
    assert list(lines.read()) == ["a"]
    lines.add([{"key": "c"}])
    assert lines.path.read_bytes() == whole + b'{"key": "c"}\n'


def test_lines_are_removed(lines: Lines) -> None:
    lines.add([{"key": name} for name in "abc"])
    lines.remove(["b", "x"])
    assert list(lines.read()) == ["a", "c"]


def test_of_two_lines_the_later_counts(lines: Lines) -> None:
    lines.path.write_text('{"key": "a", "value": 1}\n\n{"key": "a", "value": 2}\n')
    assert lines.read() == {"a": {"key": "a", "value": 2}}


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", r"results.jsonl:2: is damaged: Expecting"), ("[1]", "no JSON object with a key"), ("{}", "key")],
)
def test_a_damaged_line_is_named(lines: Lines, line: str, message: str) -> None:
    lines.add([{"key": "a"}])
    with lines.path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ReportError, match=message):
        lines.read()


def test_numbers_must_be_finite(lines: Lines) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        lines.add([{"key": "a", "value": float("nan")}])
    assert lines.read() == {}
