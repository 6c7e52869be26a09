"""Safetensors files of tables, with the rows at a multiple of 64 bytes, so that they are used as mapped.

The library's writer aligns to 8 bytes and needs all tensors in memory. Its reader maps the file.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from ham_dist.errors import BundleError
from ham_dist.export.codecs.codec import VALUES, Codec, Stored, TableRows
from ham_dist.export.files import writing
from ham_dist.export.manifest import ADVICE, FileEntry
from ham_dist.io.aligned_header import ALIGNMENT, aligned_header

PADDING = "padding"
"""Name of a tensor of zeros in front of the rows; safetensors files have no gaps."""
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
}
"""Names of data types in safetensors files."""


def padded(layout: Mapping[str, Stored]) -> dict[str, Stored]:
    """Returns the tensors of a file in their order, with padding in front of the rows."""
    *fitted, last = layout
    tensors = {name: layout[name] for name in fitted}
    if gap := -sum(tensor.bytes for tensor in tensors.values()) % ALIGNMENT:
        tensors[PADDING] = Stored(torch.uint8, (gap,))
    return tensors | {last: layout[last]}


def write_table(path: Path, codec: Codec, table: TableRows) -> FileEntry:
    """Write the file of one table, a block of rows at a time.

    Raises:
        BundleError: A number is not finite or too large for the codec, or the file cannot be written.
    """
    fitted = codec.fit(table)
    tensors = padded(codec.layout(table.num_embeddings, table.embedding_dim))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            target = _Hashing(file)
            target.write(_header(tensors))
            for name, stored in tensors.items():
                if name == VALUES:
                    for rows in table.blocks():
                        target.write(_bytes(codec.encode(rows, fitted)))
                else:
                    target.write(_bytes(fitted[name]) if name in fitted else bytes(stored.bytes))
    return FileEntry(size=target.size, sha256=target.sha256)


class _Hashing:
    """A file, and the sha256 of what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self.size = file, hashlib.sha256(), 0

    def write(self, content: bytes | memoryview) -> None:
        self._digest.update(content)
        self._file.write(content)
        self.size += len(content)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def _header(tensors: Mapping[str, Stored]) -> bytes:
    """The header with the places of the tensors."""
    entries, start = {}, 0
    for name, stored in tensors.items():
        end = start + stored.bytes
        entries[name] = {
            "dtype": DTYPES[stored.dtype],
            "shape": list(stored.shape),
            "data_offsets": [start, end],
        }
        start = end
    return aligned_header(json.dumps(entries, separators=(",", ":")).encode())


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data


def map_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a safetensors file, mapped and not copied, without padding."""
    return dict(_tensors(path))


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name != PADDING:
                    yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise BundleError(f"{path}: not a safetensors file: {error}. {ADVICE}") from None
