"""The orthogonality regularizer during training."""

import torch

from ham_dist.config.schema import OptimizerSettings, OrthogonalitySettings
from ham_dist.distributed.sharding import gram, row_sampling
from ham_dist.distributed.sharding.model import TABLES, ShardedModel
from ham_dist.embedding import orthogonality
from ham_dist.training.optimizers import Optimizers


def samples_rows(orthogonality: OrthogonalitySettings, optimizer: OptimizerSettings) -> bool:
    """Returns True if tables are regularized by updates of row samples, in between the training steps."""
    return (orthogonality.form != "none" and orthogonality.application == "decoupled") or (
        optimizer.tables_weight_decay > 0 and optimizer.tables != "adam"
    )


class Regularizer:
    """lambda * R(V) of the HAM paper, Eq. 1, and L2, on the tables of any sharding type and compute kernel.

    `coupled` adds its gradient to that of every row at every step, before the table optimizer. Under Adam
    most of its effect comes from the rescaling: a row that is rarely looked up has small second moments, so
    the regularizer's small gradient moves it as far as a large one would. `decoupled` has the same effect at
    a lower cost: every n steps it moves a sample of the rows as far as the table optimizer would have moved
    them for that gradient in all steps since they were last sampled. It needs no gradient of the whole table,
    and so works with fused kernels.

    L2 (optimizer.tables_weight_decay) is left to Adam, which adds lambda V to the gradient of every row
    itself. Under all other table optimizers it is decoupled: fbgemm's fused kernels take a weight decay, but
    those of SGD and Adagrad ignore it, and so does row-wise Adagrad's on CPU.

    Args:
        exact: The coupled form gives the same bits on any number of ranks, more slowly.
    """

    def __init__(
        self, settings: OrthogonalitySettings, optimizer: OptimizerSettings, *, exact: bool = False
    ) -> None:
        self.settings = settings
        self._exact = exact
        self._learning_rate = optimizer.tables_learning_rate
        self._samples_rows = samples_rows(settings, optimizer)
        decay = optimizer.tables_weight_decay if optimizer.tables != "adam" else 0.0
        form = settings.form
        if form != "none":
            self._weight = settings.weight
            self._penalty_of = lambda matrix, base_dim: orthogonality.penalty(matrix, form, base_dim)
            self._matrix_of = lambda matrix, base_dim: orthogonality.gradient_matrix(matrix, form, base_dim)
            if decay:
                self._matrix_of = lambda matrix, base_dim: (
                    orthogonality.gradient_matrix(matrix, form, base_dim)
                    + (decay / settings.weight) * _identity(matrix)
                )
        elif decay:
            self._weight = decay
            self._matrix_of = lambda matrix, base_dim: _identity(matrix)

    def before_step(self, model: ShardedModel) -> None:
        """Apply the coupled form; call it between the backward pass and the optimizers' step."""
        if self.settings.form != "none" and self.settings.application == "coupled":
            gram.add_to_gradients(model, self._matrix_of, self._weight, exact=self._exact)

    @torch.no_grad()
    def after_step(self, model: ShardedModel, optimizers: Optimizers) -> None:
        """Apply the decoupled form; call it after a step of the optimizers."""
        settings, steps = self.settings, optimizers.steps
        if not self._samples_rows or steps % settings.every:
            return
        states = optimizers.table_states()
        parts = {f"{TABLES}/{field}": local.columns for field, local in model.local.items()}
        for found in row_sampling.products(
            model, self._matrix_of, row_sampling.RowSample(steps // settings.every, settings.rows)
        ):
            at = found.at
            gradient = self._weight * found.product
            of_rows = {
                name: at.stacked([states[key][name] for key in at.keys])
                for name in model.table_optimizer.states
            }
            strides = torch.tensor([rows.step for rows in at.rows], device=gradient.device).view(-1, 1, 1)
            rate = (
                self._learning_rate
                * settings.every
                * self._weight
                * strides
                / model.table_optimizer.divisor(of_rows, gradient, steps)
            )
            moved = orthogonality.damped(found.values, found.product, found.matrix[..., at.columns], rate)
            at.put_back([parts[key] for key in at.keys], moved)

    def penalty(self, model: ShardedModel) -> float:
        """Returns R(V) without its weight; 0 if the regularizer is off."""
        return 0.0 if self.settings.form == "none" else gram.sum_over_tables(model, self._penalty_of)


def _identity(matrix: torch.Tensor) -> torch.Tensor:
    """The identity of the shape of `matrix`, (..., d, d): the gradient of |V|^2 / 2 is V times it."""
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
