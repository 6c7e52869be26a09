"""Appending lines to a file whose disk may be full for a time."""

import errno
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)


class Appender:
    """Appends text to a file without buffering.

    Text that the disk has no room for is kept in memory and written at the next call that finds room.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        self._held = b""

    def write(self, text: str) -> None:
        """Append `text`.

        Raises:
            OSError: Writing failed for another reason than a full disk.
        """
        self._held += text.encode("utf-8")
        try:
            while self._held:
                self._held = self._held[self._file.write(self._held) :]
        except OSError as error:
            if error.errno not in FULL:
                raise

    def close(self) -> None:
        """Write the text kept in memory and close the file; does nothing if the file is closed already.

        Raises:
            OSError: The disk still has no room for the text.
        """
        if self._file.closed:
            return
        self.write("")
        self._file.close()
        if self._held:
            raise OSError(errno.ENOSPC, "No space left on device", str(self._path))
