"""Opens the engine that a `Machine` names."""

from contextlib import AbstractContextManager
from pathlib import Path

from ham_dist.data.engines.base import Engine, Machine
from ham_dist.data.engines.duckdb import DuckDB
from ham_dist.data.engines.spark import Spark


def open_engine(machine: Machine, spill: Path) -> AbstractContextManager[Engine]:
    """The engine that `machine` names.

    Args:
        spill: Folder for what does not fit in memory.
    Raises:
        DataError: It is Spark, and pyspark, Java or the master is missing.
    """
    return DuckDB(machine, spill) if machine.engine == "duckdb" else Spark(machine, spill)
