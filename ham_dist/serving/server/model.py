"""One version of the model in service."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ham_dist.errors import BundleError, DataError
from ham_dist.export.bundle import open_bundle, verify_files
from ham_dist.serving.id_batch import IdBatch
from ham_dist.serving.runtimes.runtime import RuntimeName
from ham_dist.serving.scorer import Scorer
from ham_dist.serving.server.refusal import Refused

WARM_ROWS = (1, 2, 64)
"""Batch sizes that are run before a version serves, where no requests are recorded."""


class Values(NamedTuple):
    """The records of a request: `records`, `ids`, or `context` and `records`.

    Attributes:
        records: Raw records, as `Scorer.encode` takes them, or candidates.
        ids: Prepared ids by field, as `FieldOrder.batch` takes them.
        context: Columns that all candidates share, as `Scorer.encode_candidates` takes them.
    """

    records: Sequence[Mapping[str, Any]] | None = None
    ids: Mapping[str, Any] | None = None
    context: Mapping[str, Any] | None = None


class ServedModel:
    """A bundle that is open and scores requests.

    Args:
        root: Folder of the bundle.
        version: Its name in answers.
        runtime: As in `Scorer`.
        verify: Read all of the bundle and check its hashes first.
    Raises:
        BundleError: The bundle is damaged or of kind `custom`.
        BackendError: The model cannot be compiled, and `runtime` is `aot`.
    """

    def __init__(self, root: Path, version: str, runtime: RuntimeName = "auto", *, verify: bool) -> None:
        self.root, self.version = root, version
        self.scorer = Scorer(verify_files(root) if verify else open_bundle(root), runtime)
        self.run = self.scorer.run
        self.fields = self.scorer.order.names
        """Fields that the model reads, in the order of a batch."""

    def encode(self, values: Values, max_rows: int) -> IdBatch:
        """Returns the ids of a request.

        Raises:
            Refused: They cannot be scored, or are more than `max_rows` records.
        """
        try:
            if values.records is not None:
                _require_few(len(values.records), max_rows)
                records: Any = values.records
                if values.context is not None:
                    return self.scorer.encode_candidates(values.context, records)
                if len(records) == 1 and isinstance(records[0], dict):
                    records = records[0]  # takes half the time
                return self.scorer.encode(records)
            assert values.ids is not None, "one of both is set"
            _require_few(max((_rows(values.ids.get(name)) for name in self.fields), default=0), max_rows)
            return self.scorer.order.batch(values.ids)
        except (DataError, BundleError) as error:
            raise Refused(400, str(error)) from None
        except RecursionError:
            raise Refused(400, "records: a value is nested too deeply; expected text or a number") from None

    def warm(self, recorded: Sequence[tuple[str, Values]]) -> None:
        """Scores recorded requests, or unknown values if there are none.

        Args:
            recorded: Requests, each with its place for messages.
        Raises:
            BundleError: A request cannot be scored, or a probability is not a number from 0 to 1.
        """
        for place, values in recorded:
            try:
                batch = self.encode(values, max_rows=1 << 62)
            except Refused as refused:
                raise BundleError(
                    f"{self.root}: does not answer the recorded request {place}: {refused}\n"
                    "  Where requests have changed, delete that line or record again with --record-warmup."
                ) from None
            self._require_probabilities(batch, place)
        if not recorded:
            for rows in WARM_ROWS:
                zeros = np.zeros(rows, np.int64)
                several = {field.name for field in self.scorer.order.several}
                ids = {name: [[0]] * rows if name in several else zeros for name in self.fields}
                self._require_probabilities(self.scorer.order.batch(ids), f"{rows} records of unknown values")

    def _require_probabilities(self, batch: IdBatch, place: str) -> None:
        probabilities = self.run(batch) if batch.rows else np.zeros(0)
        if not ((probabilities >= 0) & (probabilities <= 1)).all():
            raise BundleError(
                f"{self.root}: gives {probabilities} for {place}; expected probabilities from 0 to 1\n"
                "  Export the run again."
            )


def _rows(ids: Any) -> int:
    """Records of a field, before its ids are read; 0 for what is no list."""
    if isinstance(ids, tuple) and len(ids) == 2:  # values and offsets
        return max(0, _rows(ids[1]) - 1)
    return len(ids) if isinstance(ids, list | np.ndarray) else 0


def _require_few(rows: int, max_rows: int) -> None:
    if rows > max_rows:
        raise Refused(
            413,
            f"request: has {rows:,} records; expected at most {max_rows:,}\n"
            "  Send several requests, or start the server with a larger --max-rows.",
        )
