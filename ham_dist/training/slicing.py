"""Slicing a run's model to the kept columns: tables, the weights that read them, and optimizer state.

For any TorchRec model on one process, see `ham_dist.embedding.slicing`.
"""

from collections.abc import Mapping

import torch

from ham_dist.config.schema import ModelSettings
from ham_dist.distributed.planning.placement import Placement
from ham_dist.distributed.planning.planner import bytes_held
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding.exchange import move
from ham_dist.distributed.sharding.model import FIRST_ORDER, TABLES
from ham_dist.embedding.mask import Columns
from ham_dist.embedding.tables import sliced_tables
from ham_dist.models.interaction import Interaction
from ham_dist.models.registry import build_interaction
from ham_dist.training.state import TrainingState, place_model, plan_together


def slice_state(wide: TrainingState, columns: Columns) -> TrainingState:
    """Returns the model over `columns`, with sliced tables, dense weights and optimizer state. A collective.

    The sliced tables get a plan of their own; rows that move to another rank are sent there in parts.

    Args:
        wide: The model before; it does not change.
        columns: Kept columns of every table; a table without any is removed from the model.
    """
    state = _place_sliced(wide, columns, slice_interaction(wide.interaction, wide.settings.model, columns))
    _slice_tables(wide, state, columns)
    _slice_optimizers(wide, state, columns)
    return state


def initial_sliced(wide: TrainingState, columns: Columns) -> TrainingState:
    """Returns the model over `columns` with the initial weights of the run's seed. A collective.

    One seed gives the same weights on any number of ranks and under any plan, as for the supernet.

    Args:
        wide: The supernet, for the settings and the plan of the tables; it does not change.
        columns: Kept columns of every table.
    """
    settings = wide.settings
    torch.manual_seed(settings.seed)
    interaction = build_interaction(
        settings.model, {field: len(columns[field]) for field in wide.interaction.dims}
    )
    state = _place_sliced(wide, columns, interaction)
    state.sharded.init_tables(settings.seed, settings.model.init_std)
    return state


def _place_sliced(wide: TrainingState, columns: Columns, interaction: Interaction) -> TrainingState:
    """The model over `columns`, with a plan of its own and uninitialized tables."""
    settings, sharded = wide.settings, wide.sharded
    fused = sharded.table_optimizer.fused is not None
    groups = {TABLES: sliced_tables(sharded.tables, columns, fused=fused)}
    if sharded.first_order_tables:
        groups[FIRST_ORDER] = sharded.first_order_tables
    plan = plan_together(
        settings,
        groups,
        sharded.device,
        taken=bytes_held(sharded.plan, sharded.table_optimizer, process_group.world_size()),
    )
    return place_model(settings, plan, interaction, sharded.device, wide.single_valued)


def slice_weight(
    wide: Interaction, name: str, values: torch.Tensor, columns: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Returns the entries of a weight, or of a tensor of its shape (Adam's moments), for the kept columns.

    Args:
        wide: The interaction that `values` belongs to.
        name: The weight's name in `wide.state_dict()`.
        columns: Kept columns of every field.
    Returns:
        A copy; of the whole weight if it reads no columns.
    """
    for dimension, axis in wide.axes().get(name, {}).items():
        values = values.index_select(dimension, axis.kept(wide.dims, columns).to(values.device))
    return values.clone()


def slice_interaction(
    wide: Interaction, settings: ModelSettings, columns: Mapping[str, torch.Tensor]
) -> Interaction:
    """Returns the interaction over `columns` only, with the weights of the wide one.

    Its logits are those of the wide one with all other columns set to zero.

    Args:
        wide: The interaction before; it does not change.
        columns: Kept columns of every field in `wide.dims`.
    """
    sliced = build_interaction(settings, {field: len(columns[field]) for field in wide.dims}).to(wide.dtype)
    state = wide.state_dict()
    with torch.no_grad():
        for name, values in sliced.state_dict().items():
            values.copy_(slice_weight(wide, name, state[name], columns))
    return sliced


@torch.no_grad()
def _slice_tables(wide: TrainingState, state: TrainingState, columns: Columns) -> None:
    for key, placement in state.sharded.placements():
        local, before = state.sharded.local_table(key), wide.sharded.local_table(key)
        if local is not None:
            local.values.zero_()
        _slice(
            wide,
            state,
            key,
            None if before is None else before.values,
            None if local is None else local.values,
            _kept(key, placement, columns),
        )


@torch.no_grad()
def _slice_optimizers(wide: TrainingState, state: TrainingState, columns: Columns) -> None:
    wide.optimizers.open_state()
    state.optimizers.open_state()
    state.optimizers.steps = wide.optimizers.steps
    wide_dense = dict(wide.interaction.named_parameters())
    for name, parameter in state.interaction.named_parameters():
        before = wide.optimizers.moments(wide_dense[name])
        for moment, values in state.optimizers.moments(parameter).items():
            values.copy_(slice_weight(wide.interaction, name, before[moment], columns))
    wide_states, states = wide.optimizers.table_states(), state.optimizers.table_states()
    for key, placement in state.sharded.placements():
        for name, of_row in state.sharded.table_optimizer.states.items():
            source, target = wide_states.get(key, {}).get(name), states.get(key, {}).get(name)
            # A state of one number per row applies to the kept columns as it did to all columns.
            _slice(
                wide,
                state,
                key,
                source,
                target,
                torch.zeros(1, dtype=torch.int64) if of_row else _kept(key, placement, columns),
                of_row=of_row,
            )


def _kept(key: str, placement: Placement, columns: Columns) -> torch.Tensor:
    """Columns that a table keeps; first-order tables are not sliced."""
    return (
        columns[placement.table.field]
        if key.startswith(f"{TABLES}/")
        else torch.arange(placement.table.embedding_dim)
    )


def _slice(
    wide: TrainingState,
    state: TrainingState,
    key: str,
    source: torch.Tensor | None,
    target: torch.Tensor | None,
    kept: torch.Tensor,
    *,
    of_row: bool = False,
) -> None:
    """Move columns `kept` of a table, or of its state, from the wide model's ranks to the sliced model's.

    A collective.
    """
    before, after = (dict(model.sharded.placements())[key] for model in (wide, state))
    move(
        before.row_state_shards() if of_row else before.shards,
        source.view(-1, 1) if of_row and source is not None else source,
        after.row_state_shards() if of_row else after.shards,
        target.view(-1, 1) if of_row and target is not None else target,
        kept,
        replicated=before.replicated,
        device=state.sharded.device,
    )
