"""Runs `ham-dist` as `python -m ham_dist`."""

from ham_dist.cli import main

if __name__ == "__main__":
    main()
