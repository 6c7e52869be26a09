"""The status page: its content, the escaping of outside text, and the page in a browser."""

import asyncio
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ham_dist.export.manifest import read_manifest
from tests.support.asgi import Client, ask
from tests.support.http_server import served
from tests.support.raw_bundle import RECIPE, write_raw_bundle
from tests.support.server_process import request

RECORD = {"user": "u3", "genres": "g2|g1", "age": "nobody's", "gone": "g1"}
HOSTILE = "<img src=x onerror=document.title='run'>"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw_bundle(tmp_path_factory.mktemp("bundle"), RECIPE)


def test_status_has_the_model_its_columns_and_its_load(path: Path) -> None:
    async def questions(client: Client) -> None:
        for _ in range(3):
            assert (await client.post("/score", {"records": [RECORD, RECORD]})).status == 200
        assert (await client.post("/score", b"")).status == 400
        async with asyncio.timeout(60):  # values are counted after the answer
            while True:
                found = (await client.get("/status.json")).json()
                if found["metrics"]["values"].get("user") == 6:
                    break
                await asyncio.sleep(0.01)
        assert (found["name"], found["version"], found["versions"]) == ("films", "1", ["1"])
        assert (found["model"], found["precision"], found["failed"]) == ("deepfm", "fp32", None)
        columns = {field["name"]: (field["rows"], field["columns"]) for field in found["fields"]}
        manifest = read_manifest(path)
        assert columns == {each.name: (each.num_embeddings, each.embedding_dim) for each in manifest.fields}
        assert found["table_bytes"] == manifest.table_bytes
        metrics = found["metrics"]
        assert metrics["requests"] == {"200": 3, "400": 1}
        assert (metrics["rows"], metrics["workers"]) == (6, {"1": 1})
        assert metrics["values"] == {"user": 6, "age": 6, "genres": 12}
        assert metrics["unknown"] == {"user": 0, "age": 6, "genres": 0}
        assert metrics["buckets"][-1][1] == 3
        counts = [count for _, count in metrics["buckets"]]
        assert counts == sorted(counts)

    ask(path, questions)


def test_the_page_runs_its_own_script_alone_and_writes_text_not_html(path: Path) -> None:
    async def questions(client: Client) -> None:
        page = await client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert re.search(r"script-src 'sha256-[A-Za-z0-9+/]+=*';", policy)
        text = page.body.decode()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?://", text)
        assert "textContent" in text

    ask(path, questions)


def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return found or pytest.skip("there is no Chromium")


def test_the_page_in_a_browser(path: Path, tmp_path: Path) -> None:
    """Chromium shows what status.json has, and a name in HTML as text."""
    program = browser()
    with served(path, name=HOSTILE, max_rows=8) as address:
        for _ in range(5):
            assert request(address, "/score", {"records": [RECORD]})[0] == 200
        shown = subprocess.run(
            [
                program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000", "--dump-dom",
                f"http://{address}/",
            ],
            capture_output=True, text=True, check=True, timeout=300,
        ).stdout  # fmt: skip
    escaped = HOSTILE.replace("<", "&lt;").replace(">", "&gt;")
    assert f'<h1 id="title">{escaped}, version 1</h1>' in shown
    assert "<img" not in shown
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", shown)]
    facts = {row[0]: row[1:] for row in rows}
    assert facts["model"] == ["deepfm"]
    assert facts["field"] == ["rows", "kept columns", "values", "unknown"]
    assert facts["user"] == ["11", "5", "5", "0.0 %"]
    assert facts["age"] == ["3", "1", "5", "100.0 %"]
    assert facts["requests since the start"] == ["200: 5"]
    assert re.fullmatch(r"\S+ ms, \S+ ms", facts["latency p50, p99 since the start"][0])
    assert 'id="failed" class="warning" hidden' in shown
