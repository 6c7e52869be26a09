"""Recorded requests: real ones that a version has to answer before it serves.

A line of the file is a request as `POST /score` or `POST /rank` takes it.
"""

import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson

from ham_dist.errors import BundleError, ConfigError
from ham_dist.io.atomic import write_bytes
from ham_dist.io.untrusted import read_bytes
from ham_dist.serving.server.model import Values
from ham_dist.serving.server.refusal import Refused
from ham_dist.serving.server.score import recorded_of
from ham_dist.serving.server.versions import WARMUP, is_bundle

log = logging.getLogger(__name__)

FILE_BYTES = 16 << 20
"""Largest file of recorded requests."""
REQUEST_BYTES = 1 << 16
"""Largest request that is recorded."""


def warmup_path(bundle: Path, given: Path | None) -> Path | None:
    """Returns the file of recorded requests; None if there is no place for one."""
    if given is not None:
        return given
    return None if is_bundle(bundle) else bundle / WARMUP


def read_warmup(path: Path | None) -> list[tuple[str, Values]]:
    """Returns the recorded requests, each with its place.

    Args:
        path: The file; one that does not exist has no requests.
    Raises:
        BundleError: The file is too large, or a line is not a request.
    """
    if path is None or not path.exists():
        return []
    try:
        lines = read_bytes(path, limit=FILE_BYTES).splitlines()
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read: {error}. Record the requests again") from None
    found = []
    for number, line in enumerate(lines, 1):
        place = f"{path}:{number}"
        try:
            found.append((place, recorded_of(line, where=place)))
        except Refused as refused:
            raise BundleError(f"{refused}\n  Delete the line, or record the requests again.") from None
    return found


class Recorder:
    """Records the first requests that are answered.

    Args:
        path: File to write when there are enough; None needs `wanted` = 0.
        wanted: Number of requests.
    """

    def __init__(self, path: Path | None, wanted: int) -> None:
        if wanted and path is None:
            raise ConfigError(
                f"--record-warmup {wanted}: a single bundle has no place for recorded requests. "
                "Give --warmup FILE.jsonl"
            )
        self._path, self.wanted = path, wanted
        """Number of requests that are still wanted."""
        self._lines: list[bytes] = []
        self._bytes = 0

    def add(self, values: Values) -> None:
        """Records a request, if it is not too large; writes the file with the last one."""
        line = orjson.dumps(_request(values), option=orjson.OPT_SERIALIZE_NUMPY)
        if len(line) > REQUEST_BYTES or self._bytes + len(line) >= FILE_BYTES:
            return
        self._lines.append(line + b"\n")
        self._bytes += len(line) + 1
        self.wanted -= 1
        if not self.wanted:
            self.write()

    def write(self) -> None:
        """Writes what is recorded so far, once."""
        lines, self._lines, self.wanted = self._lines, [], 0
        if not lines or self._path is None:
            return
        try:
            write_bytes(self._path, b"".join(lines))
            log.info("%s: recorded %s requests", self._path, len(lines))
        except OSError as error:
            log.warning("%s: cannot be written: %s", self._path, error.strerror or error)


def _request(values: Values) -> dict[str, Any]:
    if values.context is not None:
        return {"context": values.context, "candidates": values.records}
    return {"records": values.records} if values.records is not None else {"ids": _plain(values.ids or {})}


def _plain(ids: Any) -> dict[str, Any]:
    """Ids with lists in place of values and offsets."""
    return {name: _lists(*found) if isinstance(found, tuple) else found for name, found in ids.items()}


def _lists(values: Sequence[int], offsets: Sequence[int]) -> list[list[int]]:
    whole = list(map(int, values))
    return [whole[start:end] for start, end in pairwise(offsets)]
