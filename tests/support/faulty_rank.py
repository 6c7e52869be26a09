"""Runs `ham-dist train ARGUMENTS` on a rank that may fail.

    python -m tests.support.faulty_rank FAULT RANK STEPS ARGUMENTS

After STEPS training steps of its first start, rank RANK is killed (FAULT `killed`) or stops answering
(`hung`).
"""

import os
import signal
import sys

from ham_dist.cli import train_command
from ham_dist.training.guard import Guard

SIGNALS = {"killed": signal.SIGKILL, "hung": signal.SIGSTOP}


def main() -> None:
    """Patches the step of all stages, and trains."""
    fault, rank, steps, *arguments = sys.argv[1:]
    finish_step, done = Guard.finish_step, 0

    def finish_or_fail(self: Guard, samples: int) -> None:
        nonlocal done
        done += 1
        if done == int(steps):
            os.kill(os.getpid(), SIGNALS[fault])
        finish_step(self, samples)

    if os.environ["RANK"] == rank and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        Guard.finish_step = finish_or_fail  # type: ignore[method-assign]
    train_command(arguments)


if __name__ == "__main__":
    main()
