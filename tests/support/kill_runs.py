"""Kills the ranks of runs (SIGKILL) at random moments, restarts them to the end, and compares the results.

    python -m tests.support.kill_runs --times 100

Each start has one to three ranks, and one or all of them are killed after a random number of training steps
and a random time after that, so that the kill happens in any part of any stage: steps, evaluation,
checkpoints, slicing, export. Model and metrics must equal those of an undisturbed run to the last bit (with
float64 they do not depend on the number of ranks). Ranks are forked from this process, which has imported
everything and done nothing.
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
"""Time limit for the surviving ranks to notice, and for a whole start to finish."""


@dataclass(frozen=True)
class Kill:
    """A kill of some ranks.

    Attributes:
        steps: Training steps of the start before it.
        seconds: Delay after those steps.
        victims: The ranks that are killed.
    """

    steps: int
    seconds: float
    victims: frozenset[int]


def kill_runs(times: int, seed: int, folder: Path) -> int:
    """Kills runs `times` times in total, and returns the number of runs.

    Raises:
        AssertionError: The result of a run differs from the undisturbed one.
    """
    draw, settings = random.Random(seed), tiny_run(precision=FLOAT64)
    _start(settings, folder / "unbroken", 1, None)
    killed = runs = 0
    while killed < times:
        run, begun = folder / f"run-{runs}", time.monotonic()
        kills = 0
        while not (run / "result.json").exists():
            ranks = draw.randint(1, 3)
            wanted = kills < KILLS_OF_A_RUN and killed < times
            victims = frozenset(range(ranks)) if draw.random() < 0.4 else frozenset({draw.randrange(ranks)})
            kill = Kill(draw.randrange(TINY_STEPS // 2), draw.random() * 0.2, victims)
            if _start(settings, run, ranks, kill if wanted else None):
                kills, killed = kills + 1, killed + 1
        assert_same_bits(run, folder / "unbroken")
        runs += 1
        print(
            f"run {runs}: killed {kills} times, the same to the last bit; "
            f"{killed} of {times} kills, {time.monotonic() - begun:.1f} s",
            flush=True,
        )
    return runs


def _start(settings: RunSettings, run: Path, ranks: int, kill: Kill | None) -> bool:
    """Starts the ranks and waits for their end; returns true if some were killed."""
    port = _free_port()
    children = [_fork(settings, run, rank, ranks, port, kill) for rank in range(ranks)]
    deadline, codes = time.monotonic() + SECONDS_TO_END, dict[int, int]()
    while len(codes) < ranks:
        for child in set(children) - codes.keys():
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                codes[child] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            for child in set(children) - codes.keys():
                os.kill(child, signal.SIGKILL)
            raise AssertionError(f"{len(codes)} of {ranks} ranks ended within {SECONDS_TO_END} s; {kill}")
        time.sleep(0.02)
    killed = -signal.SIGKILL in codes.values()
    assert killed or not any(codes.values()), f"exit codes {sorted(codes.values())}, and nobody was killed"
    return killed


def _fork(settings: RunSettings, run: Path, rank: int, ranks: int, port: int, kill: Kill | None) -> int:
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
        if kill is not None and rank in kill.victims:
            _expect(kill)
        run_stages(settings, run, resume=True)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _expect(kill: Kill) -> None:
    """Have this process killed after its number of steps."""
    finish_step, done = Guard.finish_step, 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def finish_and_count(self: Guard, samples: int) -> None:
        nonlocal done
        done += 1
        if done == kill.steps:
            threading.Timer(kill.seconds, die).start()
        finish_step(self, samples)

    if kill.steps == 0:
        threading.Timer(kill.seconds, die).start()
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
