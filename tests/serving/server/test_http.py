"""The server on a socket: limits on heads and slow clients, and a stop that loses no request."""

import http.client
import json
import os
import signal
import socket
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ham_dist.cli import app, serve
from ham_dist.serving.server.http import HEAD_BYTES
from tests.support.http_server import served
from tests.support.live_models import export, live_model
from tests.support.server_process import process

IDS = {"user": [3, 0, 9], "genres": [[2, 1], [4, 0], [0]], "age": [1, 0, 2]}
BODY = json.dumps({"ids": IDS}).encode()
REQUEST = b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "films"
    export(live_model("dcnv2"), folder)
    return folder


def talk(address: str, *parts: bytes) -> bytes:
    """The whole answer to `parts`, until the server closes the connection."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        for part in parts:
            connection.sendall(part)
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
        return answer


def post(connection: http.client.HTTPConnection) -> tuple[int, bytes]:
    connection.request("POST", "/score", BODY)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_slow_and_huge_requests_are_refused_and_others_served(path: Path) -> None:
    with served(path, read_seconds=0.5, max_body_bytes=1000) as address:
        connection = http.client.HTTPConnection(address, timeout=60)
        assert post(connection)[0] == 200
        assert talk(address, b"POST /score HT").startswith(b"HTTP/1.1 408 ")
        assert talk(address, b"POST /score HTTP/1.1\r\nhost: x\r\nx").startswith(b"HTTP/1.1 408 ")
        assert talk(address, REQUEST[:-1]).startswith(b"HTTP/1.1 408 ")
        assert talk(address, b"") == b""
        # One byte more than a head may have, so that the server closes with all of it read.
        assert talk(address, b"GET / HTTP/1.1\r\nhost: x\r\nx: ".ljust(HEAD_BYTES + 1, b"x")).startswith(
            b"HTTP/1.1 431 "
        )
        assert talk(address, b"\x16\x03\x01\x02\0\x01\0\x01").startswith(b"HTTP/1.1 400 ")
        large = b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: 3000\r\n\r\n" + b"x" * 3000
        refused = talk(address, large)
        assert refused.startswith(b"HTTP/1.1 413 ")
        assert b"expected at most 1,000" in refused
        chunked = b"POST /score HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        chunks = b"%x\r\n%b\r\n" % (3, BODY[:3]) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY) - 3, BODY[3:])
        closing = chunked.replace(b"host", b"connection: close\r\nhost")
        assert talk(address, closing, chunks).startswith(b"HTTP/1.1 200 ")
        assert post(connection)[0] == 200
        # Two requests at once on one connection are answered in their order.
        both = talk(address, REQUEST + REQUEST.replace(b"host", b"connection: close\r\nhost"))
        assert both.count(b"HTTP/1.1 200 ") == 2
        connection.close()


def test_an_offer_of_http_2_is_ignored_and_the_body_read(path: Path) -> None:
    offer = (
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nConnection: Upgrade, HTTP2-Settings, close\r\n"
    )
    head, _, body = REQUEST.replace(b"host", offer + b"host").partition(b"\r\n\r\n")
    with served(path) as address:
        for parts in ([head + b"\r\n\r\n" + body], [head + b"\r\n\r\n", body]):
            assert talk(address, *parts).startswith(b"HTTP/1.1 200 ")


def test_sigterm_under_load_answers_every_accepted_request(path: Path) -> None:
    """A connection that is refused was not accepted; one that breaks would have lost its request."""
    answered: list[int] = []

    def keep_asking() -> None:
        connection = http.client.HTTPConnection(address, timeout=60)
        while True:
            try:
                connection.connect()
            except ConnectionRefusedError:
                return
            while True:
                status, body = post(connection)
                assert status == 200, body
                answered.append(status)
                if connection.sock is None:  # the server has closed it after its answer
                    break

    failures: list[BaseException] = []

    def ask() -> None:
        try:
            keep_asking()
        except BaseException as error:
            failures.append(error)

    with process(path) as (running, address):
        clients = [threading.Thread(target=ask) for _ in range(8)]
        for client in clients:
            client.start()
        while len(answered) < 100:
            threading.Event().wait(0.01)
        os.kill(running.pid, signal.SIGTERM)
        for client in clients:
            client.join()
        assert running.wait(60) == 0
    assert failures == []


def test_serve_without_its_libraries_says_how_to_install_them(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    monkeypatch.setattr(serve, "_NEEDED", ("uvicorn", "no_such_library"))
    refused = CliRunner().invoke(app, ["serve", str(path)])
    assert refused.exit_code == 2
    assert "serve: no_such_library cannot be imported" in refused.stderr
    assert "pip install 'ham-dist[serve]'" in refused.stderr


def test_what_cannot_be_served_is_an_error(tmp_path: Path, path: Path) -> None:
    runner = CliRunner()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, message in (
            ((str(tmp_path),), "is neither a bundle nor a folder of versions"),
            ((str(path), "--port", port), "expected an address of this machine and a free port"),
            ((str(path), "--host", "256.0.0.1"), "expected an address of this machine and a free port"),
            ((str(path), "--queue-rows", "7"), "smaller than --max-rows 4096"),
            ((str(path), "--name", "a/b"), "expected printable characters without /"),
        ):
            refused = runner.invoke(app, ["serve", *arguments])
            assert (refused.exit_code, message in refused.stderr) == (2, True), refused.stderr
