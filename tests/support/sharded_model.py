"""A small model on the ranks of a test, its batches, and its tables gathered from all ranks."""

from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.config.schema import RunSettings
from ham_dist.data.reader.batch import Batch
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding import gram
from ham_dist.embedding.orthogonality import penalty
from ham_dist.training.loop import mask_gradient, weight_step
from ham_dist.training.state import TrainingState, open_supernet
from tests.support.plain_model import FIELDS, PlainModel, global_batch

MODELS = ["fm", "deepfm", "autoint", "dcnv2"]
ROWS = 31  # not a multiple of the ranks, so that they hold batches of different sizes


def settings(model: str, **sections: Any) -> RunSettings:
    return RunSettings.model_validate({"model": {"name": model, "init_std": 0.3, "base_dim": 8}, **sections})


def local_batch(seed: int) -> Batch:
    """This rank's part of a global batch, of nearly equal parts."""
    rank, ranks = process_group.rank(), process_group.world_size()
    return part_of_batch(seed, ROWS, ROWS * rank // ranks, ROWS * (rank + 1) // ranks)


def part_of_batch(seed: int, rows: int, low: int, high: int) -> Batch:
    """Rows from `low` to below `high` of a global batch."""
    ids, labels = global_batch(rows, seed)
    values, lengths = [], []
    for field_values, field_lengths in ids:
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), field_lengths.cumsum(0)])
        values.append(field_values[offsets[low] : offsets[high]])
        lengths.append(field_lengths[low:high])
    features = KeyedJaggedTensor(
        list(FIELDS), torch.cat(values), lengths=torch.cat(lengths), stride=high - low
    )
    return Batch(features, labels[low:high], rows)


def plain_batch(seed: int) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
    ids, labels = global_batch(ROWS, seed)
    return [(values, lengths.cumsum(0) - lengths) for values, lengths in ids], labels


def whole_tables(state: TrainingState) -> dict[str, torch.Tensor]:
    """Every table under search, gathered from all ranks on every rank."""
    tables = {
        table.field: torch.full((table.num_embeddings, table.embedding_dim), torch.nan)
        for table in state.sharded.tables
    }
    for of_rank in process_group.gather_objects(
        {
            field: (local.shard, local.in_use, local.columns.detach())
            for field, local in state.sharded.local.items()
        }
    ):
        for field, (part, in_use, columns) in of_rank.items():
            tables[field][part.first_row : part.first_row + part.rows, in_use] = columns
    return tables


def dense_weights(state: TrainingState) -> dict[str, torch.Tensor]:
    return {name: values.detach().clone() for name, values in state.interaction.state_dict().items()}


def three_steps(run: RunSettings) -> dict[str, Any]:
    """Takes three weight steps and one gradient of the mask on each rank; returns initial and final state."""
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    start = whole_tables(state)
    losses = [float(process_group.sum_over_ranks(weight_step(state, local_batch(seed)))) for seed in range(3)]
    size = state.sharded.mask.layout.size
    mask = (torch.arange(size) % 3 > 0).float()
    gradient = mask_gradient(state, local_batch(7), mask)
    regularizer = gram.sum_over_tables(
        state.sharded, lambda matrix, base_dim: penalty(matrix, "gram", base_dim)
    )
    return {
        "start": start, "losses": losses, "gradient": gradient,
        "tables": whole_tables(state), "dense": dense_weights(state),
        "regularizer": regularizer, "norms": gram.column_norms(state.sharded), "plan": state.sharded.plan,
    }  # fmt: skip


def plain_three_steps(run: RunSettings, start: dict[str, torch.Tensor]) -> dict[str, Any]:
    model = PlainModel(run, start)
    optimizer = torch.optim.Adam(model.interaction.parameters(), lr=1e-3)
    decay = run.optimizer.tables_weight_decay
    optimizer.add_param_group({"params": model.tables.parameters(), "weight_decay": decay})
    losses = []
    for seed in range(3):
        optimizer.zero_grad()
        loss = model.loss(*plain_batch(seed))
        (loss + run.orthogonality.weight * model.regularizer()).backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    mask = (torch.arange(sum(table.shape[1] for table in start.values())) % 3 > 0).float().requires_grad_()
    model.eval()
    (gradient,) = torch.autograd.grad(model.loss(*plain_batch(7), mask), mask)
    return {"losses": losses, "gradient": gradient, "model": model}


def everything(state: TrainingState) -> dict[str, torch.Tensor]:
    """All numbers on this rank that a step on the weights would change."""
    found = {}
    for name, values in state.tensors().items():
        parts = values.local_shards() if hasattr(values, "local_shards") else None
        for number, part in enumerate([values] if parts is None else [shard.tensor for shard in parts]):
            found[f"{name}/{number}"] = part.detach().clone()
    return found


def alpha_steps(run: RunSettings) -> list[str]:
    """Names of what five gradients of the mask have changed."""
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    weight_step(state, local_batch(0))
    before, steps = everything(state), state.optimizers.steps
    for seed in range(5):
        mask_gradient(state, local_batch(seed), torch.ones(state.sharded.mask.layout.size))
    after = everything(state)
    assert state.optimizers.steps == steps
    weight_step(state, local_batch(1))  # Still works: DDP has not counted alpha's lookups.
    return [name for name, values in before.items() if not torch.equal(values, after[name])]


def whole(state: TrainingState) -> dict[str, torch.Tensor]:
    """Every table and its optimizer state, gathered on every rank, by the names in a checkpoint."""
    state.optimizers.open_state()
    states = state.optimizers.table_states()
    found: dict[str, torch.Tensor] = {}
    for key, placement in state.sharded.placements():
        local = state.sharded.local_table(key)
        here = (
            {}
            if local is None
            else {key: local.values, **{f"{name}/{key}": values for name, values in states[key].items()}}
        )
        for rank, parts in enumerate(
            process_group.gather_objects({name: values.detach() for name, values in here.items()})
        ):
            part = placement.shard_of(rank)
            for name, values in parts.items():
                assert part is not None
                size = (
                    (placement.table.num_embeddings,)
                    if values.dim() == 1
                    else (placement.table.num_embeddings, placement.table.stored_dim)
                )
                table = found.setdefault(name, torch.full(size, torch.nan))
                table[
                    part.first_row : part.first_row + part.rows,
                    *([slice(part.first_column, part.first_column + part.columns)] * (values.dim() - 1)),
                ] = values
    return found
