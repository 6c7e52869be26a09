import errno
import hashlib
import io
import re
import socket
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ham_dist.cli import app
from ham_dist.data.raw import fetch as fetching
from ham_dist.data.raw.fetch import Archive, Source, fetch, load_source
from ham_dist.errors import DataError
from ham_dist.io import download as downloading
from ham_dist.io import http
from tests.support.loopback import Server, serving

FILES = {
    "ratings.dat": b"1::1193::5::978300760\n" * 20_000,
    "users.dat": b"1::F::1::10::48067\n",
    "movies.dat": b"1::Toy Story (1995)::Animation\n",
}


def _zip(files: dict[str, bytes], links: tuple[str, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
        for name in links:
            link = zipfile.ZipInfo(name)
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            packed.writestr(link, "/etc/passwd")
    return buffer.getvalue()


OFFICIAL = _zip(
    {f"ml-1m/{name}": content for name, content in FILES.items()}
    | {"ml-1m/README": b"licence", "__MACOSX/x": b""}
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(http, "PAUSES", (0.0, 0.0))
    with serving(Server(OFFICIAL)) as running:
        yield running


def _source(server: Server, md5: str | None = None) -> Source:
    archive = Archive(
        url=server.url, md5=md5 or hashlib.md5(server.content).hexdigest(), folder="ml-1m", files=tuple(FILES)
    )
    return Source(page="https://example.org", licence="Be kind.", archive=archive)


def _fetch(server: Server, out: Path, md5: str | None = None) -> None:
    fetch("movielens-1m", _source(server, md5), out, licence_accepted=True)


def _message(server: Server, out: Path, md5: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        _fetch(server, out, md5)
    assert not out.exists() or not any(out.glob("*.dat"))
    return str(caught.value)


def _check(out: Path) -> None:
    assert {path.name: path.read_bytes() for path in out.iterdir()} == FILES | {"README": b"licence"}
    assert [path.name for path in out.parent.iterdir()] == [out.name], "nothing is left beside it"


def test_official_archive_is_unpacked_and_left_alone_after(server: Server, tmp_path: Path) -> None:
    _fetch(server, tmp_path / "ml-1m")
    _check(tmp_path / "ml-1m")
    _fetch(server, tmp_path / "ml-1m")
    assert server.asked == [None]


def test_broken_connections_go_on_where_they_broke(server: Server, tmp_path: Path) -> None:
    server.cut_after = [1000, 50_000, 0]
    _fetch(server, tmp_path / "ml-1m")
    assert server.asked == [None, "bytes=1000-", "bytes=51000-", "bytes=51000-"]
    _check(tmp_path / "ml-1m")


def test_a_server_without_ranges_is_asked_for_all_of_it_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cut_after = [1000]
    _fetch(server, tmp_path / "ml-1m")
    assert server.asked == [None, "bytes=1000-"]
    _check(tmp_path / "ml-1m")


def test_what_came_before_a_failed_call_is_kept_for_the_next(server: Server, tmp_path: Path) -> None:
    server.cut_after = [1000, 0, 0, 0, 0]
    text = _message(server, tmp_path / "ml-1m")
    assert (
        "cannot be downloaded (the connection broke); 1,000 bytes are kept, "
        "and the same command resumes from there" in text
    )
    assert "Or download it by hand from https://example.org" in text
    server.asked.clear()
    server.cut_after.clear()
    _fetch(server, tmp_path / "ml-1m")
    assert server.asked == ["bytes=1000-"]
    _check(tmp_path / "ml-1m")


def test_an_archive_that_had_come_whole_is_not_asked_for_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_check", lambda path, archive: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _fetch(server, tmp_path / "ml-1m")
    monkeypatch.undo()
    _fetch(server, tmp_path / "ml-1m")
    assert server.asked == [None, f"bytes={len(OFFICIAL)}-"]
    _check(tmp_path / "ml-1m")


def test_wrong_checksum_is_refused_and_the_next_call_starts_anew(server: Server, tmp_path: Path) -> None:
    text = _message(server, tmp_path / "ml-1m", md5="0" * 32)
    assert (
        f"md5 is {hashlib.md5(OFFICIAL).hexdigest()}; expected {'0' * 32}, that of the official archive. "
        "The download was deleted\n" in text
    )
    _message(server, tmp_path / "ml-1m", md5="0" * 32)
    assert server.asked == [None, None]


def test_refusals_of_the_server(server: Server, tmp_path: Path) -> None:
    server.statuses = [404]
    assert f"{server.url}: the server answered 404 Not Found\n  Or download it by hand" in _message(
        server, tmp_path / "ml-1m"
    )
    server.statuses = [503, 503, 503, 503]
    assert "cannot be downloaded (the server answered 503 Service Unavailable)\n" in _message(
        server, tmp_path / "ml-1m"
    )
    server.statuses = [503]
    _fetch(server, tmp_path / "ml-1m")
    _check(tmp_path / "ml-1m")


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSES", (0.0,))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        server = Server(OFFICIAL, url=f"http://127.0.0.1:{nobody.getsockname()[1]}/ml-1m.zip")
        text = _message(server, tmp_path / "ml-1m")
    assert re.match(rf"{server.url}: cannot be downloaded \(.*refused\)\n  Or download it by hand", text)


def test_a_full_disk_is_no_broken_connection(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloading, "_copy", full)
    with pytest.raises(OSError, match="No space left"):
        _fetch(server, tmp_path / "ml-1m")
    assert server.asked == [None]


def test_a_folder_in_the_way(server: Server, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    assert f"{tmp_path}: already exists; nothing was written" in _message(server, tmp_path)
    assert "mine: already exists" in _message(server, tmp_path / "mine")
    assert server.asked == []


@pytest.mark.parametrize("name", ["ml-1m/../../evil", "/etc/evil", "ml-1m/..\\..\\evil", "C:/evil"])
def test_names_that_lead_out_of_the_archive(server: Server, tmp_path: Path, name: str) -> None:
    server.content = _zip({f"ml-1m/{file}": content for file, content in FILES.items()} | {name: b"evil"})
    text = _message(server, tmp_path / "a" / "ml-1m")
    assert "which cannot be unpacked safely: " in text
    assert "Nothing was unpacked" in text
    assert not list(tmp_path.rglob("evil"))


def test_links_and_damage_in_the_archive(server: Server, tmp_path: Path) -> None:
    server.content = _zip(
        {f"ml-1m/{file}": content for file, content in FILES.items()}, links=("ml-1m/link",)
    )
    assert "contains 'ml-1m/link', which cannot be unpacked safely: is a symbolic link" in _message(
        server, tmp_path / "one"
    )
    server.content = _zip({"ml-1m/users.dat": b"1"})
    assert "its folder ml-1m lacks movies.dat, ratings.dat" in _message(server, tmp_path / "two")
    server.content = OFFICIAL[:-10]
    assert "is not a complete zip file" in _message(server, tmp_path / "three")


def test_every_source_of_ours_is_well_formed_and_says_what_to_do() -> None:
    assert load_source("movielens-1m").archive is not None
    for name in ("criteo-kaggle", "criteo-1tb", "avazu", "frappe"):
        source = load_source(name)
        assert source.archive is None
        with pytest.raises(
            DataError,
            match=f"fetch {name}: must be downloaded by hand from {re.escape(source.page)}; "
            "nothing was fetched",
        ) as caught:
            fetch(name, source, Path("raw"), licence_accepted=True)
        assert str(caught.value).endswith(
            f"into raw.\n  Then: ham-dist prepare {name} --raw raw --out data/{name}"
        )
    with pytest.raises(
        DataError, match="Give one of: avazu, criteo-1tb, criteo-kaggle, frappe, movielens-1m"
    ):
        load_source("movielens")


def test_command_shows_the_licence_first_and_ends_with_what_comes_next(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "load_source", lambda name: _source(server))
    arguments = ["fetch", "movielens-1m", "--out", str(tmp_path / "ml-1m")]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert refused.stdout == "https://example.org\nBe kind.\n\n"
    assert (
        refused.stderr == "ham-dist: fetch movielens-1m: nothing was fetched\n"
        "  If you accept the licence above, add --accept-licence\n"
    )
    assert server.asked == []
    done = CliRunner().invoke(app, [*arguments, "--accept-licence"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.endswith(
        f"Next:\n  ham-dist prepare movielens-1m --raw {tmp_path / 'ml-1m'} --out data/movielens-1m\n"
    )
    _check(tmp_path / "ml-1m")
