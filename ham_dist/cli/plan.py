"""`ham-dist train --plan-only`: where a run would put its tables and what that costs, before anything is allocated."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table as Grid

from ham_dist.config.schema import RunSettings, Target
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
from ham_dist.io.console import make_table
from ham_dist.methods.budget import Budget
from ham_dist.models.ctr import column_layout
from ham_dist.training.samples import require_samples
from ham_dist.training.state import plan_for, table_groups, warning_of_caches

MOST_RANKS = 16
"""Ranks with a line each; of more, those that hold least and most."""


def describe_plan(settings: RunSettings, topology_name: str | None) -> Iterator[RenderableType]:
    """The plan of a run, to be printed part by part: tables, ranks, and what the search will leave at most.

    topology_name: ranks that need not be there, as topology.parse takes them; None for those of this run.
    raises:        what making the plan raises; ConfigError and DataError for settings and data that cannot be used.
    """
    if topology_name is not None:
        asked = topology.parse(topology_name)
        yield from _parts(settings, asked, topology_name, *_fields(settings, asked.ranks))
        return
    with process_group.process_group(settings.ranks) as device:
        here = topology.here(device)
        described = process_group.on_first_rank(
            lambda: list(_parts(settings, here, "the ranks at hand", *_fields(settings, here.ranks)))
        )
        if process_group.rank() == 0:
            yield from described


def _fields(settings: RunSettings, ranks: int) -> tuple[dict[str, int], dict[str, float]]:
    """C_j and mean ids a row, by field; refuses data that a run on so many ranks would refuse."""
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
    groups, table_optimizer = table_groups(settings, num_embeddings), table_optimizer_of(settings.optimizer)
    for target in settings.search.targets:
        Budget(target, column_layout(groups[TABLES]))  # refuses a target that the run would refuse
    plan = plan_for(settings, groups, ranks, fields=list(num_embeddings))
    costs = costs_by_rank(plan, table_optimizer, ranks, settings.data.batch_size, ids)
    hosts = f"{ranks.hosts} host{'s' if ranks.hosts > 1 else ''}"
    yield (
        f"{name}: {ranks.ranks} x {ranks.device} on {hosts}, {size_text(ranks.memory)} each, {settings.sharding.memory_share:.0%} of it for tables; "
        f'optimizer.tables = "{table_optimizer.name}", tables in {settings.precision.tables}, {settings.data.batch_size:,} rows a step'
    )
    yield _tables(plan)
    yield _ranks(costs)
    if plan.uses_host_memory:
        yield _hosts(costs)
    yield _kinds(plan, table_optimizer, ranks, settings.data.batch_size, ids)
    yield _narrow(settings, groups, table_optimizer, plan, ranks, costs)
    if warning := warning_of_caches(settings, plan):
        yield warning
    yield "A step on the weights moves this much; a step of the search looks up a validation batch besides: its ids and vectors, no gradients."


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
        "of copies",
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
    heads = ("rank", "in host memory", "read from it, were nothing cached", "written to it")
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


def _kinds(
    plan: Plan,
    table_optimizer: TableOptimizer,
    ranks: topology.Topology,
    batch_size: int,
    ids: Mapping[str, float],
) -> Grid:
    heads = ("sharding type", "tables", "bytes of tables", "bytes between ranks a step")
    lines: list[tuple[str, ...]] = []
    counts = Counter(placement.sharding_type for placement in plan.placements)
    for kind, count in counts.items():
        of_kind = Plan(
            {
                path: {field: entry for field, entry in group.items() if entry.sharding_type == kind}
                for path, group in plan.groups.items()
            }
        )
        costs = costs_by_rank(of_kind, table_optimizer, ranks, batch_size, ids)
        size = sum(placement.bytes for placement in of_kind.placements)
        lines.append((kind, str(count), size_text(size), size_text(sum(cost.out for cost in costs))))
    return make_table(heads, lines)


def _narrow(
    settings: RunSettings,
    groups: Mapping[str, Sequence[Table]],
    table_optimizer: TableOptimizer,
    plan: Plan,
    ranks: topology.Topology,
    costs: Sequence[RankCost],
) -> Grid:
    """What the narrow model's tables and their state take at most, whichever columns the search keeps."""
    request = PlanRequest(settings.sharding, table_optimizer, ranks, groups, settings.data.batch_size)
    fused = table_optimizer.fused is not None and not any(
        placement.replicated for placement in plan.placements
    )
    held = {target: narrow_held(request, target, fused=fused) for target in settings.search.targets}
    device, host = max(cost.tables + cost.training_state for cost in costs), max(cost.host for cost in costs)
    hosted = host or any(of_target.host for of_target in held.values())
    names = ("tables at most", "with gradients and state", "on one rank at most, the supernet besides")
    heads = ("after the search", *names, *(("in its host memory at most",) if hosted else ()))
    lines: list[tuple[str, ...]] = []
    number_bytes = groups[TABLES][0].number_bytes
    for target, of_target in held.items():
        rows, numbers = _most(groups, target, table_optimizer)
        whole = table_optimizer.bytes_of(rows, numbers, fused=fused, number_bytes=number_bytes)
        on_host = (size_text(of_target.host + host),) if hosted else ()
        lines.append(
            (
                target.label,
                size_text(numbers * number_bytes),
                size_text(whole.device),
                size_text(of_target.device + device),
                *on_host,
            )
        )
    return make_table(heads, lines)


def narrow_held(request: PlanRequest, target: Target, *, fused: bool) -> BytesHeld:
    """The most that a narrow model within `target` takes of devices and of hosts, if all of it lies on one rank.

    Args:
        request: For the supernet. Tables that `auto` may cache or not are counted in both places.
        fused: True if no table has a gradient.
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
        rows, numbers = _most(of_place, target, table_optimizer)
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


def _most(
    groups: Mapping[str, Sequence[Table]], target: Target, table_optimizer: TableOptimizer
) -> tuple[int, int]:
    """Rows of all tables, and the most numbers in them once those under search are within `target`; first-order tables stay as they are."""
    unit = KERNEL_DIM if table_optimizer.fused is not None else 1
    first_order = sum(table.num_embeddings * table.stored_dim for table in groups.get(FIRST_ORDER, ()))
    return sum(table.num_embeddings for group in groups.values() for table in group), most_numbers(
        groups[TABLES], target, unit
    ) + first_order


def most_numbers(tables: Sequence[Table], target: Target, unit: int) -> int:
    """The most numbers that tables within `target` can hold, each stored at a multiple of `unit` columns.

    The first column of a table stores `unit` columns, and w columns at most unit + w - 1. Taken in the order of what they store for what they cost,
    the last in part, columns give a bound that no choice goes beyond (the relaxed knapsack problem).
    """
    pieces = []
    for table in tables:
        cost = 1 if target.columns is not None else table.num_embeddings * table.number_bytes
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
