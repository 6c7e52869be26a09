"""The trainer's door, for torchrun and torchx:

    torchx run dist.ddp -j 1x8 ham_dist/train.py
    torchrun --nproc-per-node 2 -m ham_dist.train launch/runs/movielens_dcnv2.toml --set seed=1

`ham-dist train` takes the same arguments on one process. What a run does stands in ham_dist/run.py.
"""

from pathlib import Path

from ham_dist.backend import require_backend
from ham_dist.config.schema import RunSettings


def run(settings: RunSettings, run_dir: Path | None, resume: bool) -> None:
    """Do a whole run: pretrain, and for each target search, slice, retrain and export.

    run_dir: its folder; None makes one under runs/.
    resume:  go on from the newest checkpoint in `run_dir`.
    raises:  HamError for what the user can mend.
    """
    require_backend()
    from ham_dist.run import run_stages  # after the check, since it imports torchrec

    run_stages(settings, run_dir, resume=resume)


if __name__ == "__main__":
    import sys

    from ham_dist.cli import train_command

    train_command(sys.argv[1:])
