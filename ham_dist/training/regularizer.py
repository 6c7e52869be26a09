"""When and how strongly orthogonality acts on the tables during training."""

from ham_dist.config.schema import OrthogonalitySettings
from ham_dist.distributed import gram
from ham_dist.distributed.sharding import ShardedModel
from ham_dist.embedding import orthogonality


class Regularizer:
    """lambda * R(V) of the HAM paper, Eq. 1, on tables wherever they lie.

    `coupled` adds its gradient before the optimizer's rule, so that Adam rescales it row by row; `decoupled` moves the tables beside the optimizer,
    every n steps and n times as far.
    """

    def __init__(self, settings: OrthogonalitySettings) -> None:
        self.settings = settings
        if settings.form != "none":
            form = settings.form
            self._matrix_of = lambda matrix, base_width: orthogonality.gradient_matrix(matrix, form, base_width)
            self._penalty_of = lambda matrix, base_width: orthogonality.penalty(matrix, form, base_width)

    def before_step(self, model: ShardedModel) -> None:
        """Between the backward pass and the optimizer's step."""
        if self.settings.form != "none" and self.settings.application == "coupled":
            gram.add_to_gradients(model, self._matrix_of, self.settings.weight)

    def after_step(self, model: ShardedModel, step: int) -> None:
        """After the optimizer's step number `step`, counted from 1."""
        if self.settings.form != "none" and self.settings.application == "decoupled" and step % self.settings.every == 0:
            gram.multiply(model, self._matrix_of, self.settings.step * self.settings.every)

    def penalty(self, model: ShardedModel) -> float:
        """R(V) without its weight; 0 where it is off."""
        return 0.0 if self.settings.form == "none" else gram.sum_over_tables(model, self._penalty_of)
