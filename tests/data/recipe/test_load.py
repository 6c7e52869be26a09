import copy
from pathlib import Path
from typing import Any

import pytest

from ham_dist.data.recipe.load import Recipe, load_recipe, parse_recipe, recipe_names
from ham_dist.errors import DataError


@pytest.fixture
def settings(recipe: Recipe) -> dict[str, Any]:
    return copy.deepcopy(recipe.model_dump(mode="json"))


def mistakes(settings: dict[str, Any]) -> list[str]:
    with pytest.raises(DataError) as caught:
        parse_recipe(settings, where="x.toml")
    return str(caught.value).splitlines()


def test_movielens_has_the_seven_fields_of_the_paper(recipe: Recipe) -> None:
    assert recipe.separators() == {
        "user": None,
        "movie": None,
        "gender": None,
        "age": None,
        "occupation": None,
        "zip": None,
        "genres": "|",
    }


def test_a_recipe_survives_the_manifest(recipe: Recipe, settings: dict[str, Any]) -> None:
    assert parse_recipe(settings, where="manifest.json") == recipe


def test_every_mistake_is_told_at_once_with_the_nearest_key(settings: dict[str, Any]) -> None:
    settings["min_count"] = 0
    settings["format"]["seperator"] = settings["format"].pop("separator")
    settings["joins"][1]["keey"] = "movie"
    settings["label"]["positive_above"] = "three"
    settings["fields"]["genres"]["kind"] = "multi"
    settings["fields"]["user.id"] = {"kind": "categorical"}
    found = mistakes(settings)
    assert "x.toml: min_count = 0: input should be greater than or equal to 1" in found
    assert "x.toml: format.separator: is missing and has no default; add it" in found
    assert "x.toml: format.seperator: unknown key; did you mean separator?" in found
    assert "x.toml: joins.1.keey: unknown key; did you mean key?" in found
    assert any(line.startswith("x.toml: label.positive_above = 'three':") for line in found)
    assert any(
        line.startswith("x.toml: fields.genres:") and "'multi'" in line and "'multi_valued'" in line
        for line in found
    )
    assert (
        "x.toml: fields = 'user.id': a field name has only letters, digits and _, and starts with a letter; "
        'for a column with another name, set column = "..."'
    ) in found
    assert len(found) == 7


def test_unknown_key_of_a_field_and_of_the_whole(settings: dict[str, Any]) -> None:
    settings["fields"]["genres"]["seperator"] = "|"
    settings["fields"]["user"]["separator"] = "|"
    settings["min_cuont"] = 3
    assert mistakes(settings) == [
        "x.toml: fields.user.separator: unknown key; "
        "valid keys are column, min_count, max_rows, kind, missing, hash",
        "x.toml: fields.genres.seperator: unknown key; did you mean separator?",
        "x.toml: min_cuont: unknown key; did you mean min_count?",
    ]


def test_columns_must_fit_together(settings: dict[str, Any]) -> None:
    settings["fields"]["gendr"] = settings["fields"].pop("gender")
    settings["ignored"]["rating"] = "no reason"
    settings["joins"][1]["key"] = "film"
    settings["samples"]["columns"].append("Zip")
    assert mistakes(settings) == [
        "x.toml: joins.1.key = 'film': not one of its own columns (movie, title, genres)",
        "x.toml: joins.1.key = 'film': no earlier file has that column",
        "x.toml: joins.1.columns: movie is also a column of an earlier file; rename one",
        "x.toml: columns Zip and zip differ only in upper and lower case; rename one",
        "x.toml: fields.gendr: no file has that column; did you mean gender?",
        "x.toml: column rating must be only one of: a field, ignored, the label's column",
        "x.toml: column Zip is not used; add it to fields or to ignored",
        "x.toml: column gender is not used; add it to fields or to ignored",
    ]


def test_a_label_cannot_be_both(settings: dict[str, Any]) -> None:
    settings["label"] |= {"positive_above": 2, "negative_below": 4}
    assert mistakes(settings) == [
        "x.toml: label: negative_below = 4.0 is above positive_above = 2.0: "
        "numbers between them would be both positive and negative"
    ]


def test_a_label_cannot_be_a_missing_value(settings: dict[str, Any]) -> None:
    settings["format"]["null"] = ["NA", "-"]
    settings["label"] = {"column": "rating", "positive": ["5", "NA"], "negative": ["", "1"]}
    assert mistakes(settings) == [
        "x.toml: label.positive = 'NA': means a missing value (format.null), so no label is equal to it; "
        "remove it from label.positive or from format.null",
        "x.toml: label.negative = '': means a missing value, so no label is equal to it; "
        "remove it from label.negative",
    ]


def test_lookup_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("movielens-1m") == recipe
    with pytest.raises(
        DataError,
        match=r"'movielens1m': no recipe has that name; did you mean movielens-1m\?\n"
        r"  Give one of: .*movielens-1m",
    ):
        load_recipe("movielens1m")
    with pytest.raises(DataError, match=r"mine\.toml: no such recipe file"):
        load_recipe("mine.toml")
    (tmp_path / "mine.toml").write_text("name = \n")
    with pytest.raises(DataError, match=r"mine\.toml: is not TOML: .*line 1"):
        load_recipe("mine.toml")


def test_recipes_of_the_working_folder_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.real_data import ROOT

    text = (ROOT / "datasets" / "movielens-1m.toml").read_text()
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "movielens-1m.toml").write_text(text.replace("min_count = 1", "min_count = 5"))
    (tmp_path / "datasets" / "other.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert load_recipe("movielens-1m").min_count == 5
    assert "other" in recipe_names()


@pytest.mark.parametrize(
    ("key", "value"),
    [("min_count", 10**30), ("max_rows", 2**40), ("name", "x" * 300), ("source", "")],
)
def test_a_value_beyond_its_limit_is_a_mistake(settings: dict[str, Any], key: str, value: Any) -> None:
    settings[key] = value
    assert any(line.startswith(f"x.toml: {key}") and len(line) < 300 for line in mistakes(settings))


def test_a_long_field_name_is_a_mistake(settings: dict[str, Any]) -> None:
    """Its vocabulary's file could not have that name."""
    settings["fields"]["x" * 300] = settings["fields"]["user"]
    assert any("at most 150" in line for line in mistakes(settings))


@pytest.mark.parametrize("file", ["../ratings.dat", "/etc/passwd", "a/../../b", "a\0b", "C:/ratings.dat"])
def test_a_raw_file_lies_in_the_raw_folder(settings: dict[str, Any], file: str) -> None:
    settings["samples"]["file"] = file
    assert any("samples.file" in line for line in mistakes(settings))
