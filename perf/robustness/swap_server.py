"""Swaps and kills of `ham-dist serve` under load: no request may fail, no answer may mix two versions.

    python perf/robustness/swap_server.py                       100 swaps, 10 kills, 2 workers
    python perf/robustness/swap_server.py --swaps 3 --kills 1   a look

The versions have fp16 and int8 tables of one model; every request has the same ids, so that each version has
one right answer. An open loop asks while versions are activated in turn. Then workers are killed with SIGKILL
one after the other, each of which may lose the requests that it had in flight. At last SIGTERM under load,
which may lose none. Memory is the private memory (USS) of all processes, at five times from the first to the
last swap.
"""

import argparse
import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import orjson
import torch
import uvloop

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from bench_scorer import dims, write_vocabulary  # noqa: E402
from bench_scorer import write as write_bundle  # noqa: E402
from load import Result, closed_loop, open_loop, request_of  # noqa: E402

from ham_dist.serving.server.versions import activate  # noqa: E402

CONNECTIONS = 64
ROUNDING = 1e-6


def children(process: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{process}/task").glob("*/children")
        for child in task.read_text().split()
    ]


def private_bytes(processes: list[int]) -> int:
    """Memory that only these processes have."""
    found = 0
    for process in processes:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
        found += 1024 * sum(int(size) for size in re.findall(r"^Private_\w+:\s+(\d+)", text, re.MULTILINE))
    return found


async def ready_workers(address: tuple[str, int], version: str) -> int:
    """Number of workers that serve a version."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"GET /status.json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    text = await reader.read()
    writer.close()
    return int(orjson.loads(text.partition(b"\r\n\r\n")[2])["metrics"]["workers"].get(version, 0))


async def until_served(address: tuple[str, int], version: str, workers: int) -> None:
    while await ready_workers(address, version) < workers:
        await asyncio.sleep(0.05)


def report(name: str, found: Result, allowed_broken: int = 0) -> None:
    """Prints a phase, and ends the program if a request failed or an answer mixes two versions."""
    print(
        f"{name}: {dict(found.statuses)}, p50 {1e3 * found.quantile(0.5):.2f} ms, "
        f"p99 {1e3 * found.quantile(0.99):.2f} ms",
        flush=True,
    )
    wrong = {status for status in found.statuses if status not in ("200", "broken", "refused")}
    if wrong or found.statuses["broken"] > allowed_broken:
        raise SystemExit(f"{name}: failed requests")
    answers: dict[str, list[float]] = {}
    for version, body in found.versions:
        answer = orjson.loads(body)
        if answer["version"] != version:
            raise SystemExit(f"{name}: {body!r} with the version {version} in its header")
        answers.setdefault(version, []).extend(answer["probabilities"])
    for version, probabilities in answers.items():
        # The last bits depend on the size of the batch; two versions differ by far more.
        if max(probabilities) - min(probabilities) > ROUNDING:
            raise SystemExit(f"{name}: {version} gives {min(probabilities)} to {max(probabilities)}")


async def check(
    process: "subprocess.Popen[str]", address: tuple[str, int], folder: Path, options: argparse.Namespace
) -> None:
    ids = {name: [number % options.rows] for number, name in enumerate(dims())}
    asked = [request_of("/score", orjson.dumps({"ids": ids}))]
    rate = 0.3 * (await closed_loop(address, asked, 32, 2.0)).rate
    report("no swap", await open_loop(address, asked, rate, options.seconds, CONNECTIONS))

    load = asyncio.create_task(open_loop(address, asked, rate, options.seconds * options.swaps, CONNECTIONS))
    memory = []
    for number in range(options.swaps):
        version = ("v2", "v1")[number % 2]
        activate(folder, version)
        await until_served(address, version, options.workers)
        memory.append(private_bytes([process.pid, *children(process.pid)]))
        await asyncio.sleep(0.2)
    shown = " -> ".join(f"{memory[place * (len(memory) - 1) // 4] / 1e6:.0f}" for place in range(5))
    print(f"{options.swaps} swaps, private memory {shown} MB", flush=True)
    report("swaps", await load)

    for number in range(options.kills):
        load = asyncio.create_task(open_loop(address, asked, rate, options.seconds, CONNECTIONS))
        await asyncio.sleep(0.5)
        before = children(process.pid)
        os.kill(before[number % len(before)], signal.SIGKILL)
        report("kill -9 of a worker", await load, allowed_broken=CONNECTIONS)
        while len(children(process.pid)) < options.workers:
            await asyncio.sleep(0.05)

    load = asyncio.create_task(open_loop(address, asked, rate, options.seconds, CONNECTIONS))
    await asyncio.sleep(0.5)
    workers = children(process.pid)
    process.terminate()
    report("SIGTERM", await load)
    if process.wait(60) or any(Path(f"/proc/{worker}").exists() for worker in workers):
        raise SystemExit("SIGTERM: a process is left, or the status is not 0")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000, help="rows of each table")
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of load for a swap or a kill")
    parser.add_argument("--runtime", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "versions"
        folder.mkdir()
        write_vocabulary(Path(name) / "vocabulary", 100)
        for version in ("v1", "v2"):
            write_bundle(
                folder / version,
                options.rows,
                "fp16" if version == "v1" else "int8",
                Path(name) / "vocabulary",
            )
        activate(folder, "v1")
        words = [
            sys.executable,
            "-m",
            "ham_dist",
            "serve",
            folder,
            "--port",
            "0",
            "--workers",
            options.workers,
        ]
        process = subprocess.Popen(
            [*map(str, words), "--workers", str(options.workers), "--runtime", options.runtime],
            env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            found = re.search(r":(\d+)", process.stdout.readline())
            assert found is not None, "the server has ended"
            uvloop.run(check(process, ("127.0.0.1", int(found[1])), folder, options))
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
