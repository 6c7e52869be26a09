"""Versions: activation, swaps between batches, warm-up by recorded requests, and versions that fail."""

import asyncio
import gc
import json
import shutil
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ham_dist.cli import app
from ham_dist.errors import BundleError, ConfigError
from ham_dist.serving import Scorer
from ham_dist.serving.server.versions import active_version, versions_in
from tests.support.asgi import Client, ask
from tests.support.live_models import export, live_model
from tests.support.raw_bundle import RECIPE, write_raw_bundle

IDS: dict[str, list[Any]] = {"user": [3, 0, 9], "genres": [[2, 1], [4, 0], [0]], "age": [1, 0, 2]}
runner = CliRunner()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions v1 and v2 of two models of the same fields."""
    folder = tmp_path_factory.mktemp("versions")
    for seed, version in enumerate(("v1", "v2")):
        export(live_model("dcnv2", seed=seed), folder / version)
    return folder


@pytest.fixture
def versions(written: Path, tmp_path: Path) -> Path:
    """A folder of v1 and v2, of which v1 is active."""
    shutil.copytree(written, tmp_path / "films")
    activate(tmp_path / "films", "v1")
    return tmp_path / "films"


def activate(folder: Path, version: str) -> str:
    done = runner.invoke(app, ["activate", str(folder), version])
    assert done.exit_code == 0, done.stderr
    return done.stdout


def expected(folder: Path, version: str) -> list[float]:
    found: list[float] = Scorer(folder / version).score_ids(IDS).tolist()
    return found


def with_client(
    folder: Path, question: Callable[[Client], Coroutine[Any, Any, None]], **options: Any
) -> None:
    """Asks a service that looks for another version only when it is told to."""
    ask(folder, question, **{"poll_seconds": 3600.0} | options)


def test_activation_names_one_version(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    shutil.copytree(written, folder)
    with pytest.raises(BundleError, match=r"neither a bundle nor a folder(.|\n)*ham-dist activate"):
        active_version(folder)
    assert activate(folder, "v1") == f"{folder}: v1 is active\n"
    assert activate(folder, "v2") == f"{folder}: v2 is active; before it, v1\n"
    assert (folder / "current").read_text() == "v2\n"
    assert active_version(folder)[:2] == ("v2", folder / "v2")
    assert versions_in(folder) == ["v1", "v2"]
    (folder / "v2" / "dense.safetensors").unlink()
    for version, message in (
        ("v3", "v3 is not a bundle in"),
        ("..", "is no name of a version"),
        ("v1/../v2", "is no name of a version"),
        ("v2", "dense.safetensors: missing"),
    ):
        refused = runner.invoke(app, ["activate", str(folder), version])
        assert (refused.exit_code, message in refused.stderr) == (2, True), refused.stderr
    assert (folder / "current").read_text() == "v2\n"
    refused = runner.invoke(app, ["activate", str(folder / "v1"), "v1"])
    assert "is a bundle; expected a folder of versions" in refused.stderr


def test_a_swap_and_the_way_back(versions: Path) -> None:
    async def question(client: Client) -> None:
        for version in ("v1", "v2", "v1"):
            activate(versions, version)
            await client.service.swapper.look()
            found = (await client.post("/score", {"ids": IDS})).json()
            assert found["version"] == version
            assert found["probabilities"] == pytest.approx(expected(versions, version), abs=1e-7)
            assert (await client.get("/v2/models/films")).json()["versions"] == [version]
            metrics = (await client.get("/metrics")).body.decode()
            info = [line for line in metrics.splitlines() if line.startswith("ham_dist_model_info{")]
            (serving,) = (line for line in info if line.endswith(" 1.0"))
            assert f'runtime="eager",version="{version}"' in serving
        other = await client.get("/v2/models/films/versions/v2")
        assert (other.status, "expected 'v1'" in other.error) == (404, True)

    with_client(versions, question)


def test_answers_during_a_swap_come_from_one_version_each(versions: Path) -> None:
    async def question(client: Client) -> None:
        by_version = {version: expected(versions, version) for version in ("v1", "v2")}
        seen: list[str] = []

        async def keep_asking() -> None:
            while not done.is_set():
                found = (await client.post("/score", {"ids": IDS})).json()
                assert found["probabilities"] == pytest.approx(by_version[found["version"]], abs=1e-6)
                seen.append(found["version"])

        done = asyncio.Event()
        clients = [asyncio.create_task(keep_asking()) for _ in range(4)]
        for version in ("v2", "v1", "v2"):
            activate(versions, version)
            await client.service.swapper.look()
            assert (await client.post("/score", {"ids": IDS})).json()["version"] == version
        done.set()
        await asyncio.gather(*clients)
        assert set(seen) == {"v1", "v2"}

    with_client(versions, question)


def test_the_old_version_is_freed(versions: Path) -> None:
    async def question(client: Client) -> None:
        await client.post("/score", {"ids": IDS})
        old = weakref.ref(client.service.model)
        activate(versions, "v2")
        await client.service.swapper.look()
        await client.post("/score", {"ids": IDS})
        gc.collect()
        assert old() is None

    with_client(versions, question)


def test_the_server_watches_the_pointer_file(versions: Path) -> None:
    async def question(client: Client) -> None:
        watching = asyncio.create_task(client.service.run_ticks())
        activate(versions, "v2")
        async with asyncio.timeout(60):
            while (await client.post("/score", {"ids": IDS})).json()["version"] != "v2":
                await asyncio.sleep(0.01)
        watching.cancel()

    ask(versions, question, poll_seconds=0.01)


def damage(folder: Path) -> None:
    """Changes a byte of a table, so that only its hash shows it."""
    path = next((folder / "tables").iterdir())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "version", "reason"),
    [
        (lambda folder: damage(folder / "v2"), "v2", "damaged: its sha256"),
        (lambda folder: shutil.rmtree(folder / "v2"), "", "v2 is not a bundle in"),
        (lambda folder: (folder / "current").unlink(), "", "neither a bundle nor a folder of versions"),
        (lambda folder: (folder / "current").write_text("../v1\n"), "", "is no name of a version"),
        (
            lambda folder: (folder / "warmup.jsonl").write_text("{}\n"),
            "v2",
            "jsonl:1: has the keys none",
        ),
        (
            lambda folder: (folder / "warmup.jsonl").write_text('{"ids": {"user": [1]}}\n'),
            "v2",
            "does not answer the recorded request",
        ),
    ],
)
def test_a_version_that_fails_leaves_the_old_one_serving(
    versions: Path, spoil: Callable[[Path], Any], version: str, reason: str
) -> None:
    async def question(client: Client) -> None:
        (versions / "current").write_text("v2\n")
        spoil(versions)
        for _ in range(2):  # it fails once
            await client.service.swapper.look()
        assert (await client.post("/score", {"ids": IDS})).json()["version"] == "v1"
        ready = await client.get("/health/ready")
        assert (ready.status, ready.json()["version"]) == (200, "v1")
        assert ready.json()["failed"]["version"] == version
        assert reason in ready.json()["failed"]["reason"]
        metrics = (await client.get("/metrics")).body.decode()
        assert f'ham_dist_version_failures_total{{version="{version}"}} 1.0' in metrics
        (versions / "warmup.jsonl").unlink(missing_ok=True)
        activate(versions, "v1")
        await client.service.swapper.look()
        assert "failed" not in (await client.get("/health/ready")).json()

    with_client(versions, question)


def test_requests_are_recorded_and_warm_the_next_start(versions: Path) -> None:
    async def record(client: Client) -> None:
        await client.post("/score", {"ids": {"user": [99]}})  # refused: not recorded
        await client.post("/score", {"ids": IDS})
        ids = {name: IDS[name] for name in ("user", "age")}
        tensors = {
            name: {"name": name, "datatype": "INT64", "shape": [len(data)], "data": data}
            for name, data in (ids | {"genres.values": [2, 1, 4], "genres.offsets": [0, 2, 3, 3]}).items()
        }
        answer = await client.post("/v2/models/films/infer", {"inputs": list(tensors.values())})
        assert answer.status == 200, answer.body
        await client.post("/score", {"ids": IDS})

    with_client(versions, record, record_warmup=2)
    lines = [json.loads(line) for line in (versions / "warmup.jsonl").read_text().splitlines()]
    assert lines == [{"ids": IDS}, {"ids": IDS | {"genres": [[2, 1], [4], []]}}]

    async def served(client: Client) -> None:
        assert (await client.post("/score", {"ids": IDS})).status == 200

    with_client(versions, served)
    (versions / "warmup.jsonl").write_text("no JSON\n")
    with pytest.raises(BundleError, match=r"warmup.jsonl:1: is not JSON"):
        with_client(versions, served)


def test_fewer_requests_than_wanted_are_recorded_at_the_end(tmp_path: Path) -> None:
    bundle = write_raw_bundle(tmp_path, RECIPE)
    record = {"user": "u1", "genres": ["g1"], "age": None, "gone": "g1"}

    async def question(client: Client) -> None:
        assert (await client.post("/score", {"records": [record]})).status == 200

    ask(bundle, question, record_warmup=5, warmup=tmp_path / "warm.jsonl")
    assert json.loads((tmp_path / "warm.jsonl").read_text()) == {"records": [record]}
    with pytest.raises(ConfigError, match="Give --warmup FILE"):
        ask(bundle, question, record_warmup=5)
