"""How torch.distributed.checkpoint lays a checkpoint out on disk, with its index as JSON.

torch's own index is a pickle, and opening a pickle runs whatever it says. Here the index names tensors alone: a file's bytes are read by torch.load
with `weights_only=True`, and no entry can claim to be another object, which torch would unpickle without that.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, Metadata
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from ham_dist.distributed.internals import StorageInfo
from ham_dist.errors import CheckpointError
from ham_dist.io.untrusted import read_json

INDEX = "index.json"
"""Tensors by name: type, size, and of each chunk the place in the whole tensor, the file, and where in it."""

INDEX_BYTES = 1 << 30
"""Largest index that is read (1 GiB): a chunk takes about 120 bytes, and a table has one on each rank at most."""

PICKLE = ".metadata"
"""torch's own index."""


class IndexedWriter(FileSystemWriter):
    """torch's FileSystemWriter, but for the index."""

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        """Write the index; called on the first rank with what all ranks have written."""
        places = {written.index: written.storage_data for of_rank in results for written in of_rank}
        tensors = {
            name: _entry(name, tensor, places) for name, tensor in metadata.state_dict_metadata.items()
        }
        with open(Path(self.path) / INDEX, "w", encoding="utf-8") as file:
            json.dump({"tensors": tensors}, file)
            file.flush()
            os.fsync(file.fileno())


class IndexedReader(FileSystemReader):
    """torch's FileSystemReader, but for the index."""

    _metadata: Metadata | None = None

    def read_metadata(self, *arguments: Any, **options: Any) -> Metadata:
        """The index, checked: whatever its text, it becomes names, numbers and types. The file is read once.

        Raises:
            CheckpointError: It is missing, is no such index, or its chunks do not make up each tensor.
        """
        if self._metadata is None:
            self._metadata = self._read_index()
        return self._metadata

    def _read_index(self) -> Metadata:
        path = Path(self.path) / INDEX
        if not path.exists() and path.with_name(PICKLE).exists():
            raise CheckpointError(
                f"{path.with_name(PICKLE)}: is a pickle, which can run code as it is opened; {INDEX} is wanted in its place"
            )
        try:
            entries = read_json(path, limit=INDEX_BYTES)["tensors"]
            tensors: dict[str, Any] = {}
            places: dict[MetadataIndex, StorageInfo] = {}
            for name, entry in entries.items():
                tensors[name] = _tensor(entry)
                _require_cover(name, tensors[name])
                places |= {
                    MetadataIndex(name, torch.Size(chunk["offsets"])): _place(chunk)
                    for chunk in entry["chunks"]
                }
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RuntimeError,
        ) as error:
            raise CheckpointError(
                f"{path}: is no index of a checkpoint: {type(error).__name__}: {error}"
            ) from error
        return Metadata(tensors, storage_data=places, storage_meta=StorageMeta(load_id=self.load_id))


def _entry(name: str, tensor: Any, places: dict[MetadataIndex, StorageInfo]) -> dict[str, Any]:
    assert isinstance(tensor, TensorStorageMetadata), f"{name}: a checkpoint holds tensors alone"
    chunks = []
    for chunk in tensor.chunks:
        place = places[MetadataIndex(name, chunk.offsets)]
        chunks.append(
            {
                "offsets": list(chunk.offsets),
                "sizes": list(chunk.sizes),
                "file": place.relative_path,
                "start": place.offset,
                "bytes": place.length,
            }
        )
    return {
        "type": str(tensor.properties.dtype).removeprefix("torch."),
        "size": list(tensor.size),
        "chunks": chunks,
    }


def _tensor(entry: Any) -> TensorStorageMetadata:
    dtype = getattr(torch, entry["type"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{entry['type']} is no type of numbers")
    chunks = [
        ChunkStorageMetadata(torch.Size(chunk["offsets"]), torch.Size(chunk["sizes"]))
        for chunk in entry["chunks"]
    ]
    return TensorStorageMetadata(TensorProperties(dtype), torch.Size(entry["size"]), chunks)


def _require_cover(name: str, tensor: TensorStorageMetadata) -> None:
    """Check that the chunks of a tensor lie within it, do not overlap, and leave no number of it out: that would load as uninitialized memory.

    Raises:
        ValueError: They do not.
    """
    wrong = f"{name}: its chunks do not make up its {list(tensor.size)} numbers"
    count, open_chunks = 0, list[ChunkStorageMetadata]()
    for chunk in sorted(tensor.chunks, key=lambda chunk: tuple(chunk.offsets)):
        if len(chunk.offsets) != len(tensor.size) or len(chunk.sizes) != len(tensor.size):
            raise ValueError(wrong)
        if any(
            start < 0 or size < 0 or start + size > whole
            for start, size, whole in zip(chunk.offsets, chunk.sizes, tensor.size, strict=True)
        ):
            raise ValueError(wrong)
        if 0 in chunk.sizes:
            continue
        # In the order of their first rows, a chunk can only overlap those that reach to its own first row.
        open_chunks = [
            other for other in open_chunks if not chunk.offsets or _end(other, 0) > chunk.offsets[0]
        ]
        if any(_overlap(chunk, other) for other in open_chunks):
            raise ValueError(wrong)
        open_chunks.append(chunk)
        count += math.prod(chunk.sizes)
    if count != math.prod(tensor.size):
        raise ValueError(wrong)


def _overlap(first: ChunkStorageMetadata, second: ChunkStorageMetadata) -> bool:
    return all(
        first.offsets[dim] < _end(second, dim) and second.offsets[dim] < _end(first, dim)
        for dim in range(len(first.offsets))
    )


def _end(chunk: ChunkStorageMetadata, dim: int) -> int:
    return chunk.offsets[dim] + chunk.sizes[dim]


def _place(chunk: Any) -> StorageInfo:
    file, start, length = chunk["file"], chunk["start"], chunk["bytes"]
    if (
        not (isinstance(file, str) and isinstance(start, int) and isinstance(length, int))
        or Path(file).name != file
    ):
        raise ValueError(f"{file!r} at {start!r}, {length!r} bytes, is no place in a file of the checkpoint")
    return StorageInfo(file, start, length)
