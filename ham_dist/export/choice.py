"""The codec of each field under a limit in bytes, by the log loss that it costs on validation records.

The cost is that of labels drawn from the live model's probabilities: the Kullback-Leibler divergence from it.
With the records' own labels, a change of some 1e-6 would be lost in their noise, and half of the codecs would
seem to lower the loss.

B rows, d_j columns of field j
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

from ham_dist.errors import BundleError
from ham_dist.export.codecs.codec import Codec
from ham_dist.export.codecs.registry import CODECS
from ham_dist.export.compact import Ids, pooled
from ham_dist.export.parts import TABLES, OpenTable
from ham_dist.export.quality import Labelled
from ham_dist.methods.knapsack import best_options
from ham_dist.models.interaction import Interaction

CHOICE_ROWS = 1 << 16
"""Most records that the loss of a codec is measured on."""


class _Batch(NamedTuple):
    """Some records, with the columns and the first-order terms that each field's tables give."""

    ids: Mapping[str, Ids]
    columns: dict[str, torch.Tensor]
    first_order: dict[str, torch.Tensor]


class CodecLosses:
    """Log loss of a model with one field's tables in a codec, and all others as they are.

    Only the rows of the tables that the records use are in memory.

    Args:
        tables: The tables.
        interaction: The interaction in evaluation mode, on CPU.
        records: Records to measure on.
    """

    def __init__(self, tables: Sequence[OpenTable], interaction: Interaction, records: Labelled) -> None:
        self._interaction = interaction
        self._tables = {(table.folder, table.field.name): table.rows for table in tables}
        self._batches = [_Batch(ids, {}, {}) for ids in _first(records, CHOICE_ROWS)]
        for folder, field in self._tables:
            for batch, looked_up in zip(self._batches, self._looked_up(folder, field, None), strict=True):
                (batch.columns if folder == TABLES else batch.first_order)[field] = looked_up
        self._live = self._logits("", {}, {})

    def increase(self, field: str, codec: Codec) -> float:
        """Returns the increase of the log loss, summed over the records, in nats."""
        try:
            found = {
                folder: self._looked_up(folder, field, codec)
                for folder, of_field in self._tables
                if of_field == field
            }
        except BundleError:  # a number is too large for the codec
            return math.inf
        columns = found.pop(TABLES, None)
        (first_order,) = found.values() or (None,)
        logits = self._logits(field, _numbered(columns), _numbered(first_order))
        return sum(_divergence(*pair) for pair in zip(self._live, logits, strict=True))

    def _looked_up(self, folder: str, field: str, codec: Codec | None) -> list[torch.Tensor]:
        """The pooled rows (B, d_j) of each batch, encoded and decoded; unchanged without a codec."""
        table = self._tables[folder, field]
        used = torch.cat([_values(batch.ids[field]) for batch in self._batches]).unique()
        rows = table.take(used)
        if codec is not None:
            rows = codec.round_trip(rows, codec.fit(table))

        def lookup(ids: torch.Tensor) -> torch.Tensor:
            return rows[torch.searchsorted(used, ids)]

        return [pooled(lookup, batch.ids[field]) for batch in self._batches]

    @torch.inference_mode()
    def _logits(
        self, field: str, columns: Mapping[int, torch.Tensor], first_order: Mapping[int, torch.Tensor]
    ) -> list[torch.Tensor]:
        """Logits (B,) float64 of each batch, with `field`'s columns and first-order terms replaced."""
        found = []
        for number, batch in enumerate(self._batches):
            of_batch = batch.columns | ({field: columns[number]} if number in columns else {})
            terms = batch.first_order | ({field: first_order[number]} if number in first_order else {})
            in_order = [of_batch[name] for name, dim in self._interaction.dims.items() if dim]
            logits = self._interaction(torch.cat(in_order, dim=1))
            for term in terms.values():
                logits = logits + term.squeeze(1)
            found.append(logits.double())
        return found


def _divergence(live: torch.Tensor, logits: torch.Tensor) -> float:
    """Kullback-Leibler divergence between the probabilities of two logits, summed over records."""
    probabilities = torch.sigmoid(live)
    loss, least = (
        functional.binary_cross_entropy_with_logits(one, probabilities, reduction="sum")
        for one in (logits, live)
    )
    return max(0.0, (loss - least).item())


def choose_codecs(losses: CodecLosses, tables: Sequence[OpenTable], limit: int) -> dict[str, str]:
    """Returns the codec of each field: least total increase of the log loss, within `limit` bytes in all.

    Increases are measured one field at a time and added up. Fields share one codec for their table and their
    first-order table.

    Raises:
        BundleError: The tables do not fit in any codec.
    """
    codecs = list(CODECS.values())
    fields = list(dict.fromkeys(table.field.name for table in tables))
    sizes = [[_bytes(tables, field, codec) for codec in codecs] for field in fields]
    if (least := sum(map(min, sizes))) > limit:
        raise BundleError(
            f"--bytes {limit}: the tables have at least {least:,} bytes, in the smallest codec.\n"
            "  Give more bytes, or export a run with fewer columns."
        )
    scores = [[-losses.increase(field, codec) for codec in codecs] for field in fields]
    chosen = best_options(scores, sizes, limit)
    assert chosen is not None, "the smallest ones fit"
    return {field: codecs[option].name for field, option in zip(fields, chosen, strict=True)}


def _bytes(tables: Sequence[OpenTable], field: str, codec: Codec) -> int:
    return sum(
        codec.stored_bytes(table.rows.num_embeddings, table.rows.embedding_dim)
        for table in tables
        if table.field.name == field
    )


def _first(records: Labelled, most: int) -> Iterator[Mapping[str, Ids]]:
    count = 0
    for ids, labels in records.batches():
        yield ids
        count += len(labels)
        if count >= most:
            return


def _values(ids: Ids) -> torch.Tensor:
    return ids if isinstance(ids, torch.Tensor) else ids[0]


def _numbered(batches: Sequence[torch.Tensor] | None) -> dict[int, torch.Tensor]:
    return dict(enumerate(batches or ()))
