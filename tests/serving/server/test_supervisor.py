"""Several workers: one port, one set of metrics, replacement, and an end without orphans."""

import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from ham_dist.serving import Scorer
from ham_dist.serving.server.versions import activate
from tests.support.forked import run_python
from tests.support.live_models import export, live_model
from tests.support.server_process import children, process, request, runs, wait_for

IDS = {"user": [3, 0, 9], "genres": [[2, 1], [4, 0], [0]], "age": [1, 0, 2]}
WORKERS = ("--workers", "2", "--name", "films")


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of v1, v2 and a damaged v3, of which v1 is active."""
    folder = tmp_path_factory.mktemp("films")
    for seed, version in enumerate(("v1", "v2")):
        export(live_model("dcnv2", seed=seed), folder / version)
    shutil.copytree(folder / "v2", folder / "v3")
    table = next((folder / "v3" / "tables").iterdir())
    table.write_bytes(table.read_bytes()[:-1] + b"\x01")
    activate(folder, "v1")
    return folder


def score(address: str) -> Any:
    status, found = request(address, "/score", {"ids": IDS})
    assert status == 200, found
    return found


def metric(address: str, name: str) -> float:
    """Sum of a metric over its labels."""
    _, text = request(address, "/metrics")
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def test_workers_share_a_port_and_metrics_and_end_together(versions: Path) -> None:
    with process(versions, *WORKERS) as (running, address):
        workers = children(running.pid)
        assert len(workers) == 2
        for _ in range(20):
            assert score(address)["version"] == "v1"
        wait_for(lambda: metric(address, "ham_dist_requests_total") == 20)
        assert metric(address, "ham_dist_model_info") == 2
        assert metric(address, "ham_dist_rows_total") == 60
        wait_for(lambda: metric(address, "ham_dist_values_total") == 60 + 60 + 20 * 5)

        os.kill(workers[0], signal.SIGKILL)
        replaced = wait_for(lambda: (found := children(running.pid)) != workers and len(found) == 2 and found)
        wait_for(lambda: metric(address, "ham_dist_model_info") == 2)
        for _ in range(20):
            score(address)
        assert metric(address, "ham_dist_requests_total") == 40, "counts of the killed worker are kept"

        running.terminate()
        assert running.wait(120) == 0
        assert not any(runs(worker) for worker in (*workers, *replaced))


def test_versions_are_verified_once_and_served_by_all_workers(versions: Path, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    shutil.copytree(versions, folder)
    with process(folder, *WORKERS) as (running, address):
        activate(folder, "v2")
        wait_for(lambda: request(address, "/status.json")[1]["metrics"]["workers"].get("v2") == 2)
        expected = Scorer(folder / "v2").score_ids(IDS).tolist()
        for _ in range(10):
            found = score(address)
            assert (found["version"], found["probabilities"]) == ("v2", pytest.approx(expected, abs=1e-6))
        activate(folder, "v3")
        ready = wait_for(lambda: "failed" in (found := request(address, "/health/ready")[1]) and found)
        assert ready["failed"]["version"] == "v3"
        assert "damaged: its sha256 is not that in manifest.json" in ready["failed"]["reason"]
        wait_for(lambda: metric(address, "ham_dist_version_failures_total") == 1)
        assert score(address)["version"] == "v2"

        workers = children(running.pid)
        os.kill(running.pid, signal.SIGKILL)
        wait_for(lambda: not any(runs(worker) for worker in workers))


def test_a_bundle_that_is_damaged_at_the_start_is_an_error(versions: Path) -> None:
    damaged = run_python(["-m", "ham_dist", "serve", versions / "v3", "--port", "0", *WORKERS])
    assert damaged.returncode == 2
    assert "damaged: its sha256 is not that in manifest.json" in damaged.stderr
    assert "Traceback" not in damaged.stderr
