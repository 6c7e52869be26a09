"""Probabilities of records by a bundle, in one process."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ham_dist.errors import BundleError
from ham_dist.export.bundle import Bundle, open_bundle
from ham_dist.serving.encoder import RecordEncoder
from ham_dist.serving.fields_encoder import Record
from ham_dist.serving.id_batch import FieldOrder, IdBatch


class Scorer:
    """Computes the probabilities of records. Threads can share one.

    Args:
        bundle: An open bundle of kind `ctr`, or the folder of one. Only its sizes and headers are checked;
            `ham-dist verify` reads all of it.
    Raises:
        BundleError: The bundle is damaged, or of kind `custom`.
    """

    def __init__(self, bundle: Bundle | str | Path) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        self._model = self.bundle.model()
        by_name = {field.name: field for field in self.bundle.manifest.fields}
        self.order = FieldOrder([by_name[name] for name in self._model.read_fields])
        """The fields that the model reads, in the order of a batch."""
        has_vocabulary = bool(self.bundle.manifest.vocabulary)
        self.encoder = RecordEncoder(self.bundle, self.order.names) if has_vocabulary else None
        """Encodes raw values; None if the bundle has no vocabulary, and only ids can be scored."""

    def score(self, records: Record | Sequence[Record] | pa.Table | pa.RecordBatch) -> np.ndarray[Any, Any]:
        """Returns the probabilities of raw records, (n,) float32.

        Args:
            records: As in `RecordEncoder.encode`.
        Raises:
            BundleError: The bundle has no vocabulary.
            DataError: A column is absent, or a value has another type or is not a finite number.
        """
        return self.run(self.encode(records))

    def score_ids(self, ids: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        """Returns the probabilities of prepared ids, (n,) float32.

        Args:
            ids: As in `FieldOrder.batch`.
        Raises:
            DataError: A field is absent or an id is outside its table.
        """
        return self.run(self.order.batch(ids))

    def encode(self, records: Record | Sequence[Record] | pa.Table | pa.RecordBatch) -> IdBatch:
        """Returns the ids of raw records, for `run`; arguments and errors as in `score`."""
        if self.encoder is None:
            raise BundleError(f"{self.bundle.root}: has no vocabulary to encode raw values. Give ids")
        return self.order.batch(self.encoder.encode(records))

    def run(self, batch: IdBatch) -> np.ndarray[Any, Any]:
        """Returns the probabilities of a checked batch, (n,) float32.

        Batches of several callers can be concatenated: each record's probability is the same within the
        rounding of float32.
        """
        singles = torch.from_numpy(np.ascontiguousarray(batch.singles))
        ids: dict[str, Any] = dict(zip((field.name for field in self.order.singles), singles, strict=True))
        for field, (values, offsets) in zip(self.order.several, batch.several, strict=True):
            ids[field.name] = torch.from_numpy(values), torch.from_numpy(offsets)
        with torch.inference_mode():
            return torch.sigmoid(self._model(ids)).numpy()
