"""Downloads that break off: the rest is fetched, and never appended to the beginning of another version."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ham_dist.errors import DataError
from ham_dist.io import http
from ham_dist.io.download import download
from tests.support.loopback import Server, serving

OLD, NEW = b"old" * 1000, b"new" * 1000
DATE = "Thu, 01 Jan 1970 00:00:01 GMT"
NEXT_DATE = "Thu, 01 Jan 1970 00:00:02 GMT"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(http, "PAUSES", (0.0, 0.0))
    with serving(Server(OLD)) as running:
        yield running


def replace_after_the_first_break(
    monkeypatch: pytest.MonkeyPatch, server: Server, headers: dict[str, str]
) -> None:
    def replace(seconds: float) -> None:
        server.content, server.headers = NEW, headers

    server.cut_after = [100]
    monkeypatch.setattr("time.sleep", replace)


@pytest.mark.parametrize("heeds_if_range", [True, False])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"ETag": '"1"'}, {"ETag": '"2"'}),
        ({"ETag": '"1"', "Last-Modified": DATE}, {"ETag": '"2"', "Last-Modified": DATE}),
        ({"Last-Modified": DATE}, {"Last-Modified": NEXT_DATE}),
        ({"ETag": 'W/"1"'}, {"ETag": 'W/"1"'}),
        ({}, {}),
    ],
    ids=["etag", "etag and date", "date", "weak etag", "neither"],
)
def test_a_file_that_changes_is_downloaded_whole(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    heeds_if_range: bool,
    old: dict[str, str],
    new: dict[str, str],
) -> None:
    server.heeds_if_range, server.headers = heeds_if_range, old
    replace_after_the_first_break(monkeypatch, server, new)
    download(server.url, tmp_path / "part", hint="")
    assert (tmp_path / "part").read_bytes() == NEW


@pytest.mark.parametrize("headers", [{"ETag": '"1"'}, {"Last-Modified": DATE}], ids=["etag", "date"])
def test_only_the_rest_of_the_same_version_is_requested(
    server: Server, tmp_path: Path, headers: dict[str, str]
) -> None:
    server.headers, server.cut_after = headers, [100]
    download(server.url, tmp_path / "part", hint="")
    assert (tmp_path / "part").read_bytes() == OLD
    assert server.asked == [None, "bytes=100-"]


def test_a_date_within_the_second_of_the_answer_identifies_no_version(server: Server, tmp_path: Path) -> None:
    server.headers = {"Last-Modified": "Fri, 01 Jan 2100 00:00:00 GMT"}
    server.cut_after = [100]
    download(server.url, tmp_path / "part", hint="")
    assert server.asked == [None, None]


@pytest.mark.parametrize("etag", ['"1"', '"2"'], ids=["same", "changed"])
@pytest.mark.parametrize("version", ["version", None])
def test_a_later_call_resumes_the_same_version(
    server: Server, tmp_path: Path, etag: str, version: str | None
) -> None:
    kept = None if version is None else tmp_path / version
    server.cut_after = [100, 0, 0, 0]
    with pytest.raises(DataError) as caught:
        download(server.url, tmp_path / "part", "", kept)
    assert ("100 bytes are kept, and the same command resumes from there" in str(caught.value)) == bool(kept)
    server.asked.clear()
    server.headers = {"ETag": etag}
    server.content = OLD if etag == '"1"' else NEW
    download(server.url, tmp_path / "part", "", kept)
    assert (tmp_path / "part").read_bytes() == server.content
    assert server.asked == ["bytes=100-" if kept else None]


def test_a_beginning_longer_than_the_file_is_removed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(OLD + b"more")
    (tmp_path / "version").write_text('"1"')
    download(server.url, tmp_path / "part", "", tmp_path / "version")
    assert (tmp_path / "part").read_bytes() == OLD
    assert server.asked == ["bytes=3004-", None]


def test_a_beginning_of_an_unknown_version_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(NEW[:100])
    download(server.url, tmp_path / "part", "")
    assert (tmp_path / "part").read_bytes() == OLD
