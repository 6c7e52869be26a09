"""When and how strongly orthogonality acts on the tables during training."""

from collections.abc import Mapping

import torch

from ham_dist.config.schema import OptimizerSettings, OrthogonalitySettings
from ham_dist.distributed import gram
from ham_dist.distributed.sharding import TABLES, ShardedModel
from ham_dist.embedding import orthogonality
from ham_dist.training.optimizers import Optimizers


class Regularizer:
    """lambda * R(V) of the HAM paper, Eq. 1, on tables wherever they lie.

    `coupled` adds its gradient before the optimizer's rule, to every row at every step. Under Adam most of what it does comes of the rescaling: a row
    that is rarely looked up has small second moments, and goes as far for the regularizer's small gradient as it would for a large one.
    `decoupled` keeps that and leaves out the cost: every n steps it moves some rows, in turn, as far as the rule would have moved them for that
    gradient in all steps since their turn before. So it needs no gradient of the whole table, and works beside fused kernels.
    """

    def __init__(self, settings: OrthogonalitySettings, optimizer: OptimizerSettings) -> None:
        self.settings = settings
        self._learning_rate = optimizer.tables_learning_rate
        if settings.form != "none":
            form = settings.form
            self._matrix_of = lambda matrix, base_width: orthogonality.gradient_matrix(matrix, form, base_width)
            self._penalty_of = lambda matrix, base_width: orthogonality.penalty(matrix, form, base_width)

    def before_step(self, model: ShardedModel) -> None:
        """Between the backward pass and the optimizer's step."""
        if self.settings.form != "none" and self.settings.application == "coupled":
            gram.add_to_gradients(model, self._matrix_of, self.settings.weight)

    @torch.no_grad()
    def after_step(self, model: ShardedModel, optimizers: Optimizers) -> None:
        """After a step of the optimizers."""
        settings, steps = self.settings, optimizers.steps
        if settings.form == "none" or settings.application == "coupled" or steps % settings.every:
            return
        states = optimizers.table_states()
        parts = {f"{TABLES}/{field}": local.columns for field, local in model.local.items()}
        for found in gram.products(model, self._matrix_of, gram.Turn(steps // settings.every, settings.rows)):
            gradient = settings.weight * found.product
            divisor = model.rule.divisor(_of_rows(states[found.key], found), gradient, steps)
            rate = self._learning_rate * settings.every * found.stride * settings.weight / divisor
            moved = orthogonality.damped(found.values, found.product, found.matrix[:, found.columns], rate)
            parts[found.key][found.rows] = moved

    def penalty(self, model: ShardedModel) -> float:
        """R(V) without its weight; 0 where it is off."""
        return 0.0 if self.settings.form == "none" else gram.sum_over_tables(model, self._penalty_of)


def _of_rows(states: Mapping[str, torch.Tensor], found: gram.Product) -> dict[str, torch.Tensor]:
    rows = {name: state[found.rows] for name, state in states.items()}
    return {name: state.view(-1, 1) if state.dim() == 1 else state[:, : found.values.shape[1]] for name, state in rows.items()}
