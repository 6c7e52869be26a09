"""Opens the engine that is selected in a `Machine`."""

from contextlib import AbstractContextManager
from pathlib import Path

from ham_dist.data.engines.base import Engine, Machine
from ham_dist.data.engines.duckdb import DuckDB
from ham_dist.data.engines.spark import Spark


def open_engine(machine: Machine, spill: Path) -> AbstractContextManager[Engine]:
    """Opens the engine of `machine`.

    Args:
        machine: The engine and its limits.
        spill: Folder to spill to when memory is full.
    Raises:
        DataError: The engine is Spark, and pyspark, Java or the master is missing.
    """
    return DuckDB(machine, spill) if machine.engine == "duckdb" else Spark(machine, spill)
