"""`ham-dist serve` compared with FastAPI and LitServe around the same `Scorer`, one record a request.

    make peers                          FastAPI and LitServe, in an environment of their own; optional
    python perf/bench_server.py         39 tables of 10^5 rows
    python perf/bench_server.py --seconds 2 --rounds 1        a look

DeepFM over dims of 1 to 16 (those of bench_scorer.py), int8 tables, one worker with one thread. The clients
run on the same machine and share its cores with the servers. The sides take turns in each round; ratios are
taken round by round, and the table has their medians. Then, for ham-dist alone: 1, 8 and 32 clients, the time
of an idle server without the model (by its own clock), and an open loop at 70 % of the closed-loop maximum.
"""

import argparse
import asyncio
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import orjson
import uvloop
from bench_scorer import FIELDS, dims, write, write_vocabulary
from load import Result, closed_loop, open_loop, request_of

HERE = Path(__file__).parent
PEERS = HERE.parent / ".venv-peers" / "bin" / "python"
OPEN_SHARE = 0.7


def requests(rows: int, count: int = 1000) -> list[bytes]:
    """Requests with the ids of one record each."""
    ids = np.random.default_rng(1).integers(rows, size=(count, FIELDS)).tolist()
    return [
        request_of(
            "/score", orjson.dumps({"ids": {name: [id] for name, id in zip(dims(), row, strict=True)}})
        )
        for row in ids
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}


@contextmanager
def started(words: Sequence[str | Path], port: int | None = None) -> Iterator[tuple[str, int]]:
    """A server's address, as soon as it answers; a port of None is read from its output."""
    process = subprocess.Popen(
        [str(word) for word in words],
        env=environment(),
        stdout=subprocess.PIPE if port is None else subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        if port is None:
            assert process.stdout is not None
            found = re.search(r":(\d+)", process.stdout.readline())
            assert found is not None, "the server has ended"
            port = int(found[1])
        address = "127.0.0.1", port
        wait_for(address, process)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        with suppress(ProcessLookupError):  # what LitServe leaves behind
            os.killpg(process.pid, signal.SIGKILL)
        if process.stdout is not None:
            process.stdout.close()


def wait_for(address: tuple[str, int], process: "subprocess.Popen[str]") -> None:
    """Waits until a server listens."""
    for _ in range(1200):
        assert process.poll() is None, "the server has ended"
        try:
            socket.create_connection(address).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{address}: nothing listens")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def serve(bundle: Path, *options: str) -> list[str | Path]:
    """The command of ham-dist's side."""
    return [sys.executable, "-m", "ham_dist", "serve", bundle, "--name", "bench", "--port", "0", *options]


def ask(address: tuple[str, int], asked: Sequence[bytes], clients: int, seconds: float) -> Result:
    limit = 10 * seconds + 60
    found = uvloop.run(asyncio.wait_for(closed_loop(address, asked, clients, seconds), limit))
    wrong = {status: count for status, count in found.statuses.items() if status != "200"}
    assert not wrong, f"{address}: answers other than 200: {wrong}"
    return found


def compare(sides: dict[str, tuple[str, int]], asked: Sequence[bytes], options: argparse.Namespace) -> None:
    """Requests a second of each side, and its ratio to ham-dist."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for address in sides.values():
        ask(address, asked, options.clients, 1.0)
    for _ in range(options.rounds):
        for name, address in sides.items():
            rates[name].append(ask(address, asked, options.clients, options.seconds).rate)
    print(f"\n| server, {options.clients} clients | requests/s | ham-dist is faster by |\n|---|---|---|")
    for name, found in rates.items():
        ratio = statistics.median(
            ours / theirs for ours, theirs in zip(rates["ham-dist"], found, strict=True)
        )
        print(f"| {name} | {statistics.median(found):,.0f} | {ratio:.1f} |")


def look_closer(address: tuple[str, int], asked: Sequence[bytes], options: argparse.Namespace) -> None:
    """Latency, overhead and batching of ham-dist."""
    print(
        "\n| ham-dist | requests/s | p50, ms | p99, ms | without the model, p50, ms |\n|---|---|---|---|---|"
    )
    best = 0.0
    for clients in (1, 8, 32):
        found = ask(address, asked, clients, options.seconds)
        best = max(best, found.rate)
        print(f"| closed loop, {clients} clients | {found.rate:,.0f} | {_times(found)} |")
    ratios = []
    for number in range(options.rounds):
        rate = OPEN_SHARE * best
        found = uvloop.run(open_loop(address, asked, rate, options.seconds, seed=number))
        ratios.append(found.quantile(0.99) / found.quantile(0.5))
        print(f"| open loop, {rate:,.0f}/s | {found.rate:,.0f} | {_times(found)} |")
    print(f"\np99 / p50 of the open loop, median of {options.rounds}: {statistics.median(ratios):.1f}")


def _times(found: Result) -> str:
    overhead = 1e3 * statistics.median(found.overheads)
    return f"{1e3 * found.quantile(0.5):.2f} | {1e3 * found.quantile(0.99):.2f} | {overhead:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000, help="rows of each table")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of a side in a round")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--runtime", default="auto", help="runtime of all sides")
    options = parser.parse_args()
    os.environ["HAM_DIST_RUNTIME"] = options.runtime
    asked = requests(options.rows)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        write_vocabulary(Path(name) / "vocabulary", 100)
        bundle = write(Path(name) / "int8", options.rows, "int8", Path(name) / "vocabulary")
        sides = {"ham-dist": stack.enter_context(started(serve(bundle)))}
        for peer in ("fastapi", "litserve") if PEERS.exists() else ():
            port = free_port()
            words = [PEERS, HERE / "peers" / f"serving_{peer}.py", bundle, str(port)]
            sides[peer] = stack.enter_context(started(words, port))
        if len(sides) == 1:
            print("FastAPI and LitServe are left out: `make peers` installs them.", file=sys.stderr)
        compare(sides, asked, options)
        look_closer(sides["ham-dist"], asked, options)


if __name__ == "__main__":
    main()
