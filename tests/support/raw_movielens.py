"""A small MovieLens in the raw format of the real one (three files, `::`, latin-1); deterministic."""

import gzip
from collections.abc import Iterable
from pathlib import Path

import numpy as np

GENRES = ("Action", "Children's", "Comedy", "Drama", "Film-Noir", "Sci-Fi")
AGES = (1, 18, 25, 35, 45, 50, 56)
USERS, MOVIES = 60, 60


def write_raw_movielens(folder: Path, ratings: int = 3000, seed: int = 0, zipped: bool = False) -> Path:
    """Writes ratings.dat, users.dat and movies.dat (`zipped`: as .gz) into `folder`, and returns `folder`.

    As in the real files, movie numbers have gaps, some movies have no rating, zip codes repeat, and one title
    is not ASCII. Thirty movies are rated once, so that validation and test hold values that training never
    saw.
    """
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    genders, ages, jobs, zips = (
        random.choice(["F", "M"], USERS),
        random.choice(AGES, USERS),
        random.integers(21, size=USERS),
        random.integers(20, size=USERS),
    )
    users = [
        f"{user + 1}::{genders[user]}::{ages[user]}::{jobs[user]}::{48000 + zips[user]}"
        for user in range(USERS)
    ]
    numbers = [3 * movie + 1 for movie in range(MOVIES)]
    movies = [
        f"{number}::{_title(number)}::{'|'.join(random.permutation(GENRES)[: random.integers(1, 4)])}"
        for number in numbers
    ]
    # Of the last 35 movies thirty have one rating each and five none.
    rated = random.choice(numbers[:25], size=ratings - 30).tolist() + numbers[25:55]
    lines = [
        f"{random.integers(1, USERS + 1)}::{movie}::{rating}::{978300000 + line}"
        for line, (movie, rating) in enumerate(
            zip(rated, random.choice([1, 2, 3, 4, 5], size=ratings), strict=True)
        )
    ]
    for name, text in (("users.dat", users), ("movies.dat", movies), ("ratings.dat", lines)):
        write_lines(folder / (f"{name}.gz" if zipped else name), text)
    return folder


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write `lines` as latin-1, gzipped where the name ends in .gz."""
    text = "".join(line + "\n" for line in lines).encode("latin-1")
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


def read_lines(path: Path) -> list[list[str]]:
    """The lines of one of the three files, cut at `::`."""
    return [line.split("::") for line in path.read_bytes().decode("latin-1").splitlines()]


def _title(number: int) -> str:
    return "Misérables, Les (1995)" if number == 4 else f'"Title" {number}, The (1999)'
