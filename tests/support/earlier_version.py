"""The files that version 0.1.0 wrote (tests/fixtures/README.md)."""

import tarfile
from pathlib import Path

FORMAT_1 = Path(__file__).parents[1] / "fixtures" / "format_1.tar.xz"


def unpack(folder: Path) -> Path:
    """Unpacks the fixture into `folder`, and returns `folder`: `data/`, `finished/`, `unfinished/`, ..."""
    with tarfile.open(FORMAT_1) as archive:
        archive.extractall(folder, filter="data")
    return folder
