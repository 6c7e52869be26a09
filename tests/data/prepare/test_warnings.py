"""Counts and warnings of prepare: dropped samples, splits of one class, collapsed numbers, unknown times."""

import io
from collections.abc import Iterable
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from ham_dist.cli.describe import describe, describe_statistics
from ham_dist.data.format.manifest import Checks, Manifest, NumberCheck
from ham_dist.data.format.warnings import collapsed, share_of, warnings_of
from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.statistics import compute_statistics
from ham_dist.errors import DataError
from ham_dist.training.data_record import digest_of
from tests.support.tiny_logs import tiny_recipe, write_tiny

BOTH = ["1,a", "0,b", "1,a", "0,b"]
ITEM = {"item": {"kind": "categorical"}}


def printed(parts: Iterable[RenderableType]) -> str:
    stream = io.StringIO()
    for part in parts:
        Console(file=stream, width=200, markup=False).print(part)
    return stream.getvalue()


def test_dropped_samples_are_counted_and_printed(tmp_path: Path) -> None:
    label = {"column": "click", "positive_above": 0, "negative_below": 0}
    raw = write_tiny(tmp_path / "raw", "click,item", [*BOTH, *BOTH], BOTH)
    manifest = prepare(tiny_recipe(["item"], ITEM, label=label), raw, tmp_path / "out")
    assert manifest.rows_dropped == 6
    text = printed(describe(tmp_path / "out"))
    assert "raw lines 12; dropped 6 samples that are neither positive nor negative; rejected 0 lines" in text
    assert (
        "warning: split train: all 4 samples are positive; AUC is not defined on one class,"
        " and training needs both" in text
    )
    assert "The label rule drops 6 samples: check `label` in the recipe." in text
    assert "warning: split test: its only sample is positive; AUC is not defined on one class\n" in text


def test_a_test_split_of_one_class_is_warned_of(tmp_path: Path) -> None:
    raw = write_tiny(tmp_path / "raw", "click,item", BOTH, ["1,a", "0,b", "0,a", "0,a"])
    manifest = prepare(tiny_recipe(["item"], ITEM), raw, tmp_path / "out")
    expected = ["split test: all 2 samples are negative; AUC is not defined on one class"]
    assert warnings_of(manifest) == expected
    assert compute_statistics(tmp_path / "out", manifest, 16).warnings == expected


@pytest.mark.parametrize(
    ("count", "total", "text"),
    [
        (0, 9000, "0.0%"),
        (4, 9000, "4 of 9,000"),
        (5, 9000, "0.1%"),
        (8999, 9000, "8,999 of 9,000"),
        (9, 9, "100.0%"),
        (0, 0, "0.0%"),
    ],
)
def test_a_share_that_would_round_to_none_or_all_is_given_as_counts(
    count: int, total: int, text: str
) -> None:
    assert share_of(count, total) == text


def test_numbers_that_became_one_id(tmp_path: Path) -> None:
    rates = ["1,0.91,1", "1,0.82,5", "0,0.11,40", "0,0.22,300"]
    fields = {"rate": {"kind": "numeric"}, "count": {"kind": "numeric"}}
    raw = write_tiny(tmp_path / "raw", "click,rate,count", rates, BOTH_NUMBERS)
    manifest = prepare(tiny_recipe(["rate", "count"], fields), raw, tmp_path / "out")
    assert warnings_of(manifest) == [
        "field rate: 4 distinct numbers became 1 id\n"
        '  Set transform = "quantile", or transform = "log" with a scale, in the recipe\'s fields.rate.'
    ]
    assert "warning: field rate: 4 distinct numbers became 1 id" in printed(describe(tmp_path / "out"))


BOTH_NUMBERS = ["1,0.9,7", "0,0.1,9", "1,0.9,7", "0,0.1,9"]


@pytest.mark.parametrize(
    ("numbers", "ids", "number", "id", "warned"),
    [
        (1, 1, 100, 100, False),
        (2, 1, 60, 100, True),
        (40, 2, 49, 95, True),
        (40, 2, 50, 95, False),
        (40, 2, 49, 94, False),
        (100, 4, 2, 60, True),
        (100, 5, 2, 60, False),
        (99, 4, 2, 60, False),
    ],
)
def test_rule_of_the_warning(numbers: int, ids: int, number: int, id: int, warned: bool) -> None:
    check = NumberCheck(
        samples=100, numbers=numbers, ids=ids, most_frequent_number=number, most_frequent_id=id
    )
    assert collapsed(check) == warned


def times(layout: str) -> dict[str, dict[str, str]]:
    return {"hour": {"kind": "time", "column": "time", "layout": layout, "part": "hour"}}


SECONDS = ["1,1512102212", "0,1511111111", "0,1599999999", "1,1522222222"]


def test_times_of_another_layout_are_refused_with_the_one_that_fits(tmp_path: Path) -> None:
    raw = write_tiny(tmp_path / "raw", "click,time", SECONDS, SECONDS)
    with pytest.raises(DataError) as caught:
        prepare(tiny_recipe(["time"], times("YYYYMMDDHH")), raw, tmp_path / "out")
    assert str(caught.value) == (
        "field hour: none of its 4 times is YYYYMMDDHH (digits) within the years 1980 to 2100, such as"
        " '1511111111',"
        ' so all would be unknown\n  Set layout = "epoch_seconds" (seconds since 1970, in UTC), which fits.'
    )
    manifest = prepare(tiny_recipe(["time"], times("epoch_seconds")), raw, tmp_path / "out")
    assert warnings_of(manifest) == []


def test_times_that_are_none_are_counted(tmp_path: Path) -> None:
    raw = write_tiny(
        tmp_path / "raw",
        "click,time",
        ["1,2017120104", "0,2017120105", "0,2017-12-01", "1,"],
        ["1,2017120104", "0,x"] * 2,
    )
    manifest = prepare(tiny_recipe(["time"], times("YYYYMMDDHH")), raw, tmp_path / "out")
    assert warnings_of(manifest) == [
        "field hour: 1 of 3 times of the training split are unknown (id 0): they are not YYYYMMDDHH within"
        " the years 1980 to 2100, such as '2017-12-01'\n  Check fields.hour.layout in the recipe."
    ]


def test_checks_name_no_part_of_the_data(manifest: Manifest) -> None:
    check = NumberCheck(samples=1, numbers=1, ids=1, most_frequent_number=1, most_frequent_id=1)
    other = manifest.model_copy(update={"checks": Checks(numbers={"user": check})})
    assert digest_of(other) == digest_of(manifest)


def test_unseen_ids_are_told_of_fields_without_a_vocabulary_only(tmp_path: Path) -> None:
    hashed = {"kind": "categorical", "column": "item", "hash": True, "max_rows": 50}
    raw = write_tiny(tmp_path / "raw", "click,item", BOTH, ["1,a", "0,x", "1,a", "0,x"])
    manifest = prepare(tiny_recipe(["item"], ITEM), raw, tmp_path / "out")
    text = printed(describe_statistics(compute_statistics(tmp_path / "out", manifest, 16)))
    assert "id 0, test" in text
    assert "unseen" not in text
    manifest = prepare(tiny_recipe(["item"], ITEM | {"hashed": hashed}), raw, tmp_path / "hashed")
    lines = [
        line.split()
        for line in printed(
            describe_statistics(compute_statistics(tmp_path / "hashed", manifest, 16))
        ).splitlines()
    ]
    assert ["item", "0.0%", "50.0%", "50.0%"] in lines
    assert ["hashed", "0.0%", "0.0%", "0.0%", "50.0%", "50.0%"] in lines
