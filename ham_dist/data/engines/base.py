"""The engine protocol, and the limits of the machine that an engine runs on. `open.py` chooses the engine."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import ibis
import pyarrow as pa

from ham_dist.errors import DataError

ROWS_PER_BATCH = 65_536
# Of the memory that the user gives, DuckDB gets this share: it counts its own buffers only, and Python, pyarrow and the rows under way need room.
_ENGINE_SHARE = 0.5
# Python, pyarrow and one block under way take about half of this.
LEAST_MEMORY = 10**9

_MOST_MEMORY = 10**15
"""Most that DuckDB takes is 2^64 bytes; this is far above any machine."""

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


@dataclass(frozen=True)
class Machine:
    """What the work may use, and what does it. Nothing here changes what is written."""

    memory: int = 4 * 10**9
    """Bytes that the whole process may take."""
    threads: int | None = None
    """None for as many as cores."""
    spill: Path | None = None
    """Folder for what does not fit in memory; None for a place beside the output."""
    engine: Literal["duckdb", "spark"] = "duckdb"
    master: str | None = None
    """Spark's master address; None for this machine."""

    def __post_init__(self) -> None:
        if self.memory < LEAST_MEMORY:
            raise DataError(
                f"--memory: {self.memory / 1e9:g}GB is too little\n  Give at least {LEAST_MEMORY / 1e9:g}GB."
            )
        if self.master is not None and self.engine != "spark":
            raise DataError(
                f"--master {self.master}: is for Spark\n  Add --engine spark, or leave --master out."
            )

    @property
    def engine_memory(self) -> int:
        """Bytes that the engine may take."""
        return int(self.memory * _ENGINE_SHARE)


class Engine(Protocol):
    """What preparing asks of an engine."""

    long_queries: bool
    """Whether a query costs so much to start that it should be about as many rows as possible."""

    @property
    def versions(self) -> dict[str, str]:
        """Of the programs that decide what is written, the engine first."""

    def keep(self, expression: ibis.Table) -> ibis.Table:
        """The rows of `expression`, worked out once."""

    def read_parquet(self, paths: Sequence[Path]) -> ibis.Table:
        """The rows of Parquet files of one schema.

        raises: DataError if one of them is none.
        """

    def batches(self, expression: ibis.Table) -> Iterator[pa.RecordBatch]:
        """The rows of `expression` piece by piece, so that they need not fit in memory."""

    def show(self, name: str, expression: ibis.Table) -> ibis.Table:
        """A view called `name` of the rows of `expression`, in place of the one that was called so before."""

    def show_arrow(self, name: str, table: pa.Table) -> ibis.Table:
        """A view called `name` of a table in memory; it replaces an earlier view of that name."""

    def query(self, expression: ibis.Table) -> Callable[[], pa.Table]:
        """Gives the rows of `expression`, which are few, as its views are then; translated once, as that takes longer than many a query."""


def parse_size(text: str) -> int:
    """Bytes of a size such as 4GB, 1.5 GiB or 800MB.

    raises: DataError if it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Z]+)", text.strip().upper())
    if match is None or match[2] not in _UNITS:
        raise DataError(f"--memory {text[:40]}: not a size\n  Write it as 4GB, 1.5GiB or 800MB.")
    size = float(match[1]) * _UNITS[match[2]]
    if size > _MOST_MEMORY:
        raise DataError(
            f"--memory {text[:40]}: is more than a machine has\n  Give at most {_MOST_MEMORY // 10**12:,}TB."
        )
    return int(size)


def literal(path: Path, signs: str = "*?[", quoted: str = "[{}]") -> str:
    """A path for a reader that takes `signs` in it for a pattern, and a sign that is written as `quoted` for itself; by default for DuckDB."""
    return "".join(quoted.format(letter) if letter in signs else letter for letter in str(path))
