"""What a stage trains: a model on the ranks, its optimizers, and the regularizer on its tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ham_dist.config.schema import RunSettings
from ham_dist.distributed.sharding import FIRST_ORDER, TABLES, LocalTable, ShardedModel
from ham_dist.embedding.mask import Columns
from ham_dist.embedding.tables import Table, base_tables, narrow_tables, stored_width
from ham_dist.models.ctr import ctr_model
from ham_dist.models.interaction import Interaction
from ham_dist.models.registry import build_interaction
from ham_dist.models.slicing import cut_weight, narrow_interaction
from ham_dist.training.optimizers import MOMENTS, Optimizers, fused_rule
from ham_dist.training.regularizer import Regularizer


@dataclass
class TrainingState:
    """Everything that a step changes, but for the mask.

    sharded:     the model on the ranks.
    interaction: its dense part, the same on every rank.
    optimizers:  what moves its weights.
    regularizer: keeps the columns of its tables apart.
    """

    settings: RunSettings
    sharded: ShardedModel
    interaction: Interaction
    optimizers: Optimizers
    regularizer: Regularizer

    def weights(self) -> dict[str, Any]:
        """The model's tensors by a name that does not depend on ranks. The live ones: loading into them loads the model."""
        return {**{f"dense/{name}": values for name, values in self.interaction.state_dict().items()}, **self.sharded.table_tensors()}

    def tensors(self) -> dict[str, Any]:
        """The same with the optimizers' state, all that a checkpoint holds."""
        self.optimizers.open_state()
        tensors = self.weights()
        for name, parameter in self.interaction.named_parameters():
            tensors |= {f"{moment}/dense/{name}": values for moment, values in self.optimizers.moments(parameter).items()}
        if self.sharded.fused:
            return tensors | self.optimizers.fused_tensors()
        for moment in MOMENTS:
            local = {key: self.optimizers.moments(_parameter(local))[moment] for key, local in self.sharded.local_by_key()}
            tensors |= self.sharded.tensors_like_tables(moment, local)
        return tensors


def open_supernet(settings: RunSettings, cardinalities: Mapping[str, int], device: torch.device) -> TrainingState:
    """The wide model of a run, freshly started: the same weights for one seed on any number of ranks.

    cardinalities: C_j by field, in the order of the data.
    """
    fused = fused_rule(settings.optimizer) is not None
    tables = base_tables(cardinalities, settings.model.base_width, fused=fused)
    torch.manual_seed(settings.seed)
    interaction = build_interaction(settings.model, {table.field: table.width for table in tables})
    first_order = _first_order_tables(settings, interaction, cardinalities, fused=fused)
    state = _placed(settings, tables, interaction, first_order, device)
    state.sharded.start_tables(settings.seed, settings.model.table_start)
    return state


def open_narrow(settings: RunSettings, cardinalities: Mapping[str, int], columns: Columns, device: torch.device) -> TrainingState:
    """The model over `columns`, with no weights of worth: for a checkpoint to be loaded into."""
    fused = fused_rule(settings.optimizer) is not None
    tables = narrow_tables(base_tables(cardinalities, settings.model.base_width, fused=fused), columns, fused=fused)
    interaction = build_interaction(settings.model, {field: len(columns[field]) for field in cardinalities})
    return _placed(settings, tables, interaction, _first_order_tables(settings, interaction, cardinalities, fused=fused), device)


def narrow(wide: TrainingState, columns: Columns) -> TrainingState:
    """The model over `columns` alone, physically: tables, their optimizer state, and every dense weight that reads a column are cut.

    wide:    stays as it is.
    columns: kept column numbers of every table; a table without any leaves the model.
    """
    settings, sharded = wide.settings, wide.sharded
    interaction = narrow_interaction(wide.interaction, settings.model, columns)
    tables = narrow_tables(sharded.tables, columns, fused=sharded.fused)
    # Each table stays on its rank, so that cutting it is a copy on that rank.
    state = _placed(settings, tables, interaction, sharded.first_order_tables, sharded.device, owners=sharded.owners)
    _cut_tables(wide, state, columns)
    _cut_optimizers(wide, state, columns)
    return state


def _placed(
    settings: RunSettings,
    tables: Sequence[Table],
    interaction: Interaction,
    first_order: Sequence[Table],
    device: torch.device,
    owners: Mapping[str, Mapping[str, int]] | None = None,
) -> TrainingState:
    model = ctr_model(tables, interaction.to(device, getattr(torch, settings.precision.dense)), first_order)
    groups = {TABLES: tables, FIRST_ORDER: first_order} if first_order else {TABLES: tables}
    sharded = ShardedModel(model, groups, model.mask, device=device, fused=fused_rule(settings.optimizer), owners=owners)
    optimizers = Optimizers(sharded, interaction.parameters(), settings.optimizer)
    return TrainingState(settings, sharded, interaction, optimizers, Regularizer(settings.orthogonality))


def _first_order_tables(settings: RunSettings, interaction: Interaction, cardinalities: Mapping[str, int], *, fused: bool) -> tuple[Table, ...]:
    if settings.model.first_order == "linear" or not interaction.adds_first_order:
        return ()
    return tuple(Table(field, rows, 1, stored_width(1, fused=fused), 1) for field, rows in cardinalities.items())


@torch.no_grad()
def _cut_tables(wide: TrainingState, state: TrainingState, columns: Columns) -> None:
    for field, local in state.sharded.local.items():
        _copy_columns(wide.sharded.local[field].values, local.values, columns[field])
    for field, local in state.sharded.first_order.items():
        local.values.copy_(wide.sharded.first_order[field].values)


def _copy_columns(source: torch.Tensor, target: torch.Tensor, kept: torch.Tensor) -> None:
    target.zero_()
    target[:, : len(kept)] = source.index_select(1, kept.to(source.device))


@torch.no_grad()
def _cut_optimizers(wide: TrainingState, state: TrainingState, columns: Columns) -> None:
    wide.optimizers.open_state()
    state.optimizers.open_state()
    state.optimizers.steps = wide.optimizers.steps
    wide_dense = dict(wide.interaction.named_parameters())
    for name, parameter in state.interaction.named_parameters():
        before = wide.optimizers.moments(wide_dense[name])
        for moment, values in state.optimizers.moments(parameter).items():
            values.copy_(cut_weight(wide.interaction, name, before[moment], columns))
    if state.sharded.fused:
        # One number a row, which says how far the row has moved: it holds for the columns that stay as it did for all.
        before_rows = wide.optimizers.fused_rows()
        for key, rows in state.optimizers.fused_rows().items():
            rows.copy_(before_rows[key])
        return
    for field, local in state.sharded.local.items():
        for moment, values in state.optimizers.moments(_parameter(local)).items():
            _copy_columns(wide.optimizers.moments(_parameter(wide.sharded.local[field]))[moment], values, columns[field])
    for field, local in state.sharded.first_order.items():
        for moment, values in state.optimizers.moments(_parameter(local)).items():
            values.copy_(wide.optimizers.moments(_parameter(wide.sharded.first_order[field]))[moment])


def _parameter(local: LocalTable) -> nn.Parameter:
    assert local.parameter is not None, "the dense kernel gives every table a parameter"
    return local.parameter
