"""What a stage trains: a model on the ranks, its optimizers, and the regularizer on its tables."""

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
from ham_dist.models.ctr import ctr_model
from ham_dist.models.interaction import Interaction
from ham_dist.models.registry import INTERACTIONS, build_interaction
from ham_dist.training.optimizers import Optimizers
from ham_dist.training.regularizer import Regularizer


@dataclass
class TrainingState:
    """Everything that a step changes, but for the mask.

    sharded:       the model on the ranks.
    interaction:   its dense part, the same on every rank.
    optimizers:    what moves its weights.
    regularizer:   keeps the columns of its tables apart.
    single_valued: fields of which no row of the data has more than one id.
    """

    settings: RunSettings
    sharded: ShardedModel
    interaction: Interaction
    optimizers: Optimizers
    regularizer: Regularizer
    single_valued: Container[str]

    def batches(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """`stream`, with the ids of its next batches on their way between the ranks where the settings ask for that."""
        return self.sharded.prefetch(stream) if self.settings.ranks.prefetch_ids else stream

    def logits(self, batch: Batch, *, trains: bool = False) -> torch.Tensor:
        """Logits (B,) of this rank's part of a batch, under the mask in force.

        Args:
            trains: True for a step on the weights, whose gradients DDP sums over the ranks.
        """
        return self.sharded.logits(batch, trains=trains)

    def weights(self) -> dict[str, Any]:
        """The model's tensors by a name that does not depend on ranks. The live ones: loading into them loads the model."""
        return {
            **{f"dense/{name}": values for name, values in self.interaction.state_dict().items()},
            **self.sharded.table_tensors(),
        }

    def tensors(self) -> dict[str, Any]:
        """The same with the optimizers' state, all that a checkpoint holds."""
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
    """The tables of a run's model by their place in it; the supernet's, or with `columns` those of the model over just these."""
    fused = table_optimizer_of(settings.optimizer).fused is not None
    precision = settings.precision.tables
    tables = base_tables(num_embeddings, settings.model.base_dim, precision, fused=fused)
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
    """Where a run puts its tables on `ranks`: nothing is allocated, so that it can be asked for ranks that are not there.

    taken:  what other tables hold of each rank.
    fields: of the data, where the settings are to be held against them.
    raises: ConfigError for a kind of a field that is not there; ShardingError and BackendError as make_plan.
    """
    if fields:
        require_known_fields(settings.sharding, fields)
    table_optimizer = table_optimizer_of(settings.optimizer)
    return make_plan(
        PlanRequest(settings.sharding, table_optimizer, ranks, groups, settings.data.batch_size, taken)
    )


def warning_of_caches(settings: RunSettings, plan: Plan) -> str | None:
    """What a cached table and the decoupled regularizer cost together; None where they do not meet."""
    how = settings.orthogonality
    if not plan.caches or how.form == "none" or how.application != "decoupled":
        return None
    return (
        f"warning: tables are cached on the GPU, and every orthogonality.every = {how.every} steps the decoupled regularizer has the caches "
        "written back and emptied. Raise it if steps are slow"
    )


def open_supernet(
    settings: RunSettings,
    num_embeddings: Mapping[str, int],
    device: torch.device,
    single_valued: Container[str] = (),
) -> TrainingState:
    """The wide model of a run, freshly started: the same weights for one seed on any number of ranks and under any plan.

    num_embeddings: C_j by field, in the order of the data.
    single_valued: fields of which no row of the data has more than one id, so that no mean is to be taken; wrong for others, and not checked.
    raises:        on all ranks together, what `plan_for` raises.
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
    """The model over `columns`, its tables uninitialized: for a checkpoint to be loaded into.

    single_valued: as of open_supernet.
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
    """A plan made on rank 0, which all ranks follow; if there is none, all of them end with the reason."""
    here = topology.here(device)
    return process_group.on_first_rank(lambda: plan_for(settings, groups, here, taken, fields))


def place_model(
    settings: RunSettings,
    plan: Plan,
    interaction: Interaction,
    device: torch.device,
    single_valued: Container[str],
) -> TrainingState:
    """The state of a model whose tables lie as planned; they and their optimizer state are not initialized.

    Args:
        interaction: Its dense part, with its weights; it is moved to `device`.
        single_valued: As of open_supernet.
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
        Regularizer(settings.orthogonality, settings.optimizer),
        single_valued,
    )
