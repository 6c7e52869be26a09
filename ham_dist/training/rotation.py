"""Rotation of every table, V <- V U with an orthogonal U, and of the weights that read it, W <- U'W.

A model that reads the columns by linear maps only computes the same logits after it, whatever the U.

Shape letters: d columns of one table, D columns of all fields.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from ham_dist.distributed.planning.placement import Placement
from ham_dist.distributed.sharding.gram import multiply_columns
from ham_dist.distributed.sharding.local_table import LocalTable
from ham_dist.distributed.sharding.model import TABLES
from ham_dist.models.interaction import Axis, Interaction
from ham_dist.training.state import TrainingState

Axes = Mapping[str, torch.Tensor]
"""U by table, (d, d) float64; its columns are the new axes."""


def principal_axes(covariances: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the axes along which the covariance of each table is diagonal, by decreasing variance."""
    return {table: torch.linalg.eigh(values).eigenvectors.flip(1) for table, values in covariances.items()}


@torch.no_grad()
def rotate_state(state: TrainingState, axes: Axes) -> None:
    """Rotates the tables under search, the weights that read them, and their optimizer state. A collective.

    First moments rotate like the gradients whose mean they are. For second moments per column, the new ones
    are those of uncorrelated gradients, v (U * U): the squares of the old numbers do not determine them.
    Second moments per row do not change, as the length of a gradient does not.
    """
    state.optimizers.open_state()
    states = state.optimizers.table_states()
    optimizer = state.sharded.table_optimizer
    for table, placement in state.sharded.plan.groups[TABLES].items():
        key = f"{TABLES}/{table}"
        local = state.sharded.local_table(key)
        _multiply(state, placement, local, axes[table])
        for name, of_row in optimizer.states.items():
            if not of_row:
                of_shard = None if local is None else replace(local, values=states[key][name])
                _multiply(state, placement, of_shard, _of_state(name, axes[table]))
    rotate_interaction(state.interaction, axes)
    for name, parameter in state.interaction.named_parameters():
        for moment, values in state.optimizers.moments(parameter).items():
            of_moment = {table: _of_state(moment, matrix) for table, matrix in axes.items()}
            _rotate_weight(state.interaction, name, values, of_moment)


@torch.no_grad()
def rotate_interaction(interaction: Interaction, axes: Axes) -> None:
    """Rotates the weights that read the columns of all fields, in place."""
    for name, values in interaction.named_parameters():
        _rotate_weight(interaction, name, values, axes)


def _of_state(name: str, matrix: torch.Tensor) -> torch.Tensor:
    """The matrix by which a state of an optimizer is multiplied: U for first moments, else U * U."""
    return matrix if name == "exp_avg" else matrix.square()


def _multiply(
    state: TrainingState, placement: Placement, local: LocalTable | None, matrix: torch.Tensor
) -> None:
    multiply_columns(state.sharded, placement, local, matrix.to(state.sharded.device))


def _rotate_weight(interaction: Interaction, name: str, values: torch.Tensor, axes: Axes) -> None:
    """Multiplies a weight, or a tensor of its shape, by U' along each dimension that runs over columns."""
    for dimension, axis in interaction.axes().get(name, {}).items():
        if axis.block is None:
            matrix = _joined(axis, axes).to(values.device)
            moved = values.movedim(dimension, 0)
            moved.copy_(torch.tensordot(matrix.T, moved.double(), dims=1))


def _joined(axis: Axis, axes: Axes) -> torch.Tensor:
    """The U of all fields of a dimension as one block-diagonal matrix; its tail stays as it is."""
    return torch.block_diag(*(axes[field] for field in axis.fields), torch.eye(axis.tail).double())
