"""torch.distributed.checkpoint's reader and writer of files, with the index as JSON.

torch's own index is a pickle, and opening a pickle can run any code. The JSON index contains only tensors:
the bytes in the files are read by torch.load with `weights_only=True`. No entry can claim to be another kind
of object, which torch would unpickle without that option.
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
"""Name of the index file. For each tensor it has the data type and the size; for each chunk, its place in the
tensor, the file, and its place in the file."""

INDEX_BYTES = 1 << 30
"""Largest index that is read (1 GiB). A chunk takes about 120 bytes, and a table has at most one per rank."""

PICKLE = ".metadata"
"""Name of torch's own index file."""


class IndexedWriter(FileSystemWriter):
    """torch's FileSystemWriter, with a JSON index."""

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        """Writes the index; called on the first rank with the write results of all ranks."""
        places = {written.index: written.storage_data for of_rank in results for written in of_rank}
        tensors = {
            name: _entry(name, tensor, places) for name, tensor in metadata.state_dict_metadata.items()
        }
        with open(Path(self.path) / INDEX, "w", encoding="utf-8") as file:
            json.dump({"tensors": tensors}, file)
            file.flush()
            os.fsync(file.fileno())


class IndexedReader(FileSystemReader):
    """torch's FileSystemReader, with a JSON index."""

    _metadata: Metadata | None = None

    def read_metadata(self, *arguments: Any, **options: Any) -> Metadata:
        """Returns the index; any file yields only names, numbers and types. Reads the file once.

        Raises:
            CheckpointError: The index is missing or invalid, or its chunks do not cover each tensor.
        """
        if self._metadata is None:
            self._metadata = self._read_index()
        return self._metadata

    def _read_index(self) -> Metadata:
        path = Path(self.path) / INDEX
        if not path.exists() and path.with_name(PICKLE).exists():
            raise CheckpointError(
                f"{path.with_name(PICKLE)}: is a pickle file, which can run code when it is opened; expected "
                f"{INDEX} instead"
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
                f"{path}: is not a checkpoint index: {type(error).__name__}: {error}"
            ) from error
        return Metadata(tensors, storage_data=places, storage_meta=StorageMeta(load_id=self.load_id))


def _entry(name: str, tensor: Any, places: dict[MetadataIndex, StorageInfo]) -> dict[str, Any]:
    assert isinstance(tensor, TensorStorageMetadata), f"{name}: a checkpoint can hold only tensors"
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
        raise ValueError(f"{entry['type']} is not a data type of tensors")
    chunks = [
        ChunkStorageMetadata(torch.Size(chunk["offsets"]), torch.Size(chunk["sizes"]))
        for chunk in entry["chunks"]
    ]
    return TensorStorageMetadata(TensorProperties(dtype), torch.Size(entry["size"]), chunks)


def _require_cover(name: str, tensor: TensorStorageMetadata) -> None:
    """Checks that the chunks of a tensor are inside it, do not overlap and cover it.

    Numbers without a chunk would be loaded as uninitialized memory.

    Raises:
        ValueError: The chunks do not cover the tensor exactly.
    """
    wrong = f"{name}: the chunks do not exactly cover the tensor of size {list(tensor.size)}"
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
        # Chunks are sorted by first row: a chunk can only overlap earlier ones that end after its first row.
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
        raise ValueError(
            f"file {file!r}, start {start!r}, {length!r} bytes: expected a file name without folders, and "
            "integers"
        )
    return StorageInfo(file, start, length)
