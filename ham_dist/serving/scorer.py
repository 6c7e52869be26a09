"""Probabilities of records by a bundle, in one process."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ham_dist.errors import BundleError
from ham_dist.export.bundle import Bundle, open_bundle
from ham_dist.export.manifest import ADVICE
from ham_dist.export.unknown import UnknownCounts
from ham_dist.serving.candidates import candidates_batch
from ham_dist.serving.encoder import RecordEncoder
from ham_dist.serving.fields_encoder import Record
from ham_dist.serving.id_batch import FieldOrder, IdBatch
from ham_dist.serving.runtimes.choice import open_runtime
from ham_dist.serving.runtimes.plain_inputs import plain_model
from ham_dist.serving.runtimes.runtime import Runtime, RuntimeName

log = logging.getLogger(__name__)


class Scorer:
    """Computes the probabilities of records. Threads can share one.

    Args:
        bundle: An open bundle of kind `ctr`, or the folder of one. Only its sizes and headers are checked;
            `ham-dist verify` reads all of it.
        runtime: `aot` runs the model as compiled code, which takes a minute to make at its first use on a
            machine and is then kept in the cache folder; `eager` runs it operation by operation; `auto` is
            `aot` where the model can be compiled, if HAM_DIST_RUNTIME names no other.
    Raises:
        BundleError: The bundle is damaged, or of kind `custom`.
        BackendError: `runtime` is `aot`, and the model cannot be compiled.
        ConfigError: There is no such runtime.
    """

    def __init__(self, bundle: Bundle | str | Path, runtime: RuntimeName = "auto") -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        model = plain_model(self.bundle)
        self.order = model.order
        """The fields that the model reads, in the order of a batch."""
        self.runtime: Runtime = open_runtime(self.bundle, model, runtime)
        """Computes the probabilities; has `name` and `reason`."""
        log.info("%s: runtime %s: %s", self.bundle.root, self.runtime.name, self.runtime.reason)
        has_vocabulary = bool(self.bundle.manifest.vocabulary)
        self.encoder = RecordEncoder(self.bundle, self.order.names) if has_vocabulary else None
        """Encodes raw values; None if the bundle has no vocabulary, and only ids can be scored."""
        if self.encoder is not None:
            _require_same_order(self.bundle, self.order, self.encoder)

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

    def rank(
        self, context: Record, candidates: Sequence[Record] | pa.Table | pa.RecordBatch
    ) -> np.ndarray[Any, Any]:
        """Returns the probabilities of candidates, such as items to show to one user, (n,) float32.

        They are those of `score` for the records that the context and each candidate make up, but the context
        is read once.

        Args:
            context: Columns that all records share, such as the user's.
            candidates: The other columns: a dict for each candidate, or an Arrow table.
        Raises:
            BundleError: The bundle has no vocabulary.
            DataError: A column is in both, or one that a field is made from in neither; or a value has
                another type or is not a finite number.
        """
        return self.run(self.encode_candidates(context, candidates))

    def encode(self, records: Record | Sequence[Record] | pa.Table | pa.RecordBatch) -> IdBatch:
        """Returns the ids of raw records, for `run`; arguments and errors as in `score`."""
        return self._required_encoder().batch(records)

    def encode_candidates(
        self, context: Record, candidates: Sequence[Record] | pa.Table | pa.RecordBatch
    ) -> IdBatch:
        """Returns the ids of candidates, for `run`; arguments and errors as in `rank`."""
        return candidates_batch(self._required_encoder(), context, candidates)

    def _required_encoder(self) -> RecordEncoder:
        if self.encoder is None:
            raise BundleError(f"{self.bundle.root}: has no vocabulary to encode raw values. Give ids")
        return self.encoder

    def run(self, batch: IdBatch) -> np.ndarray[Any, Any]:
        """Returns the probabilities of a batch, (n,) float32.

        Batches of several callers can be concatenated: each record's probability is the same within the
        rounding of float32.

        Args:
            batch: Result of `encode`, `encode_candidates` or `FieldOrder.batch`.
        Raises:
            DataError: An id is outside its table.
        """
        # Once more for prepared ids: kernels read whatever an id leads to, and checking takes a few us.
        self.order.check(batch)
        return self.runtime(batch)

    def counts(self, batch: IdBatch) -> UnknownCounts:
        """Returns the numbers of values and of unknown values of each field in a batch."""
        values, unknown = (dict(zip(self.order.names, found, strict=True)) for found in batch.counts())
        return UnknownCounts(self.order.names, values, unknown)


def _require_same_order(bundle: Bundle, order: FieldOrder, encoder: RecordEncoder) -> None:
    """Checks that the recipe and the model agree on the multi-valued fields."""
    several = [field.name for field in encoder.several]
    if several != (expected := [field.name for field in order.several]):
        raise BundleError(
            f"{bundle.root}: the multi-valued fields are {', '.join(expected) or 'none'}, "
            f"but in its recipe {', '.join(several) or 'none'}. {ADVICE}"
        )
