"""Names of fields and columns, and rules of labels, that a recipe may have."""

from typing import Any

import pytest

from ham_dist.errors import DataError
from tests.support.tiny_logs import tiny_recipe

ITEM = {"item": {"kind": "categorical"}}


def mistakes(columns: list[str], fields: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        tiny_recipe(columns, fields, **changes)
    return str(caught.value)


def test_a_field_that_is_called_as_no_field_can_be() -> None:
    message = mistakes(["user id"], {"user id": {"kind": "categorical"}})
    assert (
        "fields = 'user id': a field name has only letters, digits and _, and starts with a letter;"
        in message
    )
    assert 'for a column with another name, set column = "..."' in message


def test_a_name_of_a_data_set_is_no_field() -> None:
    assert "name = 'a b': a data set name has only letters, digits, dots" in mistakes(
        ["item"], ITEM, name="a b"
    )


def test_a_wrong_layout_lists_the_right_ones() -> None:
    message = mistakes(["t"], {"t": {"kind": "time", "layout": "HHMM", "part": "hour"}})
    expected = "'YYMMDDHH', 'YYYYMMDDHH', 'epoch_seconds', 'epoch_milliseconds' or 'iso_8601'"
    assert message == f"tests: fields.t.layout = 'HHMM': must be {expected}"


@pytest.mark.parametrize("name", ["", "_row", "_LABEL", "_key"])
def test_columns_that_are_used_have_a_name_of_their_own(name: str) -> None:
    message = mistakes([name], {"x": {"kind": "categorical", "column": name}})
    assert f"columns: {name!r} cannot be the name of a column that is used" in message
    assert 'set format.header = "skip"' in message


def test_a_control_character_in_a_column() -> None:
    assert "a column name must not have control characters" in mistakes(["a\x1bb"], ITEM)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (
            {"positive_above": 1.0},
            "label: give positive_above and negative_below (numbers), or positive and negative",
        ),
        (
            {"positive": ["a"]},
            "label: give positive_above and negative_below (numbers), or positive and negative",
        ),
        ({"positive": ["a"], "negative": ["b"], "positive_above": 1.0}, "label: give positive_above"),
        ({"positive": ["a"], "negative": ["a"]}, "label: 'a' is in both positive and negative"),
    ],
)
def test_a_label_has_one_rule(label: dict[str, Any], message: str) -> None:
    assert message in mistakes(["item"], ITEM, label={"column": "click"} | label)
