"""The model run by torch, one operation after the other: works wherever torch does."""

import torch

from ham_dist.serving.id_batch import IdBatch
from ham_dist.serving.runtimes.plain_inputs import PlainInputs
from ham_dist.serving.runtimes.runtime import Probabilities, tensors_of


class EagerRuntime:
    """The exported model itself.

    Args:
        model: The model.
        reason: Why this runtime was chosen.
    """

    name = "eager"

    def __init__(self, model: PlainInputs, reason: str) -> None:
        self._model = model
        self.reason = reason

    def __call__(self, batch: IdBatch) -> Probabilities:
        with torch.inference_mode():
            probabilities: Probabilities = self._model(*tensors_of(batch)).numpy()
        return probabilities
