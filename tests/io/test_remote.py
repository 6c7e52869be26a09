import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from ham_dist.config.load import load_run
from ham_dist.errors import DataError
from ham_dist.io import http, remote
from ham_dist.io.paths import absolute, exists, is_local, local_path, open_file
from tests.support.file_server import FileServer, served

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(http, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file.bin").write_bytes(CONTENT)
    (tmp_path / "served" / "run.toml").write_text('[model]\nname = "fm"\n# Größe\n', encoding="utf-8")
    with served(tmp_path / "served") as server:
        yield server


def test_only_what_is_read_is_fetched(server: FileServer) -> None:
    with open_file(f"{server.url}/file.bin", "rb") as file:
        assert file.seek(-100, 2) == len(CONTENT) - 100
        assert file.read(30) == CONTENT[-100:-70]
        assert file.read() == CONTENT[-70:]
        assert file.read() == file.read(5) == b""
        assert file.seek(7) == file.tell() == 7
        assert file.read(2) == CONTENT[7:9]
    size = len(CONTENT)
    ranges = [
        f"bytes={first}-{last}"
        for first, last in [(0, 0), (size - 100, size - 71), (size - 70, size - 1), (7, 8)]
    ]
    assert server.asked == [("/file.bin", wanted) for wanted in ranges]


def test_text_and_settings(server: FileServer) -> None:
    with open_file(f"{server.url}/run.toml") as file:
        assert file.readlines()[2] == "# Größe\n"
    assert load_run(f"{server.url}/run.toml").model.name == "fm"


def test_a_server_without_ranges(server: FileServer) -> None:
    server.ranges = False
    with open_file(f"{server.url}/file.bin", "rb") as file:
        assert file.read() == CONTENT


def test_what_is_not_there(server: FileServer) -> None:
    assert exists(f"{server.url}/file.bin")
    assert not exists(f"{server.url}/none.bin")
    with pytest.raises(FileNotFoundError, match="the server answered 404"):
        open_file(f"{server.url}/none.bin", "rb")
    with pytest.raises(DataError, match=r"none\.bin: cannot be downloaded \(.*404"):
        local_path(f"{server.url}/none.bin")


def test_a_server_that_fails_for_a_moment_is_asked_again(server: FileServer) -> None:
    with open_file(f"{server.url}/file.bin", "rb") as file:
        server.failures = 3
        assert file.read(4) == CONTENT[:4]
        server.failures = 4
        with pytest.raises(OSError, match="the server answered 503 Service Unavailable"):
            file.read(4)


def test_a_server_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSES", (0.0, 0.0, 0.0))
    with served(tmp_path) as server:
        pass
    with pytest.raises(OSError, match="the server does not answer"):
        open_file(f"{server.url}/file.bin", "rb")
    with pytest.raises(
        DataError,
        match=r"file\.bin: cannot be accessed \(the server does not answer: .*\n  Check the URL",
    ):
        exists(f"{server.url}/file.bin")


def test_arrows_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder stands in for the bucket: all but the talk with S3 itself, which is Arrow's."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        remote, "_file_system", lambda scheme, netloc: SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    )
    (tmp_path / "bucket" / "data").mkdir(parents=True)
    (tmp_path / "bucket" / "data" / "file.txt").write_text("Größe\n", encoding="utf-8")
    url = "s3://bucket/data/file.txt"
    with open_file(url, "rb") as file:
        file.seek(2)
        assert file.read(3) == "Größe".encode()[2:5]
    with open_file(url) as text:
        assert text.read() == "Größe\n"
    assert exists(url)
    assert exists("s3://bucket/data")
    assert not exists(f"{url}.none")
    assert local_path(url).is_relative_to(tmp_path / "cache")
    assert local_path(url) == local_path(url)
    assert local_path(url).name == "file.txt"
    assert local_path(url).read_text(encoding="utf-8") == "Größe\n"
    with pytest.raises(
        DataError,
        match=r"s3://bucket/data: cannot be downloaded \(.*\)\n  Check the URL. If it is a folder, copy it",
    ):
        local_path("s3://bucket/data")
    with pytest.raises(OSError, match="remote files can only be read"):
        open_file(url, "w")
    with pytest.raises(FileNotFoundError):
        open_file(f"{url}.none", "rb")


def test_a_changed_object_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        remote, "_file_system", lambda scheme, netloc: SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    )
    (tmp_path / "bucket").mkdir()
    for content, seconds in (("one", 1), ("two", 2)):
        (tmp_path / "bucket" / "file.txt").write_text(content)
        os.utime(tmp_path / "bucket" / "file.txt", (seconds, seconds))
        assert local_path("s3://bucket/file.txt").read_text() == content


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("etag", [None, "tag"])
@pytest.mark.parametrize("dated", [True, False])
def test_a_changed_file_is_fetched_again(
    server: FileServer, tmp_path: Path, ranges: bool, etag: str | None, dated: bool
) -> None:
    server.ranges, server.dated = ranges, dated
    for number, content in enumerate((b"one", b"two")):
        server.etag = etag and f'"{etag}-{number}"'
        (tmp_path / "served" / "file.bin").write_bytes(content)
        os.utime(tmp_path / "served" / "file.bin", (number, number))
        assert local_path(f"{server.url}/file.bin").read_bytes() == content
        with open_file(f"{server.url}/file.bin", "rb") as file:
            assert file.read() == content


def test_an_unchanged_file_is_fetched_once(server: FileServer) -> None:
    assert local_path(f"{server.url}/file.bin") == local_path(f"{server.url}/file.bin")
    assert server.whole == 1


def test_a_file_that_changes_while_it_is_open(server: FileServer, tmp_path: Path) -> None:
    with open_file(f"{server.url}/file.bin", "rb") as file:
        assert file.read(4) == CONTENT[:4]
        (tmp_path / "served" / "file.bin").write_bytes(CONTENT[::-1])
        os.utime(tmp_path / "served" / "file.bin", (1, 1))
        with pytest.raises(OSError, match="has changed on the server since it was opened"):
            file.read(4)


def test_an_empty_file(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "served" / "file.bin").write_bytes(b"")
    assert exists(f"{server.url}/file.bin")
    assert local_path(f"{server.url}/file.bin").read_bytes() == b""
    with open_file(f"{server.url}/file.bin", "rb") as file:
        assert file.read() == b""


def test_a_server_that_does_not_tell_the_size(server: FileServer) -> None:
    """`Content-Range: bytes 0-0/*` is allowed by RFC 9110; the file is then fetched whole."""
    server.total = "*"
    with open_file(f"{server.url}/file.bin", "rb") as file:
        assert file.read() == CONTENT


@pytest.mark.parametrize("total", ["", "abc", "-5", "9" * 5000])
def test_a_server_that_answers_nonsense(server: FileServer, total: str) -> None:
    server.total = total
    with open_file(f"{server.url}/file.bin", "rb") as file:
        assert file.read() == CONTENT


@pytest.mark.parametrize(
    "url", ["http://", "http://[", "http://h:port/x", "http://127.0.0.1:1/\x1b", "http://127.0.0.1:1/ä"]
)
def test_an_address_that_is_none(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSES", ())
    with pytest.raises(DataError, match="cannot be accessed"):
        exists(url)


def test_local_and_remote_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_local("data/x")
    assert absolute("data/x") == str(tmp_path / "data" / "x")
    assert not is_local("s3://bucket/x")
    assert absolute("s3://bucket/x") == "s3://bucket/x"
