"""Each bad raw file: a DataError that names the file and the line, nothing written."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from ham_dist.data.engines.base import Machine
from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.recipe.load import Recipe, parse_recipe
from ham_dist.errors import DataError
from tests.support.raw_movielens import write_lines, write_raw_movielens


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_raw_movielens(tmp_path / "raw", ratings=300)


@pytest.fixture
def refuse(recipe: Recipe, raw: Path, tmp_path: Path) -> Callable[[], str]:
    """Prepares, and gives the message of the DataError."""

    def attempt() -> str:
        before = {path.name for path in tmp_path.iterdir()} | {".out.ham-work"}
        with pytest.raises(DataError) as caught:
            prepare(recipe, raw, tmp_path / "out")
        assert {path.name for path in tmp_path.iterdir()} <= before, (
            "only the work folder next to the output is kept"
        )
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None, (
            "a library's traceback would be shown"
        )
        return str(caught.value)

    return attempt


def change(path: Path, line: int, text: str) -> None:
    lines = path.read_bytes().decode("latin-1").splitlines()
    lines[line - 1] = text
    write_lines(path, lines)


def test_missing_files_are_named_together(raw: Path, refuse: Callable[[], str]) -> None:
    (raw / "users.dat").unlink()
    (raw / "movies.dat").unlink()
    message = refuse()
    assert message.startswith(f"{raw}: lacks users.dat, movies.dat (plain or with .gz behind the name)")
    assert "https://grouplens.org" in message


@pytest.mark.parametrize("name", ["nowhere", "raw/ratings.dat"])
def test_raw_must_be_a_folder(name: str, recipe: Recipe, raw: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"(no such folder|is a file); give the folder that holds ratings\.dat, users\.dat, movies\.dat",
    ):
        prepare(recipe, tmp_path / name, tmp_path / "out")


def test_short_line(raw: Path, refuse: Callable[[], str]) -> None:
    change(raw / "ratings.dat", 17, "1::4::5")
    assert refuse().startswith(f"{raw}/ratings.dat: line 17: 3 columns; expected 4, in '1::4::5'")


def test_long_line(raw: Path, refuse: Callable[[], str]) -> None:
    change(raw / "users.dat", 2, "2::M::25::3::48000::7")
    assert refuse().startswith(f"{raw}/users.dat: line 2: 6 columns; expected 5, in '2::M::25::3::48000::7'")


@pytest.mark.parametrize("rating", ["good", "", "4,5", "5.x"])
def test_text_in_the_rating(rating: str, raw: Path, refuse: Callable[[], str]) -> None:
    change(raw / "ratings.dat", 9, f"1::4::{rating}::978300000")
    assert refuse().startswith(
        f"{raw}/ratings.dat: line 9: rating is not a number, in '1::4::{rating}::978300000'"
    )


def test_nan_in_the_rating(raw: Path, refuse: Callable[[], str]) -> None:
    change(raw / "ratings.dat", 9, "1::4::nan::978300000")
    assert refuse().startswith(f"{raw}/ratings.dat: line 9: rating is not a number")


def test_line_numbers_count_blank_lines(raw: Path, refuse: Callable[[], str]) -> None:
    change(raw / "ratings.dat", 3, "")
    change(raw / "ratings.dat", 9, "what?")
    assert refuse().startswith(f"{raw}/ratings.dat: line 9: 1 column; expected 4, in 'what?'")


def test_line_number_far_down_a_long_file(recipe: Recipe, raw: Path, tmp_path: Path) -> None:
    recipe = recipe.model_copy(update={"max_rejected": 0.0})
    lines = ["1::4::5::978300000"] * 400_000
    lines[390_000 - 1] = "1::4::x::978300000"
    write_lines(raw / "ratings.dat", lines)
    for threads in (1, 2):
        with pytest.raises(DataError, match=r"ratings\.dat: line 390000: rating is not a number"):
            prepare(recipe, raw, tmp_path / "out", machine=Machine(threads=threads))


def test_many_bad_lines_are_counted(raw: Path, refuse: Callable[[], str]) -> None:
    for line in range(100, 120):
        change(raw / "ratings.dat", line, "1::4::x")
    message = refuse()
    assert [f"line {line}:" in message for line in (100, 104, 105)] == [True, True, False]
    assert "ratings.dat: and 15 more such lines" in message


def test_movies_given_as_ratings(raw: Path, refuse: Callable[[], str]) -> None:
    (raw / "ratings.dat").write_bytes((raw / "movies.dat").read_bytes())
    message = refuse()
    assert message.startswith(f"{raw}/ratings.dat: line 1: 3 columns; expected 4")
    assert "check that this is the right file for the recipe" in message


def test_users_given_as_ratings(raw: Path, refuse: Callable[[], str]) -> None:
    (raw / "ratings.dat").write_bytes((raw / "users.dat").read_bytes())
    assert refuse().startswith(f"{raw}/ratings.dat: line 1: 5 columns; expected 4")


def test_a_binary_file(raw: Path, refuse: Callable[[], str]) -> None:
    (raw / "movies.dat").write_bytes(bytes(range(256)) * 40)
    assert f"{raw}/movies.dat: " in refuse()


def test_an_empty_file(raw: Path, refuse: Callable[[], str]) -> None:
    (raw / "ratings.dat").write_bytes(b"")
    assert refuse().startswith(
        f"{raw}/ratings.dat: has 0 samples; expected samples with a label in each split,"
        " but found none in test, train, validation"
    )


def test_side_file_with_other_keys(raw: Path, refuse: Callable[[], str]) -> None:
    lines = (raw / "users.dat").read_bytes().decode("latin-1").splitlines()
    write_lines(raw / "users.dat", (f"user{line}" for line in lines))
    message = refuse()
    assert message.startswith("field gender: none of its values occurs 1 time or more in the training split")
    assert "side files have the samples' keys" in message


def test_key_twice_in_a_side_file(raw: Path, refuse: Callable[[], str]) -> None:
    change(raw / "users.dat", 8, "3::M::25::3::48000")
    assert refuse().startswith(f"{raw}/users.dat: user '3' appears 2 times (lines 3 and 8)")


def test_gzip_cut_short(raw: Path, refuse: Callable[[], str]) -> None:
    whole = gzip.compress((raw / "ratings.dat").read_bytes())
    (raw / "ratings.dat").unlink()
    (raw / "ratings.dat.gz").write_bytes(whole[: len(whole) // 2])
    assert refuse().startswith(f"{raw}/ratings.dat.gz: not a whole gzip file")
    (raw / "ratings.dat.gz").write_bytes(b"1::2::3::4\n")
    assert refuse().startswith(f"{raw}/ratings.dat.gz: not a whole gzip file")


def test_wrong_encoding(raw: Path, recipe: Recipe, tmp_path: Path) -> None:
    settings = recipe.model_dump(mode="json")
    settings["format"]["encoding"] = "utf-8"
    with pytest.raises(
        DataError, match=r"movies\.dat: line 2: is not text in the recipe's encoding, in '4::Mis"
    ):
        prepare(parse_recipe(settings, where="test"), raw, tmp_path / "out")


def test_header_must_name_the_recipes_columns(raw: Path, recipe: Recipe, tmp_path: Path) -> None:
    settings = recipe.model_dump(mode="json")
    settings["format"]["header"] = True
    headed = parse_recipe(settings, where="test")
    with pytest.raises(
        DataError,
        match=r"users\.dat: line 1: names the columns .*; the recipe has user, gender, age, occupation, zip",
    ):
        prepare(headed, raw, tmp_path / "out")
    for name, columns in (
        ("ratings.dat", recipe.samples.columns),
        *((join.file, join.columns) for join in recipe.joins),
    ):
        write_lines(
            raw / name, ["::".join(columns), *(raw / name).read_bytes().decode("latin-1").splitlines()]
        )
    assert prepare(headed, raw, tmp_path / "out").rows_in == 300
    with pytest.raises(DataError, match=r"ratings\.dat: line 1: rating is not a number"):
        prepare(recipe, raw, tmp_path / "other")


def test_a_path_with_signs_of_patterns(recipe: Recipe, tmp_path: Path) -> None:
    raw = write_raw_movielens(tmp_path / "[it's] *?", ratings=300)
    assert prepare(recipe, raw, tmp_path / "o'ut [1]").rows_in == 300


def test_rows_per_shard_must_be_positive(recipe: Recipe, raw: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rows_per_shard = 0; expected at least 1"):
        prepare(recipe, raw, tmp_path / "out", rows_per_shard=0)
