"""A bundle with vocabularies, for raw records."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.live_models import ROWS, Live, export, live_model

RECIPE: dict[str, Any] = {
    "name": "films",
    "source": "this test",
    "format": {"separator": ","},
    "samples": {"file": "films.csv", "columns": ["user", "gone", "genres", "age", "rating"]},
    "label": {"column": "rating", "positive_above": 3, "negative_below": 3},
    "fields": {
        "user": {"kind": "categorical"},
        "gone": {"kind": "categorical"},
        "genres": {"kind": "multi_valued", "separator": "|"},
        "age": {"kind": "categorical"},
    },
}

RECORDS: list[dict[str, Any]] = [
    {"user": "u3", "genres": "g2|g1", "age": "a1", "gone": "g1"},
    {"user": None, "genres": ["g4", "nothing"], "age": "", "gone": "x", "more": 1.5},
    {"user": "u9", "genres": None, "age": "a2", "gone": "g1"},
]
"""Raw records; no field is made from `more`."""
IDS: dict[str, Any] = {
    "user": [3, 0, 9],
    "genres": [[2, 1], [4, 0], [0]],
    "age": [1, 0, 2],
    "gone": [1, 0, 1],
}
"""Their ids."""


def write_raw_bundle(
    folder: Path,
    recipe: dict[str, Any],
    live: Live | None = None,
    counts: Mapping[str, int] = ROWS,
    **options: Any,
) -> Path:
    """Writes a bundle with vocabularies: `user` 7 has the raw value "u7", and so on; id 0 is unknown."""
    (folder / "vocabulary").mkdir()
    for field, rows in counts.items():
        values = {
            "value": [f"{field[0]}{id}" for id in range(1, rows)],
            "id": range(1, rows),
            "count": [1] * (rows - 1),
        }
        types = pa.schema([("value", pa.string()), ("id", pa.int32()), ("count", pa.int64())])
        pq.write_table(pa.table(values, schema=types), folder / "vocabulary" / f"{field}.parquet")
    export(
        live or live_model("deepfm"),
        folder / "raw_bundle",
        vocabulary=folder / "vocabulary",
        recipe=recipe,
        **options,
    )
    return folder / "raw_bundle"
