"""Which rank gets which part of which table: a plan, made from sizes alone, before any table has memory.

C rows, d stored columns of one table, W ranks
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import pairwise

from ham_dist.config.schema import ShardingKind, ShardingSettings
from ham_dist.distributed.planning.errors import require_possible, too_much_for_device, too_much_for_host
from ham_dist.distributed.planning.placement import Part, Placement, Plan
from ham_dist.distributed.planning.table_optimizers import DEVICE, BytesHeld, Memory, TableRule
from ham_dist.distributed.planning.topology import Topology
from ham_dist.embedding.tables import KERNEL_WIDTH, Table
from ham_dist.errors import ConfigError, ShardingError

LARGE_BYTES = 1 << 30
"""Under `auto` on CPU, a table (with what training keeps beside it) of more bytes than this, and more than a rank's fair share of all tables, goes
row-wise. Below, one rank looks it up faster than all ranks can exchange partial sums."""


class Planner:
    """Places tables one after the other, largest first, each where most room is left.

    settings: the kind and the memory of each table.
    rule:     how tables move, which decides on their kernel and on what lies beside them.
    taken:    what each rank has in use already; nothing by default.
    asked:    the user's settings, which messages speak of, where `settings` decide what those leave open.

    load:      bytes on each rank's device.
    host_load: bytes of each rank in its machine's memory.
    """

    def __init__(
        self,
        settings: ShardingSettings,
        rule: TableRule,
        topology: Topology,
        taken: Sequence[BytesHeld] = (),
        asked: ShardingSettings | None = None,
    ) -> None:
        self.settings = settings
        self.asked = asked or settings
        self.rule = rule
        self.topology = topology
        self._taken = taken
        self.load = [held.device for held in taken] or [0] * topology.ranks
        self.host_load = [held.host for held in taken] or [0] * topology.ranks

    def plan(self, groups: Mapping[str, Sequence[Table]], batch_size: int) -> Plan:
        """Where all tables of `groups` (by place in the model) lie; the same on every rank that asks with the same arguments.

        batch_size: rows of a global batch, which TorchRec's planner weighs traffic by.
        raises:     ShardingError, with ways out, if a kind cannot take a table or a rank's memory cannot take its parts; BackendError if the rule
                    does not exist on the device.
        """
        for tables in groups.values():
            for table in tables:
                self.rule.require(self.topology.device, table.precision)
                require_possible(self, table)
        movable = self.movable(table for tables in groups.values() for table in tables)
        if movable:
            return self._plan_with_few_cached(groups, batch_size, movable)
        if self.topology.device == "cuda" and any(
            self.kind_of(table) == "auto" for tables in groups.values() for table in tables
        ):
            from ham_dist.distributed.planning.by_torchrec import plan_by_torchrec

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

    def memory_of(self, table: Table) -> Memory:
        """Where the settings put a table; where they leave that open, on the device."""
        place = self.settings.memories.get(table.field, self.settings.memory)
        if place == "auto":
            return DEVICE
        return Memory(place, self.settings.cache_share if place == "cached" else 0.0)

    def is_fused(self, kind: ShardingKind) -> bool:
        """Whether a table of this kind steps inside the backward pass: TorchRec has no fused kernel for data-parallel tables."""
        return self.rule.fused is not None and kind != "data_parallel"

    def bytes_of(self, table: Table, kind: ShardingKind, part: Part | None = None) -> BytesHeld:
        """Bytes of `table`, or of a part of it, with all that training keeps beside it."""
        rows, columns = (table.rows, table.stored_width) if part is None else (part.rows, part.columns)
        return self.rule.bytes_of(
            rows,
            rows * columns,
            fused=self.is_fused(kind),
            number_bytes=table.number_bytes,
            memory=self.memory_of(table),
        )

    @property
    def room(self) -> int:
        """Bytes of a rank's device that tables may take."""
        return int(self.topology.memory * self.settings.memory_share)

    @property
    def host_room(self) -> int | None:
        """Bytes of a rank's share of its machine that tables may take; None where that is not known."""
        return (
            None
            if self.topology.host_memory is None
            else int(self.topology.host_memory * self.settings.memory_share)
        )

    def movable(self, tables: Iterable[Table]) -> list[str]:
        """Tables that may be cached or not, as is needed: those with most numbers first."""
        numbers: dict[str, int] = {}
        for table in tables:
            open_to_choice = (
                self.settings.memories.get(table.field, self.settings.memory) == "auto"
                and self.kind_of(table) != "data_parallel"
            )
            if (
                self.topology.device == "cuda"
                and self.rule.fused is not None
                and table.precision != "bfloat16"
                and open_to_choice
            ):
                numbers[table.field] = numbers.get(table.field, 0) + table.rows * table.stored_width
        return sorted(numbers, key=lambda field: (-numbers[field], field))

    def _plan_with_few_cached(
        self, groups: Mapping[str, Sequence[Table]], batch_size: int, movable: Sequence[str]
    ) -> Plan:
        """A plan with all of `movable` on the device, or with the fewest of them cached that fit; found by halving."""

        def attempt(count: int, topology: Topology) -> tuple[Planner, Plan]:
            memories = {
                field: "cached" if number < count else "device" for number, field in enumerate(movable)
            }
            settings = self.settings.model_copy(
                update={"memory": "device", "memories": self.settings.memories | memories}
            )
            planner = Planner(settings, self.rule, topology, self._taken, self.asked)
            return planner, planner.plan(groups, batch_size)

        def fits_on_devices(count: int) -> bool:
            try:
                attempt(count, replace(self.topology, host_memory=None))
            except ShardingError:
                return False
            return True

        # Devices ask for more tables in the cache and hosts for fewer: if the fewest are too many for the hosts, so are all others.
        fewest = (
            0 if fits_on_devices(0) else bisect_left(range(len(movable)), True, lo=1, key=fits_on_devices)
        )
        planner, plan = attempt(fewest, self.topology)
        self.load, self.host_load = planner.load, planner.host_load
        return plan

    def _plan_by_size(self, groups: Mapping[str, Sequence[Table]]) -> Plan:
        tables = [(table, path) for path, group in groups.items() for table in group]
        total = sum(self.bytes_of(table, "table_wise").device for table, _ in tables)
        placed: dict[tuple[str, str], Placement] = {}
        for table, path in sorted(
            tables, key=lambda entry: (-entry[0].rows * entry[0].stored_width, entry[1], entry[0].field)
        ):
            kind = self.kind_of(table)
            placement = self._place(table, self._kind_by_size(table, total) if kind == "auto" else kind)  # type: ignore[arg-type]
            self._add(placement)
            placed[path, table.field] = placement
        return Plan(
            {
                path: {table.field: placed[path, table.field] for table in group}
                for path, group in groups.items()
            }
        )

    def _kind_by_size(self, table: Table, total: int) -> ShardingKind:
        size = self.bytes_of(table, "table_wise").device
        spreads = -(-table.rows // self.topology.ranks) * (self.topology.ranks - 1) < table.rows
        too_large = size > self.room - min(self.load)
        more_than_its_share = size > LARGE_BYTES and size * self.topology.ranks > total
        return (
            "row_wise"
            if self.topology.ranks > 1 and spreads and (too_large or more_than_its_share)
            else "table_wise"
        )

    def _place(self, table: Table, kind: ShardingKind) -> Placement:
        unit = KERNEL_WIDTH if self.rule.fused is not None else 1
        ranks = range(self.topology.ranks)
        hosts = [
            range(host * self.topology.ranks_of_host, (host + 1) * self.topology.ranks_of_host)
            for host in range(self.topology.hosts)
        ]
        width = table.stored_width
        if kind == "table_wise":
            parts = [Part(self._emptiest(table, ranks, 1)[0], 0, table.rows, 0, width)]
        elif kind == "row_wise":
            parts = self._rows(table, ranks, 0, width)
        elif kind == "column_wise":
            blocks = _column_blocks(width, unit, len(ranks))
            parts = [
                Part(rank, 0, table.rows, *block)
                for rank, block in zip(self._emptiest(table, ranks, len(blocks)), blocks, strict=True)
            ]
        elif kind == "table_row_wise":
            host = min(hosts, key=lambda host: (*self._fullness(table, host), host.start))
            parts = self._rows(table, host, 0, width)
        elif kind == "grid":
            blocks = _column_blocks(width, unit, len(hosts))
            emptiest = sorted(hosts, key=lambda host: (*self._fullness(table, host), host.start))[
                : len(blocks)
            ]
            in_order = sorted(emptiest, key=lambda host: host.start)
            parts = [
                part
                for host, block in zip(in_order, blocks, strict=True)
                for part in self._rows(table, host, *block)
            ]
        else:
            parts = [Part(rank, 0, table.rows, 0, width) for rank in ranks]
        return Placement(table, kind, self.is_fused(kind), tuple(parts), self.memory_of(table))

    def _rows(self, table: Table, ranks: range, first_column: int, columns: int) -> list[Part]:
        """Blocks of rows: TorchRec's id distribution takes the rank of row i to be i // ceil(C / ranks), so that the last block may be smaller."""
        block = -(-table.rows // len(ranks))
        if not _has_rows_for(table.rows, len(ranks)):
            enough = next(count for count in range(1, len(ranks)) if not _has_rows_for(table.rows, count + 1))
            raise ShardingError(
                f"sharding: table {table.field!r} has {table.rows} rows, and {len(ranks)} ranks are to get {block} each: the last would get none.\n"
                f'  1. Another kind for it: sharding.tables = {{ {table.field} = "table_wise" }}, or "data_parallel".\n'
                f"  2. Fewer ranks: {enough} or less."
            )
        return [
            Part(rank, number * block, min(block, table.rows - number * block), first_column, columns)
            for number, rank in enumerate(ranks)
        ]

    def _emptiest(self, table: Table, ranks: range, count: int) -> list[int]:
        return sorted(sorted(ranks, key=lambda rank: (*self._fullness(table, [rank]), rank))[:count])

    def _fullness(self, table: Table, ranks: Iterable[int]) -> tuple[int, int]:
        """Bytes of `ranks`, first in the memory that `table` fills: the host's under `host`, else the device's, of which a cache takes most."""
        device, host = (sum(load[rank] for rank in ranks) for load in (self.load, self.host_load))
        return (host, device) if self.memory_of(table).place == "host" else (device, host)

    def _add(self, placement: Placement) -> None:
        for part in placement.parts:
            held = self.bytes_of(placement.table, placement.kind, part)
            self.load[part.rank] += held.device
            self.host_load[part.rank] += held.host

    def _require_room(self, plan: Plan) -> None:
        ranks = range(self.topology.ranks)
        fullest, host_fullest = (
            max(ranks, key=lambda rank: self.load[rank]),
            max(ranks, key=lambda rank: self.host_load[rank]),
        )
        if self.load[fullest] > self.room:
            raise too_much_for_device(self, plan, fullest)
        if self.host_room is not None and self.host_load[host_fullest] > self.host_room:
            raise too_much_for_host(self, plan, host_fullest)


def _has_rows_for(rows: int, ranks: int) -> bool:
    """Whether blocks of ceil(rows / ranks) leave some for the last rank."""
    return -(-rows // ranks) * (ranks - 1) < rows


def require_known_fields(settings: ShardingSettings, fields: Iterable[str]) -> None:
    """Refuse a kind or a memory for a table that the data does not have.

    raises: ConfigError that names the nearest.
    """
    known = list(fields)
    wrong = [
        (key, field)
        for key in ("tables", "memories")
        for field in getattr(settings, key)
        if field not in known
    ]
    if wrong:
        nearest = {field: get_close_matches(field, known, n=1) for _, field in wrong}
        raise ConfigError(
            "\n".join(
                f"sharding.{key}.{field}: the data has no such field."
                + (
                    f" Did you mean {nearest[field][0]}?"
                    if nearest[field]
                    else f" Its fields: {', '.join(known)}."
                )
                for key, field in wrong
            )
        )


def bytes_held(plan: Plan, rule: TableRule, ranks: int) -> list[BytesHeld]:
    """What a trained model's tables and their optimizer's state take of each rank, gradients not counted (they go before another is made)."""
    held = [BytesHeld(0, 0, 0)] * ranks
    for placement in plan.placements:
        for part in placement.parts:
            of_part = rule.bytes_of(
                part.rows,
                part.rows * part.columns,
                fused=True,
                number_bytes=placement.table.number_bytes,
                memory=placement.memory,
            )
            held[part.rank] = held[part.rank].plus(of_part)
    return held


def _column_blocks(width: int, unit: int, most: int) -> list[tuple[int, int]]:
    """(first column, columns) of up to `most` blocks, each a multiple of `unit` wide, as even as that allows."""
    units = -(-width // unit)
    count = min(most, units)
    edges = [min(width, units * number // count * unit) for number in range(count + 1)]
    return [(start, stop - start) for start, stop in pairwise(edges)]
