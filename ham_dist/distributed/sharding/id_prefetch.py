"""Sends the ids of the next batches to the ranks that hold their rows while this batch is trained on.

The idea is that of TorchRec's train pipelines, which themselves own the loop (one loss, one backward and one step a batch, in a traced model) or need
CUDA streams. Here two streams of batches take turns in one model, and a step on alpha moves no weight. But a sharded collection's exchange of ids can
be started early (`input_dist`) and its lookup (`compute_and_output_dist`) done later, and no more is needed.
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
    """A batch with what the model takes for it.

    Attributes:
        features: Its ids, with empty bags behind them where every rank needs as many rows.
        rows: How many rows of `features` are samples; None where no bag was added.
        sent: The exchange of its ids between the ranks, if that is under way.
    """

    features: KeyedJaggedTensor
    rows: int | None
    sent: "SentIds | None" = None

    def record_stream(self, stream: Any) -> None:
        """Tells the allocator that `stream` uses this batch."""
        super().record_stream(stream)
        self.features.record_stream(stream)


class SentIds:
    """The ids of one batch on their way between ranks, for each collection of tables in a model.

    Args:
        stream: The CUDA stream that they travel in; None on CPU.
    """

    def __init__(
        self,
        collections: Sequence["PrefetchingEmbeddingBagCollection"],
        features: KeyedJaggedTensor,
        stream: torch.cuda.Stream | None,
    ) -> None:
        """Sends the other ranks how many ids each will get."""
        self._stream = stream
        self._under_way: dict[nn.Module, tuple[Any, Any]] = {}
        for collection in collections:
            context = collection.create_context()
            self._under_way[collection] = context, collection.input_dist(context, features)

    def send(self) -> None:
        """Receives from the other ranks how many ids each has for this one, and sends the ids."""
        for collection, (context, sizes) in self._under_way.items():
            self._under_way[collection] = context, sizes.wait()

    def take(self, collection: nn.Module) -> tuple[Any, Any] | None:
        """The context of the exchange for one collection and the ids that have arrived, safe to use in the training's stream.

        None if they were taken before.
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
    """A sharded collection whose lookup takes ids that were sent before."""

    def forward(self, features: KeyedJaggedTensor, sent: SentIds | None = None) -> Any:
        """The vectors of all keys (TorchRec's promise of them).

        Args:
            sent: The exchange of the ids of `features`, if that is under way; else they are exchanged here.
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
        """The sharded collection; called by DistributedModelParallel."""
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
    """Sends ids of batches ahead. Every rank has the same batches in the same order, each its own part of them."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._collections = [
            module for module in model.modules() if isinstance(module, PrefetchingEmbeddingBagCollection)
        ]

    def prefetch(
        self, batches: Iterator[Batch], prepare: Callable[[Batch], PreparedBatch]
    ) -> Iterator[PreparedBatch]:
        """The batches, prepared, while the ids of the next two are under way: of the first, the ids travel; of the second, their number.

        What was sent for batches that nobody takes arrives, and is dropped.
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
    """Inside, work on a GPU is queued in `stream`; None: as before."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def padded(features: KeyedJaggedTensor, rows: int) -> KeyedJaggedTensor:
    """`features` with empty bags behind those of each key, up to `rows` of them."""
    if features.stride() == rows:
        return features
    lengths = features.lengths().view(len(features.keys()), -1)
    more = lengths.new_zeros(len(features.keys()), rows - lengths.shape[1])
    return KeyedJaggedTensor(
        features.keys(), features.values(), lengths=torch.cat([lengths, more], dim=1).view(-1), stride=rows
    )
