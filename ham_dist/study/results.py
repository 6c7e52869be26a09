"""Files of a study with one JSON object per line: results.jsonl and tests.jsonl.

Several processes add lines under a lock. A line that a killed process left incomplete is removed.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock

from ham_dist.errors import ReportError
from ham_dist.io.atomic import write_text
from ham_dist.io.untrusted import parse_json

RESULTS = "results.jsonl"
TESTS = "tests.jsonl"

Line = dict[str, Any]


class Lines:
    """A file of lines, each with a `key` of its own.

    Args:
        path: The file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))

    def read(self) -> dict[str, Line]:
        """Returns the lines by key, in the order of the file; of two with one key the later.

        An incomplete last line is left out.

        Raises:
            ReportError: A line is damaged.
        """
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        lines = {}
        for number, line in enumerate(text.split(b"\n")[:-1], start=1):
            if line.strip():
                entry = self._parse(number, line)
                lines[str(entry["key"])] = entry
        return lines

    def size(self) -> int:
        """Returns the size of the file in bytes; 0 if there is none."""
        return self.path.stat().st_size if self.path.exists() else 0

    def add(self, entries: Iterable[Line]) -> None:
        """Append entries, and sync them to disk; those whose key the file has already are left out.

        Raises:
            ReportError: A line of the file is damaged.
        """
        entries = list(entries)
        if not entries:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, open(self.path, "ab") as file:
            self._cut_incomplete_line()
            held = self.read()
            for entry in entries:
                if entry["key"] not in held:
                    text = json.dumps(entry, ensure_ascii=False, allow_nan=False)
                    file.write(text.encode("utf-8") + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def remove(self, keys: Iterable[str]) -> None:
        """Remove the lines with these keys."""
        removed = set(keys)
        with self._lock:
            kept = [entry for key, entry in self.read().items() if key not in removed]
            lines = (json.dumps(entry, ensure_ascii=False, allow_nan=False) for entry in kept)
            write_text(self.path, "".join(f"{line}\n" for line in lines))

    def _cut_incomplete_line(self) -> None:
        text = self.path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            os.truncate(self.path, whole)

    def _parse(self, number: int, line: bytes) -> Line:
        try:
            entry = parse_json(line)
        except ValueError as error:
            raise ReportError(self._damaged(number, str(error))) from None
        if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
            raise ReportError(self._damaged(number, "it is no JSON object with a key"))
        return entry

    def _damaged(self, number: int, detail: str) -> str:
        return (
            f"{self.path}:{number}: is damaged: {detail}\n"
            "  Remove the line; the study runs its branch again, or finds its result in DIR/groups."
        )
