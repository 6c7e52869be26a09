"""`ham-dist serve` in a process of its own."""

import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.forked import ENVIRONMENT

PATIENCE = 120.0
"""Seconds after which something that must happen will not."""


@contextmanager
def process(
    *arguments: str | Path, folder: Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`ham-dist serve ARGUMENTS` on a free port, and its `HOST:PORT`; it runs in `folder`."""
    command = [sys.executable, "-m", "ham_dist", "serve", *map(str, arguments), "--port", "0"]
    running = subprocess.Popen(command, env=ENVIRONMENT, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        found = re.search(r"http://(\S+)", running.stdout.readline())
        assert found is not None
        yield running, found[1]
    finally:
        running.kill()
        running.wait()
        assert running.stdout is not None
        running.stdout.close()


def children(process_id: int) -> list[int]:
    """Processes that a process has started and that run."""
    tasks = Path(f"/proc/{process_id}/task").glob("*/children")
    return sorted(int(child) for task in tasks for child in task.read_text().split())


def runs(process_id: int) -> bool:
    """False for a process that has ended, also before its parent has noticed."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], Any]) -> Any:
    """Waits until `condition` holds, and returns its value."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, "this did not happen"
        time.sleep(0.02)
    return found


def request(address: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON (or text) of the answer on a new connection."""
    connection = http.client.HTTPConnection(address, timeout=PATIENCE)
    try:
        method, content = ("GET", None) if body is None else ("POST", json.dumps(body))
        connection.request(method, path, content)
        answer = connection.getresponse()
        text = answer.read().decode()
        kind = answer.headers["content-type"]
        return answer.status, json.loads(text) if kind == "application/json" else text
    finally:
        connection.close()
