"""Raw values to ids by sorted hashes in one memory-mapped file, for all fields together.

The file is in the safetensors format, with two tensors: `keys` (uint64, ascending) and `ids` (int32, or int64
where an id needs it), both padded to multiples of 64 bytes. A key is the 64-bit XXH3 hash of a value's UTF-8
bytes; its seed is made of the field's number and a salt, so the values of different fields have different
keys, and the fields of a record are looked up in one call.

Two values of the vocabulary never share a key: `build_vocabulary` tries another salt where they would. A
value that is not in the vocabulary has the key of one that is there with probability n / 2^64 for n keys
(5e-13 for 10^7), and then gets the id of that value.
"""

import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from ham_dist.errors import BundleError
from ham_dist.io.aligned_header import aligned_header
from ham_dist.io.untrusted import open_regular, parse_json

KEY = np.dtype("<u8")
NO_KEY = 0
"""Key of a missing value; no value of a vocabulary has it."""
LAST_KEY = 2**64 - 1
"""Key of the padding; no value of a vocabulary has it."""
_FORMAT = "ham_dist vocabulary"
_VERSION = "1"
_HEADER_BYTES = 1 << 24
_ID_TYPES: dict[str, np.dtype[Any]] = {"I32": np.dtype("<i4"), "I64": np.dtype("<i8")}
_ADVICE = "Copy the bundle again from where it was written, or export the run again."

Ids = np.ndarray[Any, np.dtype[np.int64]]
key_of = xxh3_64_intdigest
"""`key_of(value, seed)` is the key of a value's bytes, as an integer."""


def seed_of(salt: int, number: int) -> int:
    """Seed of the keys of field `number`.

    All its bits are mixed: XXH3 combines the seed and a value of up to 16 bytes by exclusive or, so with the
    seeds 0 and 1, short values of two fields would have the same key.
    """
    return key_of(f"{salt} {number}".encode())


@dataclass(frozen=True)
class Header:
    """Fields, largest ids, salt and number of keys of a file.

    Attributes:
        fields: Names of the fields; a field's number is its place here.
        largest: Largest id of each field; 0 without values.
        salt: Salt of the keys.
        keys: Number of keys, without padding.
    """

    fields: Sequence[str]
    largest: Sequence[int]
    salt: int
    keys: int

    @property
    def length(self) -> int:
        """Length of both arrays: the keys and 1 to 16 elements of padding, which align the arrays."""
        return (self.keys // 16 + 1) * 16

    @property
    def id_type(self) -> str:
        """Name of the type of the ids in the safetensors format."""
        return "I64" if max(self.largest, default=0) >= 2**31 else "I32"

    def encode(self) -> bytes:
        """The beginning of the file. The length of the result is a multiple of ALIGNMENT."""
        keys_end = self.length * KEY.itemsize
        ids_end = keys_end + self.length * _ID_TYPES[self.id_type].itemsize
        content = {
            "__metadata__": {
                "format": _FORMAT,
                "version": _VERSION,
                "salt": str(self.salt),
                "keys": str(self.keys),
                "fields": json.dumps(dict(zip(self.fields, self.largest, strict=True))),
            },
            "keys": {"dtype": "U64", "shape": [self.length], "data_offsets": [0, keys_end]},
            "ids": {"dtype": self.id_type, "shape": [self.length], "data_offsets": [keys_end, ids_end]},
        }
        return aligned_header(json.dumps(content).encode())


class Vocabulary:
    """An open vocabulary.

    The arrays are views of the file: opening reads the header only, and processes share the pages.

    Args:
        path: The file.
    Raises:
        BundleError: It is not a vocabulary, of another version, or not complete.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_regular(path) as file:
                start = 8 + int.from_bytes(file.read(8), "little")
                if not 8 < start <= _HEADER_BYTES:
                    raise ValueError("its first bytes are not a length")
                header, id_type = _parse(file.read(start - 8))
                # A file that is shorter than its pages would end the process with SIGBUS.
                view = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise BundleError(f"{path}: is not a readable vocabulary: {reason}. {_ADVICE}") from None
        keys_end = start + header.length * KEY.itemsize
        size = keys_end + header.length * id_type.itemsize
        if len(view) != size:
            raise BundleError(f"{path}: {len(view):,} bytes, expected {size:,}. {_ADVICE}")
        self.header = header
        self._numbers = {name: number for number, name in enumerate(header.fields)}
        self._keys = np.frombuffer(view, KEY, header.length, start)
        self._ids = np.frombuffer(view, id_type, header.length, keys_end)

    @property
    def fields(self) -> Mapping[str, int]:
        """Largest id of each field, by name."""
        return dict(zip(self.header.fields, self.header.largest, strict=True))

    def seed(self, field: str) -> int:
        """Seed of the keys of a field's values."""
        return seed_of(self.header.salt, self._numbers[field])

    def ids(self, keys: Sequence[int] | np.ndarray[Any, np.dtype[np.uint64]]) -> Ids:
        """Looks up keys of any fields.

        Returns:
            Ids, (n,) int64; 0 for a key that the vocabulary lacks.
        """
        wanted = np.asarray(keys, KEY)
        # The last key is padding, so every place is inside the array.
        places = self._keys.searchsorted(wanted)
        found = self._ids[places].astype(np.int64)
        found[self._keys[places] != wanted] = 0
        return found


def _parse(text: bytes) -> tuple[Header, "np.dtype[Any]"]:
    content = parse_json(text)
    try:
        notes = content["__metadata__"]
        if (notes["format"], notes["version"]) != (_FORMAT, _VERSION):
            raise ValueError(f"it is {notes['format']!r} of version {notes['version']!r}")
        fields = parse_json(notes["fields"])
        header = Header(list(fields), list(fields.values()), int(notes["salt"]), int(notes["keys"]))
        if header.keys < 0 or json.loads(header.encode()[8:]) != content:
            raise ValueError("its parts do not fit together")
        return header, _ID_TYPES[header.id_type]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its header is damaged ({type(error).__name__}: {error})") from None
