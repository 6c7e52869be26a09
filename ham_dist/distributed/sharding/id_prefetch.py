"""The ids of the next batches go to the ranks that hold their rows while this batch is trained on.

The idea is that of TorchRec's train pipelines, which themselves own the loop (one loss, one backward and one step a batch, in a traced model) or need
CUDA streams. Here two streams of batches take turns in one model, and a step on alpha moves no weight. But a sharded collection lets its exchange of
ids be started early (`input_dist`) and its lookup (`compute_and_output_dist`) be asked for later, and no more is needed.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.data.reader.batch import Batch


class IdExchange:
    """Ids of batches on their way between ranks. Every rank has the same batches in the same order, each its own part of them."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """From now on, a lookup in `model` of features that were sent finds their ids here; those of others are exchanged on the spot, as ever."""
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._lookups = [
            _Lookup(module, self)
            for module in model.modules()
            if isinstance(module, ShardedEmbeddingBagCollection)
        ]

    def ahead(
        self, batches: Iterator[Batch], features_of: Callable[[Batch], KeyedJaggedTensor]
    ) -> Iterator[Batch]:
        """The same batches, while the ids of the next two are under way: of the first, the ids travel; of the second, how many there will be.

        features_of: what the model will be given for a batch.
        """
        on_way: deque[tuple[Batch, KeyedJaggedTensor, Any]] = deque()

        def send_next() -> None:
            with self.beside():
                if (batch := next(batches, None)) is not None:
                    features = features_of(batch)
                    on_way.append(
                        (batch, features, None if self._stream is None else self._stream.record_event())
                    )
                    for lookup in self._lookups:
                        lookup.start(features)

        def follow(features: KeyedJaggedTensor) -> None:
            with self.beside():
                for lookup in self._lookups:
                    lookup.follow(features)

        try:
            send_next()
            if on_way:
                follow(on_way[0][1])
            send_next()
            while on_way:
                batch, features, copied = on_way.popleft()
                if on_way:
                    follow(on_way[0][1])
                send_next()
                if copied is not None:
                    training = torch.cuda.current_stream()
                    training.wait_event(copied)
                    batch.record_stream(training)
                    features.record_stream(training)
                yield batch
        finally:
            # Of a stream that is left in the middle. What was sent arrives, and nobody asks for it.
            for _, features, _ in on_way:
                for lookup in self._lookups:
                    lookup.forget(features)

    def beside(self) -> AbstractContextManager[Any]:
        """Inside, work on a GPU is queued beside the training's."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def arrived(self, request: Any, context: Any) -> Any:
        """The ids that a request is for, safe to use in the training's stream."""
        with self.beside():
            ids = request.wait()
        if self._stream is not None:
            training = torch.cuda.current_stream()
            training.wait_stream(self._stream)
            ids.record_stream(training)
            context.record_stream(training)
        return ids


class _Lookup:
    """Stands as `forward` of one sharded collection."""

    def __init__(self, module: ShardedEmbeddingBagCollection, exchange: IdExchange) -> None:
        self._module: Any = module
        self._exchange = exchange
        self._at_once = module.forward
        self._under_way: dict[KeyedJaggedTensor, tuple[Any, Any]] = {}  # by the object itself
        self._module.forward = self

    def start(self, features: KeyedJaggedTensor) -> None:
        """Tell the other ranks how many ids each will get."""
        context = self._module.create_context()
        self._under_way[features] = context, self._module.input_dist(context, features)

    def follow(self, features: KeyedJaggedTensor) -> None:
        """Hear the same of the others, and send the ids."""
        context, sizes = self._under_way[features]
        self._under_way[features] = context, sizes.wait()

    def forget(self, features: KeyedJaggedTensor) -> None:
        """Drop what was sent."""
        self._under_way.pop(features, None)

    def __call__(self, features: KeyedJaggedTensor) -> Any:
        if features not in self._under_way:
            return self._at_once(features)
        context, request = self._under_way.pop(features)
        return self._module.compute_and_output_dist(context, self._exchange.arrived(request, context))
