"""`ham-dist train --plan-only`: the sharding plan of a run, with its memory and communication, as tables."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table as Grid

from ham_dist.config.schema import RunSettings
from ham_dist.config.target import Target
from ham_dist.config.targets import resolved
from ham_dist.config.units import size_text
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.reader.pooling_factor import ids_per_row
from ham_dist.distributed.planning import topology
from ham_dist.distributed.planning.placement import Plan
from ham_dist.distributed.planning.request import PlanRequest
from ham_dist.distributed.planning.table_optimizers import (
    BytesHeld,
    Memory,
    TableOptimizer,
    table_optimizer_of,
)
from ham_dist.distributed.planning.traffic import RankCost, costs_by_rank
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding.model import FIRST_ORDER, TABLES
from ham_dist.embedding.tables import KERNEL_DIM, Table
from ham_dist.errors import DataError
from ham_dist.export.codecs.column_bytes import served_layout
from ham_dist.io.console import make_table
from ham_dist.methods.budget import Budget
from ham_dist.models.ctr import column_layout
from ham_dist.training.samples import require_samples
from ham_dist.training.state import plan_for, table_groups, warning_of_caches

MOST_RANKS = 16
"""Largest number of ranks that get one line each. With more, the smallest, median and largest are shown."""


def describe_plan(settings: RunSettings, topology_name: str | None) -> Iterator[RenderableType]:
    """Yields the plan of a run, as lines and tables: tables, ranks, and the size of the sliced models.

    Args:
        topology_name: Ranks to plan for, in the format of topology.parse; None for the ranks of this job.
    Raises:
        ConfigError: The settings or the topology cannot be used.
        DataError: The data cannot be used, or has too few rows for so many ranks.
        TargetError: The tables cannot meet a target.
        ShardingError: The tables do not fit on the ranks.
        BackendError: The table optimizer or precision does not exist on the device.
    """
    if topology_name is not None:
        planned = topology.parse(topology_name)
        yield from _parts(settings, planned, topology_name, *_fields(settings, planned.ranks))
        return
    with process_group.process_group(settings.ranks) as device:
        here = topology.here(device)
        described = process_group.on_first_rank(
            lambda: list(_parts(settings, here, "the ranks of this job", *_fields(settings, here.ranks)))
        )
        if process_group.rank() == 0:
            yield from described


def _fields(settings: RunSettings, ranks: int) -> tuple[dict[str, int], dict[str, float]]:
    """C_j and mean pooling factor by field. Raises for data that a run on so many ranks would reject."""
    if settings.data.path is None:
        rows = settings.data.synthetic.num_embeddings
        return {f"field_{number}": count for number, count in enumerate(rows)}, {}
    manifest = Manifest.load(settings.data.path)
    if not manifest.fields:
        raise DataError(f"{settings.data.path}: has no fields")
    require_samples(settings.data.path, manifest, settings, ranks)
    return manifest.num_embeddings(), ids_per_row(settings.data.path, manifest)


def _parts(
    settings: RunSettings,
    ranks: topology.Topology,
    name: str,
    num_embeddings: Mapping[str, int],
    ids: Mapping[str, float],
) -> Iterator[RenderableType]:
    settings = resolved(settings, num_embeddings)
    groups, table_optimizer = table_groups(settings, num_embeddings), table_optimizer_of(settings.optimizer)
    for target in settings.search.targets:
        # Raises for a target that the run would reject.
        Budget(target, served_layout(column_layout(groups[TABLES]), target.precision))
    plan = plan_for(settings, groups, ranks, fields=list(num_embeddings))
    costs = costs_by_rank(plan, table_optimizer, ranks, settings.data.batch_size, ids)
    hosts = f"{ranks.hosts} host{'s' if ranks.hosts > 1 else ''}"
    yield (
        f"{name}: {ranks.ranks} x {ranks.device} on {hosts}, {size_text(ranks.memory)} each, "
        f"{settings.sharding.memory_share:.0%} of it for tables; "
        f'optimizer.tables = "{table_optimizer.name}", tables in {settings.precision.tables}, '
        f"{settings.data.batch_size:,} rows per step"
    )
    yield _tables(plan)
    yield _ranks(costs)
    if plan.uses_host_memory:
        yield _hosts(costs)
    yield _sharding_types(plan, table_optimizer, ranks, settings.data.batch_size, ids)
    yield _sliced(settings, groups, table_optimizer, plan, ranks, costs)
    if warning := warning_of_caches(settings, plan):
        yield warning
    yield (
        "The bytes are those of a step on the weights. "
        "A step of the search also looks up a validation batch, which sends ids and vectors but no gradients."
    )


def _tables(plan: Plan) -> Grid:
    heads = ("table", "rows", "stored dim", "sharding type", "compute kernel", "ranks")
    lines: list[tuple[str, ...]] = []
    for path, group in plan.groups.items():
        for field, placement in group.items():
            ranks = sorted({part.rank for part in placement.shards})
            where = (
                ", ".join(map(str, ranks)) if len(ranks) <= 4 else f"{ranks[0]} to {ranks[-1]} ({len(ranks)})"
            )
            name = field if path == TABLES else f"{field} (first order)"
            kernel = "fused" if placement.fused else "dense"
            if placement.memory.kernel != "device":
                kernel = placement.memory.kernel
            lines.append(
                (
                    name,
                    f"{placement.table.num_embeddings:,}",
                    str(placement.table.stored_dim),
                    placement.sharding_type,
                    kernel,
                    where,
                )
            )
    return make_table(heads, lines)


def _ranks(costs: Sequence[RankCost]) -> Grid:
    heads = (
        "rank",
        "tables",
        "gradients and state",
        "ids out / in",
        "vectors out / in",
        "gradients out / in",
        "gradients of copies",
    )
    lines: list[tuple[str, ...]] = []
    for rank, cost in _shown(costs):
        lines.append(
            (
                rank,
                size_text(cost.tables),
                size_text(cost.training_state),
                f"{size_text(cost.ids_out)} / {size_text(cost.ids_in)}",
                f"{size_text(cost.vectors_out)} / {size_text(cost.vectors_in)}",
                f"{size_text(cost.vectors_in)} / {size_text(cost.vectors_out)}",
                size_text(cost.copies_out),
            )
        )
    return make_table(heads, lines)


def _hosts(costs: Sequence[RankCost]) -> Grid:
    heads = ("rank", "in host memory", "read from it if nothing is cached", "written to it")
    lines: list[tuple[str, ...]] = []
    for rank, cost in _shown(costs):
        lines.append((rank, size_text(cost.host), size_text(cost.from_host), size_text(cost.to_host)))
    return make_table(heads, lines)


def _shown(costs: Sequence[RankCost]) -> list[tuple[str, RankCost]]:
    named = [(str(rank), cost) for rank, cost in enumerate(costs)]
    if len(costs) <= MOST_RANKS:
        return named
    by_size = sorted(named, key=lambda entry: entry[1].tables + entry[1].training_state + entry[1].host)
    ends = (by_size[0], by_size[len(by_size) // 2], by_size[-1])
    return [
        (f"{rank} ({word})", cost)
        for word, (rank, cost) in zip(("least", "median", "most"), ends, strict=True)
    ]


def _sharding_types(
    plan: Plan,
    table_optimizer: TableOptimizer,
    ranks: topology.Topology,
    batch_size: int,
    ids: Mapping[str, float],
) -> Grid:
    heads = ("sharding type", "tables", "bytes of tables", "bytes between ranks per step")
    lines: list[tuple[str, ...]] = []
    counts = Counter(placement.sharding_type for placement in plan.placements)
    for sharding_type, count in counts.items():
        of_type = Plan(
            {
                path: {field: entry for field, entry in group.items() if entry.sharding_type == sharding_type}
                for path, group in plan.groups.items()
            }
        )
        costs = costs_by_rank(of_type, table_optimizer, ranks, batch_size, ids)
        size = sum(placement.bytes for placement in of_type.placements)
        sent = size_text(sum(cost.out for cost in costs))
        lines.append((sharding_type, str(count), size_text(size), sent))
    return make_table(heads, lines)


def _sliced(
    settings: RunSettings,
    groups: Mapping[str, Sequence[Table]],
    table_optimizer: TableOptimizer,
    plan: Plan,
    ranks: topology.Topology,
    costs: Sequence[RankCost],
) -> Grid:
    """Upper bounds of the size of the sliced model's tables and their state, for any choice of columns."""
    request = PlanRequest(settings.sharding, table_optimizer, ranks, groups, settings.data.batch_size)
    fused = table_optimizer.fused is not None and not any(
        placement.replicated for placement in plan.placements
    )
    held = {target: sliced_held(request, target, fused=fused) for target in settings.search.targets}
    device, host = max(cost.tables + cost.training_state for cost in costs), max(cost.host for cost in costs)
    hosted = host or any(of_target.host for of_target in held.values())
    names = ("tables at most", "with gradients and state", "on one rank at most, with the supernet")
    heads = ("after the search", *names, *(("in its host memory at most",) if hosted else ()))
    lines: list[tuple[str, ...]] = []
    number_bytes = groups[TABLES][0].number_bytes
    for target, of_target in held.items():
        rows, numbers = _rows_and_most_numbers(groups, target, table_optimizer)
        held_by_all = table_optimizer.bytes_of(rows, numbers, fused=fused, number_bytes=number_bytes)
        on_host = (size_text(of_target.host + host),) if hosted else ()
        lines.append(
            (
                target.label,
                size_text(numbers * number_bytes),
                size_text(held_by_all.device),
                size_text(of_target.device + device),
                *on_host,
            )
        )
    return make_table(heads, lines)


def sliced_held(request: PlanRequest, target: Target, *, fused: bool) -> BytesHeld:
    """Upper bound of the bytes of a sliced model within `target`, on the device and the host of one rank.

    Args:
        request: Request of the supernet's plan. Tables that `auto` may put on the device or in a cache are
            counted in both places.
        fused: True if the tables use fused kernels, and so have no gradient.
    """
    table_optimizer, groups = request.table_optimizer, request.groups
    number_bytes = groups[TABLES][0].number_bytes
    movable = set(request.movable())

    def place(table: Table) -> tuple[Memory, bool]:
        return request.memory_of(table), table.field in movable

    held = BytesHeld(0, 0, 0)
    for memory, moves in {place(table) for table in groups[TABLES]}:
        of_place = {
            path: [table for table in group if place(table) == (memory, moves)]
            for path, group in groups.items()
        }
        rows, numbers = _rows_and_most_numbers(of_place, target, table_optimizer)
        found = table_optimizer.bytes_of(rows, numbers, fused=fused, number_bytes=number_bytes, memory=memory)
        if moves:
            cached = Memory("fused_uvm_caching", request.settings.cache_load_factor)
            lists = table_optimizer.bytes_of(
                rows, 0, fused=True, number_bytes=number_bytes, memory=cached
            ).tables
            host = table_optimizer.bytes_of(
                rows, numbers, fused=True, number_bytes=number_bytes, memory=cached
            ).host
            found = BytesHeld(found.tables + lists, found.training_state, host)
        held = held.plus(found)
    return held


def _rows_and_most_numbers(
    groups: Mapping[str, Sequence[Table]], target: Target, table_optimizer: TableOptimizer
) -> tuple[int, int]:
    """Rows of all tables, and an upper bound of their numbers when the searched tables are within `target`.

    First-order tables keep their size.
    """
    unit = KERNEL_DIM if table_optimizer.fused is not None else 1
    first_order = sum(table.num_embeddings * table.stored_dim for table in groups.get(FIRST_ORDER, ()))
    return sum(table.num_embeddings for group in groups.values() for table in group), most_numbers(
        groups[TABLES], target, unit
    ) + first_order


def most_numbers(tables: Sequence[Table], target: Target, unit: int) -> int:
    """Upper bound of the numbers in tables within `target`, each stored at a multiple of `unit` columns.

    The first column of a table stores `unit` columns, and d columns store at most unit + d - 1. This is a
    knapsack problem, and its relaxation gives the bound: columns are taken in the order of stored numbers per
    cost, the last one in part.
    """
    pieces = []
    column_bytes = served_layout(column_layout(tables), target.precision).column_bytes
    for table in tables:
        cost = 1 if target.columns is not None else column_bytes[table.field]
        pieces += [
            (unit * table.num_embeddings, cost),
            ((table.embedding_dim - 1) * table.num_embeddings, cost * (table.embedding_dim - 1)),
        ]
    left: float = target.columns if target.columns is not None else target.bytes or 0
    numbers = 0.0
    for stored, cost in sorted(
        (piece for piece in pieces if piece[1]), key=lambda piece: -piece[0] / piece[1]
    ):
        share = min(1.0, left / cost)
        numbers += share * stored
        left -= share * cost
    return min(round(numbers), sum(table.num_embeddings * table.stored_dim for table in tables))
