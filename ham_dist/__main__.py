"""`python -m ham_dist` is `ham-dist`."""

from ham_dist.cli import main

if __name__ == "__main__":
    main()
