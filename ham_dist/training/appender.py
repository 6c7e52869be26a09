"""A file that lines are added to, also while its disk is full for a time."""

import errno
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)


class Appender:
    """Adds text to the end of a file at once; what the disk has no room for is held, and goes out with the next text that it takes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        self._held = b""

    def write(self, text: str) -> None:
        """Add `text`.

        raises: OSError for anything but a disk without room.
        """
        self._held += text.encode("utf-8")
        try:
            while self._held:
                self._held = self._held[self._file.write(self._held) :]
        except OSError as error:
            if error.errno not in FULL:
                raise

    def close(self) -> None:
        """Write what is held and close the file; nothing where it is closed.

        raises: OSError if there is still no room for it.
        """
        if self._file.closed:
            return
        self.write("")
        self._file.close()
        if self._held:
            raise OSError(errno.ENOSPC, "No space left on device", str(self._path))
