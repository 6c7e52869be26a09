"""The encoder works with any engine of the protocol, not with a class that it knows."""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pytest

from ham_dist.data.encode.encoder import Encoder
from ham_dist.data.engines.base import Engine, Machine
from ham_dist.data.engines.duckdb import DuckDB
from ham_dist.data.engines.spark import Spark
from ham_dist.data.recipe.fields import Categorical

VOCABULARY = pa.table({"value": ["a", "b"], "id": pa.array([1, 2], pa.int32())})
CELLS = ["b", None, "a", "x", "b"]


class Delegating:
    """An engine that is no DuckDB, but does all by one."""

    def __init__(self, engine: DuckDB, long_queries: bool) -> None:
        self._engine, self.long_queries = engine, long_queries

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


class Column:
    """Samples of one column; counts how often all of it is shown to the engine."""

    columns: Collection[str] = ("site",)
    rows = np.arange(len(CELLS))
    views = 0

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def cells(self, column: str) -> pa.Array:
        return pa.array(CELLS)

    def view(self) -> ibis.Table:
        self.views += 1
        return self._engine.show_arrow(Encoder.VIEW, pa.table({"site": CELLS, "_row": self.rows}))


@pytest.mark.parametrize("long_queries", [False, True])
def test_the_engine_says_how_it_is_asked(long_queries: bool, tmp_path: Path) -> None:
    with DuckDB(Machine(threads=1), tmp_path) as duckdb:
        engine: Any = Delegating(duckdb, long_queries)
        known = {"site": engine.keep(engine.show_arrow("known", VOCABULARY))}
        samples = Column(engine)
        made = {"site": ("site", Categorical(kind="categorical"), None)}
        ids = Encoder(engine, made, known).encode(samples)
    assert ids["site"].to_pylist() == [2, 0, 1, 0, 2]
    assert samples.views == int(long_queries)


# pyspark leaves the socket of each result it has read to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in.*socket:pytest.PytestUnraisableExceptionWarning")
def test_spark_shows_a_table_that_is_in_memory(tmp_path: Path) -> None:
    pytest.importorskip("pyspark", reason="pyspark is not installed (pip install 'ham-dist[spark]')")
    if shutil.which("java") is None:
        pytest.skip("there is no Java for Spark")
    with Spark(Machine(engine="spark", threads=1), tmp_path) as engine:
        for table in (VOCABULARY, VOCABULARY.slice(1)):
            assert engine.query(engine.show_arrow("shown", table))().to_pylist() == table.to_pylist()
