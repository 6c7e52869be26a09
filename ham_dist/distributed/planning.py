"""Which rank gets which part of which table: a plan, made from sizes alone, before any table has memory.

C rows, d stored columns of one table, W ranks
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise

from ham_dist.config.schema import ShardingKind, ShardingSettings
from ham_dist.distributed.placement import Part, Placement, Plan
from ham_dist.distributed.rules import TableRule
from ham_dist.distributed.topology import Topology
from ham_dist.embedding.tables import KERNEL_WIDTH, Table
from ham_dist.errors import ConfigError, ShardingError

LARGE_BYTES = 1 << 30
"""Under `auto` on CPU, a table (with what training keeps beside it) of more bytes than this, and more than a rank's fair share of all tables, goes
row-wise. Below, one rank looks it up faster than all ranks can exchange partial sums."""


class Planner:
    """Places tables one after the other, largest first, each where most room is left.

    settings: the kind of each table.
    rule:     how tables move, which decides on their kernel and on what lies beside them.
    taken:    bytes of each rank that are in use already; none by default.
    """

    def __init__(self, settings: ShardingSettings, rule: TableRule, topology: Topology, taken: Sequence[int] = ()) -> None:
        self.settings = settings
        self.rule = rule
        self.topology = topology
        self.load = list(taken) or [0] * topology.ranks

    def plan(self, groups: Mapping[str, Sequence[Table]], batch_size: int) -> Plan:
        """Where all tables of `groups` (by place in the model) lie; the same on every rank that asks with the same arguments.

        batch_size: rows of a global batch, which TorchRec's planner weighs traffic by.
        raises:     ShardingError, with ways out, if a kind cannot take a table or a rank's memory cannot take its parts; BackendError if the rule
                    does not exist on the device.
        """
        for tables in groups.values():
            for table in tables:
                self.rule.require(self.topology.device, table.precision)
                self._require_possible(table)
        if self.topology.device == "cuda" and any(self.kind_of(table) == "auto" for tables in groups.values() for table in tables):
            from ham_dist.distributed.torchrec_planner import plan_by_torchrec

            plan = plan_by_torchrec(self, groups, batch_size)
            for placement in plan.placements:
                self._add(placement)
        else:
            plan = self._plan_by_size(groups)
        self._require_room(plan)
        return plan

    def kind_of(self, table: Table) -> str:
        """The kind that the settings give a table; may be `auto`."""
        return self.settings.tables.get(table.field, self.settings.kind)

    def is_fused(self, kind: ShardingKind) -> bool:
        """Whether a table of this kind steps inside the backward pass: TorchRec has no fused kernel for data-parallel tables."""
        return self.rule.fused is not None and kind != "data_parallel"

    def bytes_of(self, table: Table, kind: ShardingKind, part: Part | None = None) -> int:
        """Bytes of `table`, or of a part of it, with all that training keeps beside it."""
        rows, columns = (table.rows, table.stored_width) if part is None else (part.rows, part.columns)
        return sum(self.rule.bytes_of(rows, columns, fused=self.is_fused(kind), number_bytes=table.number_bytes))

    @property
    def room(self) -> int:
        """Bytes of a rank that tables may take."""
        return int(self.topology.memory * self.settings.memory_share)

    def _plan_by_size(self, groups: Mapping[str, Sequence[Table]]) -> Plan:
        tables = [(table, path) for path, group in groups.items() for table in group]
        total = sum(self.bytes_of(table, "table_wise") for table, _ in tables)
        placed: dict[tuple[str, str], Placement] = {}
        for table, path in sorted(tables, key=lambda entry: (-entry[0].rows * entry[0].stored_width, entry[1], entry[0].field)):
            kind = self.kind_of(table)
            placement = self._place(table, self._kind_by_size(table, total) if kind == "auto" else kind)  # type: ignore[arg-type]
            self._add(placement)
            placed[path, table.field] = placement
        return Plan({path: {table.field: placed[path, table.field] for table in group} for path, group in groups.items()})

    def _kind_by_size(self, table: Table, total: int) -> ShardingKind:
        size = self.bytes_of(table, "table_wise")
        spreads = -(-table.rows // self.topology.ranks) * (self.topology.ranks - 1) < table.rows
        too_large = size > self.room - min(self.load)
        more_than_its_share = size > LARGE_BYTES and size * self.topology.ranks > total
        return "row_wise" if self.topology.ranks > 1 and spreads and (too_large or more_than_its_share) else "table_wise"

    def _place(self, table: Table, kind: ShardingKind) -> Placement:
        unit = KERNEL_WIDTH if self.rule.fused is not None else 1
        ranks = range(self.topology.ranks)
        hosts = [range(host * self.topology.ranks_of_host, (host + 1) * self.topology.ranks_of_host) for host in range(self.topology.hosts)]
        width = table.stored_width
        if kind == "table_wise":
            parts = [Part(self._emptiest(ranks, 1)[0], 0, table.rows, 0, width)]
        elif kind == "row_wise":
            parts = self._rows(table, ranks, 0, width)
        elif kind == "column_wise":
            blocks = _column_blocks(width, unit, len(ranks))
            parts = [Part(rank, 0, table.rows, *block) for rank, block in zip(self._emptiest(ranks, len(blocks)), blocks, strict=True)]
        elif kind == "table_row_wise":
            host = min(hosts, key=lambda host: (sum(self.load[rank] for rank in host), host.start))
            parts = self._rows(table, host, 0, width)
        elif kind == "grid":
            blocks = _column_blocks(width, unit, len(hosts))
            emptiest = sorted(hosts, key=lambda host: (sum(self.load[rank] for rank in host), host.start))[: len(blocks)]
            in_order = sorted(emptiest, key=lambda host: host.start)
            parts = [part for host, block in zip(in_order, blocks, strict=True) for part in self._rows(table, host, *block)]
        else:
            parts = [Part(rank, 0, table.rows, 0, width) for rank in ranks]
        return Placement(table, kind, self.is_fused(kind), tuple(parts))

    def _rows(self, table: Table, ranks: range, first_column: int, columns: int) -> list[Part]:
        """Blocks of rows: TorchRec's id distribution takes the rank of row i to be i // ceil(C / ranks), so that the last block may be smaller."""
        block = -(-table.rows // len(ranks))
        if block * (len(ranks) - 1) >= table.rows:
            raise ShardingError(
                f"sharding: table {table.field!r} has {table.rows} rows, and {len(ranks)} ranks are to get {block} each: the last would get none.\n"
                f'  1. Another kind for it: sharding.tables = {{ {table.field} = "table_wise" }}, or "data_parallel".\n'
                f"  2. Fewer ranks: {-(-table.rows // block)} or less."
            )
        return [Part(rank, number * block, min(block, table.rows - number * block), first_column, columns) for number, rank in enumerate(ranks)]

    def _emptiest(self, ranks: range, count: int) -> list[int]:
        return sorted(sorted(ranks, key=lambda rank: (self.load[rank], rank))[:count])

    def _add(self, placement: Placement) -> None:
        for part in placement.parts:
            self.load[part.rank] += self.bytes_of(placement.table, placement.kind, part)

    def _require_possible(self, table: Table) -> None:
        kind = self.kind_of(table)
        if kind in ("column_wise", "grid") and self.rule.whole_rows:
            raise ShardingError(
                f'sharding: table {table.field!r} is {kind}, and optimizer.tables = "{self.rule.name}" makes one number of all columns of a row: '
                "ranks with some of the columns each would make another, and the table would move by another rule than on one rank.\n"
                '  1. A kind that keeps rows whole: "row_wise" or "table_wise".\n'
                '  2. A rule that moves each number by itself: optimizer.tables = "adagrad", "sgd" or "adam".'
            )
        if kind == "data_parallel" and table.precision != "float32":
            raise ShardingError(
                f'sharding: table {table.field!r} is data_parallel, and precision.tables = "{table.precision}" exists in the fused kernels alone: '
                f"a copy on each rank would have gradients, and what its rule remembers, in {table.precision} too.\n"
                '  1. Another kind: "table_wise" or "row_wise".\n'
                '  2. precision.tables = "float32".'
            )
        if kind == "data_parallel" and self.rule.dense is None:
            raise ShardingError(
                f'sharding: table {table.field!r} is data_parallel, and optimizer.tables = "{self.rule.name}" exists inside the fused kernels alone, '
                "which data-parallel tables do not have.\n"
                '  1. Another kind: "table_wise" or "row_wise".\n'
                '  2. Another rule: optimizer.tables = "adam", "adagrad" or "rowwise_adagrad".'
            )

    def _require_room(self, plan: Plan) -> None:
        fullest = max(range(self.topology.ranks), key=lambda rank: self.load[rank])
        if self.load[fullest] <= self.room:
            return
        largest = max(plan.placements, key=lambda placement: placement.numbers_of(fullest))
        raise ShardingError(
            f"sharding: {_size(self.load[fullest])} of tables, their gradients and their optimizer's state would lie on rank {fullest} of "
            f"{self.topology.ranks}, and {_size(self.room)} may: sharding.memory_share = {self.settings.memory_share} of the rank's "
            f"{_size(self.topology.memory)}.\n" + ways_out(self, largest.table, sum(self.load) // self.topology.ranks)
        )


def ways_out(planner: Planner, largest: Table, mean_load: int) -> str:
    """What to do about tables that do not fit, numbered.

    largest:   the largest table of the fullest rank.
    mean_load: bytes a rank, were all tables spread evenly.
    """
    ways = ["Fewer columns: a lower model.base_width."]
    if planner.topology.ranks > 1 and planner.kind_of(largest) not in ("auto", "row_wise"):  # `auto` has tried it
        ways.append(f'Another kind: sharding.tables = {{ {largest.field} = "row_wise" }} spreads table {largest.field!r} over all ranks.')
    enough = -(-mean_load * planner.topology.ranks // max(1, planner.room))
    ways.append(f"More ranks: {max(enough, planner.topology.ranks + 1)} or more, the tables spread evenly.")
    if planner.rule.name == "adam":
        ways.append('A rule that keeps less: optimizer.tables = "rowwise_adagrad" keeps a number a row, "adam" three for each of the table\'s.')
    elif largest.precision == "float32":
        ways.append('Half the bytes of each number: precision.tables = "float16".')
    if planner.topology.device == "cuda":
        ways.append("Host memory: the same run on CPU processes, whose tables lie in the machines' memory.")
    return "\n".join(f"  {number}. {way}" for number, way in enumerate(ways, start=1))


def require_known_fields(settings: ShardingSettings, fields: Iterable[str]) -> None:
    """Refuse a kind for a table that the data does not have.

    raises: ConfigError that names the nearest.
    """
    known = list(fields)
    wrong = [field for field in settings.tables if field not in known]
    if wrong:
        nearest = {field: get_close_matches(field, known, n=1) for field in wrong}
        raise ConfigError(
            "\n".join(
                f"sharding.tables.{field}: the data has no such field."
                + (f" Did you mean {nearest[field][0]}?" if nearest[field] else f" Its fields: {', '.join(known)}.")
                for field in wrong
            )
        )


def bytes_held(plan: Plan, rule: TableRule, ranks: int) -> list[int]:
    """Bytes of each rank that a trained model's tables and their optimizer's state take, gradients not counted (they go before another is made)."""
    held = [0] * ranks
    for placement in plan.placements:
        for part in placement.parts:
            held[part.rank] += sum(rule.bytes_of(part.rows, part.columns, fused=True, number_bytes=placement.table.number_bytes))
    return held


def _column_blocks(width: int, unit: int, most: int) -> list[tuple[int, int]]:
    """(first column, columns) of up to `most` blocks, each a multiple of `unit` wide, as even as that allows."""
    units = -(-width // unit)
    count = min(most, units)
    edges = [min(width, units * number // count * unit) for number in range(count + 1)]
    return [(start, stop - start) for start, stop in pairwise(edges)]


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 10**8 else f"{count / 1e6:,.3f} MB"
