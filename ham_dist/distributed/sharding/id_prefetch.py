"""Sends the ids of the next batches to the ranks with their rows while the current batch is trained on.

TorchRec's train pipelines do the same, but they own the loop (one loss, one backward pass and one step per
batch, in a traced model) or need CUDA streams. Here two streams of batches alternate in one model, and a step
on alpha changes no weight. All that is needed: a sharded collection can start its exchange of ids early
(`input_dist`) and do the lookup later (`compute_and_output_dist`).
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.types import ParameterSharding, ShardingEnv
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.data.reader.batch import Batch


@dataclass
class PreparedBatch(Batch):
    """A batch with the inputs that the sharded model needs.

    Attributes:
        features: Its ids, followed by empty bags where every rank needs the same number of rows.
        rows: Number of rows of `features` that are samples; None if no bags were added.
        sent: The exchange of its ids between the ranks if it has been started.
    """

    features: KeyedJaggedTensor
    rows: int | None
    sent: "SentIds | None" = None

    def record_stream(self, stream: Any) -> None:
        """Tells the CUDA allocator that `stream` uses this batch."""
        super().record_stream(stream)
        self.features.record_stream(stream)


class SentIds:
    """The exchange of one batch's ids between ranks, for each collection of tables in a model.

    Args:
        collections: The sharded collections of the model.
        features: The ids.
        stream: The CUDA stream of the exchange; None on CPU.
    """

    def __init__(
        self,
        collections: Sequence["PrefetchingEmbeddingBagCollection"],
        features: KeyedJaggedTensor,
        stream: torch.cuda.Stream | None,
    ) -> None:
        """Sends every other rank the number of ids that it will receive."""
        self._stream = stream
        self._under_way: dict[nn.Module, tuple[Any, Any]] = {}
        for collection in collections:
            context = collection.create_context()
            self._under_way[collection] = context, collection.input_dist(context, features)

    def send(self) -> None:
        """Receives the number of ids from every other rank, then sends the ids."""
        for collection, (context, sizes) in self._under_way.items():
            self._under_way[collection] = context, sizes.wait()

    def take(self, collection: nn.Module) -> tuple[Any, Any] | None:
        """Returns the exchange's context and the ids received for one collection; None if taken before.

        Both are safe to use in the training stream.
        """
        if collection not in self._under_way:
            return None
        context, request = self._under_way.pop(collection)
        with in_stream(self._stream):
            ids = request.wait()
        if self._stream is not None:
            training = torch.cuda.current_stream()
            training.wait_stream(self._stream)
            ids.record_stream(training)
            context.record_stream(training)
        return context, ids


class PrefetchingEmbeddingBagCollection(ShardedEmbeddingBagCollection):
    """A sharded collection whose lookup can use ids that were sent before."""

    def forward(self, features: KeyedJaggedTensor, sent: SentIds | None = None) -> Any:
        """Looks up all keys.

        Args:
            features: Ids of this rank's rows.
            sent: The exchange of these ids if it has been started; otherwise they are exchanged here.
        Returns:
            TorchRec's awaitable KeyedTensor.
        """
        if sent is None or (taken := sent.take(self)) is None:
            return super().forward(features)
        return self.compute_and_output_dist(*taken)


class PrefetchingSharder(EmbeddingBagCollectionSharder):
    """Shards an EmbeddingBagCollection into a PrefetchingEmbeddingBagCollection."""

    def shard(
        self,
        module: EmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> PrefetchingEmbeddingBagCollection:
        """Returns the sharded collection; called by DistributedModelParallel."""
        return PrefetchingEmbeddingBagCollection(
            module,
            params,
            env,
            fused_params=self.fused_params,
            device=device,
            qcomm_codecs_registry=self.qcomm_codecs_registry,
            module_fqn=module_fqn,
        )


class IdPrefetcher:
    """Sends ids ahead of training. All ranks have the same batches in the same order, each its own part."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._collections = [
            module for module in model.modules() if isinstance(module, PrefetchingEmbeddingBagCollection)
        ]

    def prefetch(
        self, batches: Iterator[Batch], prepare: Callable[[Batch], PreparedBatch]
    ) -> Iterator[PreparedBatch]:
        """Yields the prepared batches while the next two are exchanged.

        Of the first of these two, the ids are sent; of the second, the number of ids.

        Ids that were sent for batches that the caller does not take are received and dropped.
        """
        on_way: deque[tuple[PreparedBatch, Any]] = deque()

        def start_next() -> None:
            with in_stream(self._stream):
                if (batch := next(batches, None)) is not None:
                    prepared = prepare(batch)
                    copied = None if self._stream is None else self._stream.record_event()
                    prepared.sent = SentIds(self._collections, prepared.features, self._stream)
                    on_way.append((prepared, copied))

        def send_first() -> None:
            if on_way:
                with in_stream(self._stream):
                    sent = on_way[0][0].sent
                    assert sent is not None
                    sent.send()

        start_next()
        send_first()
        start_next()
        while on_way:
            prepared, copied = on_way.popleft()
            send_first()
            start_next()
            if copied is not None:
                training = torch.cuda.current_stream()
                training.wait_event(copied)
                prepared.record_stream(training)
            yield prepared


def in_stream(stream: torch.cuda.Stream | None) -> AbstractContextManager[Any]:
    """Context in which GPU work is queued in `stream`; without effect for None."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def padded(features: KeyedJaggedTensor, rows: int) -> KeyedJaggedTensor:
    """Returns `features` with empty bags appended to each key, up to `rows` bags per key."""
    if features.stride() == rows:
        return features
    lengths = features.lengths().view(len(features.keys()), -1)
    more = lengths.new_zeros(len(features.keys()), rows - lengths.shape[1])
    return KeyedJaggedTensor(
        features.keys(), features.values(), lengths=torch.cat([lengths, more], dim=1).view(-1), stride=rows
    )
