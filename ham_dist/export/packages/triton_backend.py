"""Model of Triton's Python backend: probabilities of raw records, or ids, by the bundle next to this file.

`ham-dist package --format triton` copies this file as model.py; Triton imports it. Triton's Python needs
ham_dist and its dependencies, without TorchRec. The interface is that of
https://github.com/triton-inference-server/python_backend (TritonPythonModel, triton_python_backend_utils).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import triton_python_backend_utils as pb_utils  # Triton has it, and no package index

from ham_dist.errors import DataError, HamError
from ham_dist.export.packages.graph import OUTPUT, PAD
from ham_dist.serving import Scorer
from ham_dist.serving.id_batch import IdBatch, concatenated


class TritonPythonModel:
    """One instance of the model; Triton calls its methods by name."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the bundle."""
        del args
        self.scorer = Scorer(Path(__file__).with_name("bundle"))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Returns a response for each request, in their order; all records are scored together.

        A request that cannot be scored gets an error, and the others their probabilities.
        """
        batches: list[IdBatch] = []
        errors: dict[int, str] = {}
        for place, request in enumerate(requests):
            try:
                batches.append(self._batch(request))
            except HamError as error:
                errors[place] = str(error)
        scores = self.scorer.run(concatenated(batches)) if batches else np.empty(0, np.float32)
        ends = np.cumsum([batch.rows for batch in batches])
        parts = iter(np.split(scores, ends[:-1]) if batches else [])
        return [
            pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(errors[place]))
            if place in errors
            else pb_utils.InferenceResponse(
                output_tensors=[pb_utils.Tensor(OUTPUT, next(parts).reshape(-1, 1))]
            )
            for place in range(len(requests))
        ]

    def _batch(self, request: Any) -> IdBatch:
        encoder = self.scorer.encoder
        if encoder is None:
            singles = {field.name: _input(request, field.name)[:, 0] for field in self.scorer.order.singles}
            several = {field.name: _lists(_input(request, field.name)) for field in self.scorer.order.several}
            return self.scorer.order.batch(singles | several)
        columns = {name: _texts(name, _input(request, name)) for name in encoder.kinds}
        return self.scorer.encode(pa.table({name: pa.array(column) for name, column in columns.items()}))


def _input(request: Any, name: str) -> np.ndarray[Any, Any]:
    """One input, (records, values)."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        raise DataError(f"the input {name} is absent")
    values: np.ndarray[Any, Any] = tensor.as_numpy()
    return values


def _texts(name: str, values: np.ndarray[Any, Any]) -> list[str]:
    try:
        return [each.decode() for each in values[:, 0]]
    except UnicodeDecodeError as error:
        raise DataError(f"the input {name} has text that is not UTF-8: {error}") from None


def _lists(ids: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Values and offsets of padded ids."""
    known = ids != PAD
    return ids[known], np.concatenate([[0], known.sum(axis=1).cumsum()])
