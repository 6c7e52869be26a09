"""Digests of prepared folders, and the split of a row, for tests that compare two of them."""

import hashlib
from pathlib import Path

from ham_dist.data.encode.expressions import seed_key
from ham_dist.data.mixing import mix


def folder_bytes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def tenth(row: int, seed: int) -> int:
    """Tenth of one row, as `tenth_of`, in plain Python."""
    return mix((row & 0xFFFFFFFF) ^ seed_key(seed)) % 10
