"""Transforms of numbers and times, compared with values worked out by hand, in both engines and scoring."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from ham_dist.data.encode.expressions import CELL, counts_of, valued
from ham_dist.data.encode.transforms import quantiles
from ham_dist.data.engines.base import Engine, Machine
from ham_dist.data.engines.open import open_engine
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.recipe.fields import Numeric, Time
from ham_dist.data.recipe.load import Recipe, parse_recipe
from ham_dist.errors import DataError
from tests.support.encoded import encode_raw
from tests.support.tiny_logs import tiny_recipe, write_tiny

# pyspark leaves the socket of each result it has read to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in.*socket:pytest.PytestUnraisableExceptionWarning"
)

LEAP = "2016-02-29"  # a Monday


@pytest.fixture(scope="module", params=["duckdb", "spark"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if request.param == "spark":
        pytest.importorskip("pyspark", reason="pyspark is not installed (pip install 'ham-dist[spark]')")
        if shutil.which("java") is None:
            pytest.skip("there is no Java for Spark")
    with ExitStack() as stack:
        machine = Machine(engine=request.param, threads=1)
        yield stack.enter_context(open_engine(machine, tmp_path_factory.mktemp("spill")))


@pytest.fixture
def values(engine: Engine, tmp_path: Path) -> Callable[[Numeric | Time, list[Any]], list[str | None]]:
    """The values that a field makes of cells, in their order."""

    def found(field: Numeric | Time, cells: list[Any]) -> list[str | None]:
        pq.write_table(pa.table({CELL: cells}), tmp_path / "cells.parquet")
        counted = counts_of(engine.read_parquet([tmp_path / "cells.parquet"]))
        rows = engine.query(valued(counted, field))().to_pylist()
        by_cell = {row[CELL]: row["value"] for row in rows}
        return [by_cell[cell] for cell in cells]

    return found


Values = Callable[[Numeric | Time, list[Any]], list[str | None]]


def test_log_square(values: Values) -> None:
    numbers = [0.0, 0.99, 1.0, 2.0, 3.0, 100.0, -1.5, None, 1e300, -1e300]
    # ln(3)^2 = 1.2, ln(100)^2 = 21.2, ln(1e300)^2 = 477,170.8; whole parts of 0, 0.99, 1, 2 and -1.5, less 2.
    expected = ["-2", "-2", "-1", "0", "1", "21", "-3", "missing", "477170"]
    found = values(Numeric(kind="numeric"), numbers)
    assert found[:-1] == expected
    assert found[-1] is not None, "a number below every int64 has an id too"


def test_log(values: Values) -> None:
    field = Numeric(kind="numeric", transform="log", scale=20)
    # 20 ln(1.1) = 1.9, 20 ln(1.5) = 8.1, 20 ln(2) = 13.9, 20 ln(101) = 92.3
    assert values(field, [0.0, 0.1, 0.5, 1.0, 100.0, -0.5, -0.01, None]) == [
        "0",
        "1",
        "8",
        "13",
        "92",
        "-8",
        "0",
        "missing",
    ]


def test_quantile_with_boundaries(values: Values) -> None:
    # 0.30000000000000004 is the float64 after 0.3: a boundary is compared bit by bit.
    field = Numeric(kind="numeric", transform="quantile", boundaries=(0.0, 0.30000000000000004, 7.0))
    cells = [-5.0, 0.0, 0.3, 0.30000000000000004, 6.9, 7.0, 1e9, None]
    assert values(field, cells) == ["0", "1", "1", "2", "2", "3", "3", "missing"]
    assert values(Numeric(kind="numeric", transform="quantile", boundaries=()), [1.0, 2.0]) == ["0", "0"]


def test_quantiles_are_those_of_the_rows(engine: Engine, tmp_path: Path) -> None:
    # Below 1, 2, 3 and 9 stand 0, 4, 5 and 7 of 8 numbers: buckets 0, 2, 2 and 3 of 4.
    numbers = [1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 3.0, 9.0, None, None]
    pq.write_table(pa.table({CELL: numbers}), tmp_path / "cells.parquet")
    counted = counts_of(engine.read_parquet([tmp_path / "cells.parquet"]))
    assert engine.query(quantiles(counted, CELL, 4))()["boundary"].to_pylist() == [2.0, 9.0]


@pytest.mark.parametrize(
    ("layout", "cells"),
    [
        ("YYMMDDHH", {"16022923": ("23", "0"), "16023023": None, "16022924": None, "1602292": None}),
        (
            "YYYYMMDDHH",
            {
                "2016022904": ("04", "0"),
                "2015022904": None,
                "1980010100": ("00", "1"),
                "2100123123": ("23", "4"),
                "1979123123": None,
                "2101010100": None,
                "1512102212": None,  # 2017 in seconds; 22 October 1512 in this layout
            },
        ),
        (
            "epoch_seconds",
            {
                "1512102212": ("04", "4"),  # Friday, 2017-12-01 04:23:32 UTC
                "1512102212.75": ("04", "4"),
                "315532800": ("00", "1"),  # Tuesday, 1980-01-01
                "315532799": None,
                "4133980799": ("23", "4"),  # Friday, 2100-12-31 23:59:59
                "4133980800": None,
                "1512102212000": None,
                "0": None,
                "-1": None,
                "1.5e9": None,
            },
        ),
        ("epoch_milliseconds", {"1512102212345": ("04", "4"), "1512102212": None}),
        (
            "iso_8601",
            {
                f"{LEAP}T23:59:59Z": ("23", "0"),
                f"{LEAP} 04:05": ("04", "0"),
                f"{LEAP}T04:05:06.123+08:00": ("04", "0"),
                f"{LEAP}": (None, "0"),
                "2015-02-29": None,
                "2016-04-31": None,
                f"{LEAP}T24:00:00": None,
                f"{LEAP}T23:60:00": None,
                "1512-10-22": None,
                "20160229T235959": None,
                "": None,
            },
        ),
    ],
)
def test_times(layout: Any, cells: dict[str, tuple[str | None, str] | None], values: Values) -> None:
    for place, part in enumerate(("hour", "weekday")):
        field = Time.model_validate({"kind": "time", "layout": layout, "part": part})
        expected = [None if found is None else found[place] for found in cells.values()]
        assert values(field, [*cells, None]) == [*expected, None]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 2}, 'scale can only be used with transform = "log"'),
        (
            {"transform": "log", "boundaries": [1.0]},
            'boundaries can only be used with transform = "quantile"',
        ),
        ({"transform": "quantile", "boundaries": [1.0, 1.0]}, "boundaries must be in ascending order"),
        (
            {"transform": "quantile", "buckets": 2, "boundaries": [1.0, 2.0]},
            "2 boundaries make more than 2 buckets",
        ),
        ({"transform": "log", "scale": 0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Numeric.model_validate({"kind": "numeric"} | settings)


RATES = [0.91, 0.82, 0.77, 0.95, 0.88, 0.64, 0.11, 0.22, 0.17, 0.35, 0.28, 0.14]


def rates(**numeric: Any) -> Recipe:
    return tiny_recipe(["rate"], {"rate": {"kind": "numeric", **numeric}})


def write_rates(folder: Path) -> Path:
    lines = [f"{int(rate > 0.5)},{rate}" for rate in RATES]
    return write_tiny(folder, "click,rate", lines, ["1,0.9", "0,0.1", "1,", "0,0.5"])


def test_quantiles_of_training_cut_every_split_and_every_record(tmp_path: Path) -> None:
    raw, out = write_rates(tmp_path / "raw"), tmp_path / "out"
    manifest = prepare(rates(transform="quantile", buckets=4), raw, out)
    # Three of the twelve numbers each: 0.11 to 0.17, 0.22 to 0.35, 0.64 to 0.82, 0.88 to 0.95.
    boundaries = [0.22, 0.64, 0.88]
    assert manifest.recipe is not None
    assert manifest.recipe["fields"]["rate"]["boundaries"] == boundaries
    vocabulary = pq.read_table(out / "vocabulary/rate.parquet").to_pydict()
    # Equally frequent values have ids in the order of their text; training lacks a missing number.
    assert vocabulary == {"value": ["0", "1", "2", "3"], "id": [1, 2, 3, 4], "count": [3, 3, 3, 3]}
    found = {
        split: pq.read_table(out / manifest.splits[split].shards[0].file)["rate"].to_pylist()
        for split in manifest.splits
    }
    assert found == {"train": [4, 3, 3, 4, 4, 3, 1, 2, 1, 2, 2, 1], "validation": [4, 1], "test": [0, 2]}
    recipe = parse_recipe(manifest.recipe, where="manifest.json")
    pq.write_table(pa.table({"rate": [0.63, 0.64, None, 5.0]}), tmp_path / "records.parquet")
    assert encode_raw(recipe, out / "vocabulary", tmp_path / "records.parquet")["rate"].to_pylist() == [
        2,
        3,
        0,
        4,
    ]
    with pytest.raises(DataError, match=r"field rate: the recipe has no boundaries .*\n .*manifest.json"):
        encode_raw(rates(transform="quantile", buckets=4), out / "vocabulary", tmp_path / "records.parquet")


def test_data_of_quantiles_is_found_there_and_its_own_recipe_makes_it_again(tmp_path: Path) -> None:
    raw, out, recipe = write_rates(tmp_path / "raw"), tmp_path / "out", rates(transform="quantile", buckets=4)
    manifest = prepare(recipe, raw, out)
    assert prepare(recipe, raw, out) == manifest
    assert manifest.recipe is not None
    again = prepare(parse_recipe(manifest.recipe, where="manifest.json"), raw, tmp_path / "again")
    assert again.splits == manifest.splits
    with pytest.raises(DataError, match="differs in recipe"):
        prepare(rates(transform="quantile", buckets=5), raw, out)


def test_recipes_without_new_keys_are_written_as_before(manifest: Manifest) -> None:
    assert manifest.recipe is not None
    assert set(manifest.recipe["label"]) == {"column", "positive_above", "negative_below"}
    numeric = rates().model_dump(mode="json")["fields"]["rate"]
    assert set(numeric) == {"kind", "column", "min_count", "max_rows"}
