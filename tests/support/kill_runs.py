"""Runs whose ranks are killed (SIGKILL) at random moments and started again until they are done, held against the run that nobody touched.

    python -m tests.support.kill_runs --times 100

Each start has one to three ranks, and one of them or all are killed after a random number of training steps and a random part of the time after
that, so that the blow falls into any part of any stage: steps, evaluation, checkpoints, slicing, export. Model and metrics must come out the same to
the last bit (float64 makes the number of ranks no matter). Ranks are forked from this process, which has imported everything and done nothing.
"""

import argparse
import os
import random
import signal
import socket
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from ham_dist.config.schema import RunSettings
from ham_dist.run import run_stages
from ham_dist.training.guard import Guard
from tests.support.small_run import TINY_STEPS, tiny_run
from tests.support.whole_runs import FLOAT64, assert_same_bits

KILLS_OF_A_RUN = 3
SECONDS_TO_END = 600.0
"""How long the ranks that were spared may take to notice, and a whole start to be done."""


@dataclass(frozen=True)
class Blow:
    """steps: training steps after which the victims are killed; seconds: and how long after that."""

    steps: int
    seconds: float
    victims: frozenset[int]


def kill_runs(times: int, seed: int, folder: Path) -> int:
    """Kill runs `times` times in all; gives the number of runs that took.

    raises: AssertionError if one does not come out as the unbroken one.
    """
    draw, settings = random.Random(seed), tiny_run(precision=FLOAT64)
    _start(settings, folder / "unbroken", 1, None)
    killed = runs = 0
    while killed < times:
        run, begun = folder / f"run-{runs}", time.monotonic()
        blows = 0
        while not (run / "result.json").exists():
            ranks = draw.randint(1, 3)
            wanted = blows < KILLS_OF_A_RUN and killed < times
            victims = frozenset(range(ranks)) if draw.random() < 0.4 else frozenset({draw.randrange(ranks)})
            blow = Blow(draw.randrange(TINY_STEPS // 2), draw.random() * 0.2, victims)
            if _start(settings, run, ranks, blow if wanted else None):
                blows, killed = blows + 1, killed + 1
        assert_same_bits(run, folder / "unbroken")
        runs += 1
        print(
            f"run {runs}: killed {blows} times, the same to the last bit; {killed} of {times} kills, {time.monotonic() - begun:.1f} s",
            flush=True,
        )
    return runs


def _start(settings: RunSettings, run: Path, ranks: int, blow: Blow | None) -> bool:
    """Start the ranks and wait for their end; gives whether some were killed."""
    port = _free_port()
    children = [_fork(settings, run, rank, ranks, port, blow) for rank in range(ranks)]
    deadline, codes = time.monotonic() + SECONDS_TO_END, dict[int, int]()
    while len(codes) < ranks:
        for child in set(children) - codes.keys():
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                codes[child] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            for child in set(children) - codes.keys():
                os.kill(child, signal.SIGKILL)
            raise AssertionError(f"{len(codes)} of {ranks} ranks ended within {SECONDS_TO_END} s; {blow}")
        time.sleep(0.02)
    killed = -signal.SIGKILL in codes.values()
    assert killed or not any(codes.values()), f"exit codes {sorted(codes.values())}, and nobody was killed"
    return killed


def _fork(settings: RunSettings, run: Path, rank: int, ranks: int, port: int, blow: Blow | None) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
        }
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        quiet = os.open(run.with_name(f"{run.name}-rank-{rank}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if blow is not None and rank in blow.victims:
            _expect(blow)
        run_stages(settings, run, resume=True)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _expect(blow: Blow) -> None:
    """Have this process killed after its number of steps."""
    finish_step, done = Guard.finish_step, 0

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def finish_and_count(self: Guard, samples: int) -> None:
        nonlocal done
        done += 1
        if done == blow.steps:
            threading.Timer(blow.seconds, kill).start()
        finish_step(self, samples)

    if blow.steps == 0:
        threading.Timer(blow.seconds, kill).start()
    Guard.finish_step = finish_and_count  # type: ignore[method-assign]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port: int = listener.getsockname()[1]
    return port


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=100, help="kills in all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the victims")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-runs-") as folder:
        runs = kill_runs(arguments.times, arguments.seed, Path(folder))
    print(f"{arguments.times} kills over {runs} runs, all the same to the last bit")


if __name__ == "__main__":
    main()
