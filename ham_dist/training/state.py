"""The training state of a stage: a sharded model, its optimizers, and the regularizer of its tables."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ham_dist.config.schema import RunSettings
from ham_dist.data.reader.batch import Batch
from ham_dist.distributed.planning import topology
from ham_dist.distributed.planning.placement import Plan
from ham_dist.distributed.planning.planner import make_plan, require_known_fields
from ham_dist.distributed.planning.request import PlanRequest
from ham_dist.distributed.planning.table_optimizers import BytesHeld, table_optimizer_of
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding.model import FIRST_ORDER, TABLES, ShardedModel
from ham_dist.embedding.mask import Columns
from ham_dist.embedding.tables import Table, base_tables, sliced_tables, stored_dim
from ham_dist.models.ctr import CTRModel, ctr_model
from ham_dist.models.interaction import Interaction
from ham_dist.models.registry import INTERACTIONS, build_interaction
from ham_dist.training.optimizers import Optimizers
from ham_dist.training.regularizer import Regularizer, samples_rows
from ham_dist.training.transform import TableTransform


@dataclass
class TrainingState:
    """Everything that a training step changes, except the mask.

    Attributes:
        settings: Settings of the run.
        sharded: The sharded model.
        interaction: Its dense part, the same on every rank.
        optimizers: Optimizers of its dense weights and tables.
        regularizer: Orthogonality regularizer of its tables.
        single_valued: Fields with at most one id per row in all of the data.
        transform: Function of the tables that forward passes read in place of the tables; None for the tables
            themselves.
    """

    settings: RunSettings
    sharded: ShardedModel
    interaction: Interaction
    optimizers: Optimizers
    regularizer: Regularizer
    single_valued: Container[str]
    transform: TableTransform | None = None

    def batches(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """Returns `stream`; with ranks.prefetch_ids the ids of the next batches are exchanged in advance."""
        return self.sharded.prefetch(stream) if self.settings.ranks.prefetch_ids else stream

    def logits(self, batch: Batch, *, trains: bool = False) -> torch.Tensor:
        """Returns the logits (B,) of this rank's part of a batch, under the current mask.

        Args:
            trains: True for a step on the weights, whose gradients DDP sums over the ranks.
        """
        return self.sharded.logits(batch, trains=trains)

    @torch.no_grad()
    def columns(self, batch: Batch) -> torch.Tensor:
        """Returns the columns (B, D) that this rank's part of a batch looks up, without the mask."""
        model = self.sharded.model
        assert isinstance(model, CTRModel)
        return model.columns(*self.sharded.inputs(batch))

    def weights(self) -> dict[str, Any]:
        """Returns the model's tensors by names that do not depend on the ranks.

        They are not copies: loading into them loads the model.
        """
        return {
            **{f"dense/{name}": values for name, values in self.interaction.state_dict().items()},
            **self.sharded.table_tensors(),
        }

    def tensors(self) -> dict[str, Any]:
        """Returns the tensors of a checkpoint: those of `weights` and the optimizers' state."""
        self.optimizers.open_state()
        tensors = self.weights()
        for name, parameter in self.interaction.named_parameters():
            tensors |= {
                f"{moment}/dense/{name}": values
                for moment, values in self.optimizers.moments(parameter).items()
            }
        states = self.optimizers.table_states()
        for key, _ in self.sharded.placements():
            for state, of_row in self.sharded.table_optimizer.states.items():
                found = states[key][state] if key in states else None
                tensors[f"{state}/{key}"] = self.sharded.tensor_like(key, found, torch.float32, of_row=of_row)
        return tensors


def table_groups(
    settings: RunSettings, num_embeddings: Mapping[str, int], columns: Columns | None = None
) -> dict[str, tuple[Table, ...]]:
    """Returns the tables of a run's model, by group (TABLES or FIRST_ORDER).

    Args:
        num_embeddings: C_j by field.
        columns: Kept columns by field; None for the supernet.
    """
    fused = table_optimizer_of(settings.optimizer).fused is not None
    precision = settings.precision.tables
    tables = base_tables(num_embeddings, settings.model.dim_of, precision, fused=fused)
    groups = {TABLES: tables if columns is None else sliced_tables(tables, columns, fused=fused)}
    if INTERACTIONS[settings.model.name].has_first_order_tables(settings.model):
        groups[FIRST_ORDER] = tuple(
            Table(field, rows, 1, stored_dim(1, fused=fused), 1, precision)
            for field, rows in num_embeddings.items()
        )
    return groups


def plan_for(
    settings: RunSettings,
    groups: Mapping[str, Sequence[Table]],
    ranks: topology.Topology,
    taken: Sequence[BytesHeld] = (),
    fields: Sequence[str] = (),
) -> Plan:
    """Returns the sharding plan of a run's tables.

    Nothing is allocated, so `ranks` need not exist on this machine.

    Args:
        groups: Tables by group, as `table_groups` returns them.
        taken: Memory that other tables take on each rank.
        fields: Fields of the data, to check the fields in [sharding]; not checked if empty.
    Raises:
        ConfigError: [sharding] names a field that the data does not have.
        ShardingError: As for `make_plan`.
        BackendError: As for `make_plan`.
    """
    if fields:
        require_known_fields(settings.sharding, fields)
    table_optimizer = table_optimizer_of(settings.optimizer)
    return make_plan(
        PlanRequest(settings.sharding, table_optimizer, ranks, groups, settings.data.batch_size, taken)
    )


def warning_of_caches(settings: RunSettings, plan: Plan) -> str | None:
    """Returns a warning if the plan caches tables and the decoupled regularizer flushes them; else None."""
    how = settings.orthogonality
    if not plan.caches or not samples_rows(how, settings.optimizer):
        return None
    return (
        f"warning: tables are cached on the GPU, and every orthogonality.every = {how.every} steps "
        "the decoupled regularizer flushes the caches to host memory. "
        "Raise orthogonality.every if steps are slow"
    )


def open_supernet(
    settings: RunSettings,
    num_embeddings: Mapping[str, int],
    device: torch.device,
    single_valued: Container[str] = (),
) -> TrainingState:
    """Returns the initialized supernet of a run.

    One seed gives the same weights on any number of ranks and under any plan.

    Args:
        num_embeddings: C_j by field, in the order of the data.
        single_valued: Fields with at most one id per row in all of the data, whose lookups skip mean pooling.
            Not checked; results are wrong for other fields.
    Raises:
        ConfigError, ShardingError, BackendError: As for `plan_for`, on all ranks.
    """
    groups = table_groups(settings, num_embeddings)
    plan = plan_together(settings, groups, device, fields=list(num_embeddings))
    torch.manual_seed(settings.seed)
    interaction = build_interaction(
        settings.model, {table.field: table.embedding_dim for table in groups[TABLES]}
    )
    state = place_model(settings, plan, interaction, device, single_valued)
    state.sharded.init_tables(settings.seed, settings.model.init_std)
    return state


def open_sliced(
    settings: RunSettings,
    num_embeddings: Mapping[str, int],
    columns: Columns,
    device: torch.device,
    single_valued: Container[str],
) -> TrainingState:
    """Returns the model over `columns` with uninitialized tables, to load a checkpoint into.

    Args:
        columns: Kept columns by field.
        single_valued: As for `open_supernet`.
    """
    plan = plan_together(settings, table_groups(settings, num_embeddings, columns), device)
    interaction = build_interaction(settings.model, {field: len(columns[field]) for field in num_embeddings})
    return place_model(settings, plan, interaction, device, single_valued)


def plan_together(
    settings: RunSettings,
    groups: Mapping[str, Sequence[Table]],
    device: torch.device,
    taken: Sequence[BytesHeld] = (),
    fields: Sequence[str] = (),
) -> Plan:
    """Returns the plan that rank 0 makes, on all ranks; an error of rank 0 is raised on all ranks."""
    here = topology.here(device)
    return process_group.on_first_rank(lambda: plan_for(settings, groups, here, taken, fields))


def place_model(
    settings: RunSettings,
    plan: Plan,
    interaction: Interaction,
    device: torch.device,
    single_valued: Container[str],
) -> TrainingState:
    """Returns the training state of a model, with tables as planned.

    The tables and their optimizer state are uninitialized.

    Args:
        interaction: The model's dense part, with its weights; it is moved to `device`.
        single_valued: As for `open_supernet`.
    """
    model = ctr_model(
        [placement.table for placement in plan.groups[TABLES].values()],
        interaction.to(device, torch.float64 if settings.precision.dense == "float64" else torch.float32),
        [placement.table for placement in plan.groups.get(FIRST_ORDER, {}).values()],
        single_valued,
        autocasts=settings.precision.dense == "bfloat16",
    )
    table_optimizer = table_optimizer_of(settings.optimizer)
    sharded = ShardedModel(
        model,
        plan,
        model.mask,
        device=device,
        table_optimizer=table_optimizer,
        learning_rate=settings.optimizer.tables_learning_rate,
    )
    optimizers = Optimizers(sharded, interaction.parameters(), settings.optimizer)
    return TrainingState(
        settings,
        sharded,
        interaction,
        optimizers,
        Regularizer(settings.orthogonality, settings.optimizer, exact=settings.precision.dense == "float64"),
        single_valued,
    )
