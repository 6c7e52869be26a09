"""Prepared data that is read from where it lies, over the net."""

from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from ham_dist.config.schema import DataSettings
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.reader.split import open_split
from ham_dist.errors import DataError
from ham_dist.io import http, remote
from tests.support.file_server import served
from tests.support.numbered import numbers_of, write_numbered


@pytest.mark.parametrize("shuffle_rows", [200, 2_000])
def test_batches_are_those_of_the_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffle_rows: int
) -> None:
    write_numbered(tmp_path / "data", [700, 500], 100)
    monkeypatch.setattr(
        remote, "_file_system", lambda scheme, netloc: SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    )
    settings = DataSettings(shuffle_rows=shuffle_rows)
    with served(tmp_path / "data") as server:
        drawn = []
        for folder in (str(tmp_path / "data"), server.url, "s3://data"):
            manifest = Manifest.load(folder)
            split = open_split(folder, manifest, "train", settings)
            batches = split.batches(128, rank=1, world_size=2, order=(0, 0), keep_last=True)
            drawn.append([numbers_of(batch) for batch in batches])
        assert drawn[0] == drawn[1] == drawn[2]
        assert len(server.asked) < 2 * 12 + 8, "a request or two a row group, not one a column"


def test_what_is_gone_meanwhile_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSES", (0.0, 0.0, 0.0))
    manifest = write_numbered(tmp_path, [500, 500], 100)
    with served(tmp_path) as server:
        split = open_split(server.url, manifest, "train", DataSettings(shuffle_rows=200))
        batches = split.batches(500, rank=0, world_size=1, order=None, keep_last=True)
        (tmp_path / "train" / "part-00001.parquet").unlink()
        numbers_of(next(batches))
        with pytest.raises(
            DataError, match=r"/train/part-00001\.parquet: cannot be read \(the server answered 404"
        ):
            next(batches)
    with pytest.raises(DataError, match=r"part-00000\.parquet: cannot be read \(the server does not answer"):
        open_split(server.url, manifest, "train")
