"""Tables and machines for tests of the planner; nothing is allocated."""

from ham_dist.config.schema import TablePrecision
from ham_dist.distributed.planning.topology import Topology
from ham_dist.embedding.tables import Table

PLENTY = 10**15


def tables(
    sizes: list[int], prefix: str = "t", width: int = 4, precision: TablePrecision = "float32"
) -> list[Table]:
    return [
        Table(f"{prefix}{number}", rows, width, width, width, precision) for number, rows in enumerate(sizes)
    ]


def cpu(ranks: int, ranks_of_host: int | None = None, memory: int = PLENTY) -> Topology:
    return Topology("cpu", ranks, ranks_of_host or ranks, memory)
