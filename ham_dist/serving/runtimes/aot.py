"""The model as compiled code that reads the mapped tables of the bundle."""

from pathlib import Path

import numpy as np

from ham_dist.serving.id_batch import IdBatch
from ham_dist.serving.runtimes.internals import constants_of, open_library
from ham_dist.serving.runtimes.plain_inputs import PlainInputs
from ham_dist.serving.runtimes.runtime import Probabilities, tensors_of

_ROWS = 256
"""Records that are run at once: the numbers between two steps of the model then stay in the caches."""


class AotRuntime:
    """Compiled code. It runs in the calling thread; only products of matrices use torch's threads.

    The ids of a batch must have been checked: the code reads whatever memory they lead to.

    Args:
        model: The model, whose tables and weights the code reads where they are.
        library: The compiled library of a model with the same structure.
        reason: Why this runtime was chosen.
    Raises:
        RuntimeError: The library cannot be loaded, or is that of another model.
    """

    name = "aot"

    def __init__(self, model: PlainInputs, library: Path, reason: str) -> None:
        self.reason = reason
        self._singles = len(model.order.singles)
        # The code reads these without holding them.
        self._constants = model.constants()
        self._library = open_library(library)
        names = constants_of(self._library)
        # A run with a constant that was never set would end the process.
        if missing := sorted(set(names.values()) - self._constants.keys()):
            raise RuntimeError(f"{library}: reads {', '.join(missing)}, which the model lacks")
        self._library.update_constant_buffer(
            {name: self._constants[original] for name, original in names.items()}, False, False, True
        )
        self._run(model.order.random_batch(1))  # the first run combines weights with each other

    def __call__(self, batch: IdBatch) -> Probabilities:
        assert batch.singles.shape[0] == self._singles, "a batch of this model"
        if 0 < batch.rows <= _ROWS:
            return self._run(batch)
        parts = [self._run(batch[first : first + _ROWS]) for first in range(0, batch.rows, _ROWS)]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def _run(self, batch: IdBatch) -> Probabilities:
        (probabilities,) = self._library.run(tensors_of(batch))
        found: Probabilities = probabilities.numpy()
        return found
