"""The trainer's entry point for torchrun and torchx.

    torchx run dist.ddp -j 1x8 ham_dist/train.py
    torchrun --nproc-per-node 2 -m ham_dist.train launch/runs/movielens_dcnv2.toml --set seed=1

The arguments are those of `ham-dist train`. The stages of a run are in ham_dist/run.py.
"""

if __name__ == "__main__":
    import sys

    from ham_dist.cli import train_command

    train_command(sys.argv[1:])
