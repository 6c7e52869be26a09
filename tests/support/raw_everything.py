"""Raw files and a recipe with every kind of field, and their ids in plain Python."""

import csv
import datetime
import gzip
import hashlib
import io
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ham_dist.data.recipe.load import Recipe, parse_recipe

DAYS = ("day_0", "day_1", "day_2")
COLUMNS = ("id", "click", "hour", "price", "site", "city", "tags", "user", "device")
HASH_ROWS, MOST_SITES, MIN_COUNT = 50, 8, 2

SETTINGS: dict[str, Any] = {
    "name": "everything",
    "source": "tests",
    "min_count": MIN_COUNT,
    "format": {"separator": ",", "header": True, "quote": '"', "null": ["NULL"]},
    "samples": {"file": list(DAYS), "columns": list(COLUMNS)},
    "joins": [{"file": "users", "key": "user", "columns": ["user", "country", "joined"]}],
    "label": {"column": "click", "positive_above": 0.5, "negative_below": 0.5},
    "fields": {
        "hour": {"kind": "time", "layout": "YYMMDDHH", "part": "hour"},
        "weekday": {"kind": "time", "column": "hour", "layout": "YYMMDDHH", "part": "weekday"},
        "price": {"kind": "numeric"},
        "site": {"kind": "categorical", "max_rows": MOST_SITES},
        "city": {"kind": "categorical", "missing": "own"},
        "tags": {"kind": "multi_valued", "separator": "|"},
        "country": {"kind": "categorical", "min_count": 1},
        "device": {"kind": "categorical", "hash": True, "max_rows": HASH_ROWS},
    },
    "ignored": {"id": "one a sample", "user": "a key only", "joined": "not used"},
}


def everything(**changes: Any) -> Recipe:
    """The recipe, with other settings at its top where `changes` has them."""
    return parse_recipe(SETTINGS | changes, where="tests")


def write_everything(folder: Path, rows: int = 300, seed: int = 0) -> Path:
    """Write the three days, the second one gzipped, and the side file into `folder`."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    users = [[f"u{user}", ["DE", "FR", "São Tomé", ""][user % 4], "x"] for user in range(20)]
    (folder / "users").write_text(_csv([["user", "country", "joined"], *users]), encoding="utf-8")
    for number, day in enumerate(DAYS):
        lines = [list(COLUMNS)]
        for row in range(rows):
            date = datetime.datetime(2014, 2, 27 + number % 2, int(random.integers(24))) + datetime.timedelta(
                days=int(random.integers(4))
            )
            price = random.choice(
                [
                    "",
                    "NULL",
                    "0",
                    "-3.5",
                    "1.99",
                    "2",
                    "3",
                    "2.0001",
                    f"{random.lognormal(3, 2):.3f}",
                    f"{random.integers(10**6)}",
                ]
            )
            tags = "|".join(
                random.choice(["new", "sale", "a,b", 'say "x"', "ärger"], size=random.integers(4))
            )
            site = f"s{int(random.pareto(1) * 3) % 30}"
            city = random.choice(["", "Köln", "Paris, Texas", "x\u2028y"])
            cells = [
                f"{number}-{row}",
                random.choice(["0", "1"]),
                date.strftime("%y%m%d%H"),
                price,
                site,
                city,
                tags,
            ]
            lines.append(
                [*cells, f"u{random.integers(22)}", random.choice(["", *(f"d{n}" for n in range(90))])]
            )
        data = _csv(lines).encode()
        (folder / (f"{day}.gz" if number == 1 else day)).write_bytes(
            gzip.compress(data, mtime=0) if number == 1 else data
        )
    return folder


def _csv(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_everything(folder: Path) -> list[dict[str, str]]:
    """Every sample with the columns of its side file, in order of the days."""
    users = {
        row["user"]: row
        for row in csv.DictReader(io.StringIO((folder / "users").read_text(encoding="utf-8")))
    }
    samples = []
    for day in DAYS:
        path = folder / day
        data = path.read_bytes() if path.exists() else gzip.decompress((folder / f"{day}.gz").read_bytes())
        for row in csv.DictReader(io.StringIO(data.decode())):
            samples.append(users.get(row["user"], {}) | row)
    return samples


def value(field: str, sample: dict[str, str]) -> Any:
    """The value of a field for a sample: text, None, or a list."""
    match field:
        case "hour":
            return sample["hour"][6:]
        case "weekday":
            return str(datetime.datetime.strptime(sample["hour"], "%y%m%d%H").weekday())
        case "price":
            if sample["price"] in ("", "NULL"):
                return "missing"
            z = float(sample["price"])
            return str(math.floor(math.log(z) ** 2) if z > 2 else int(z) - 2)
        case "tags":
            return [tag for tag in sample["tags"].split("|") if tag]
        case "city":
            return sample["city"] or "missing"
        case _:
            return sample.get(field) or None


def vocabulary(field: str, train: list[dict[str, str]]) -> dict[str, int]:
    """Value to id."""
    counts: Counter[str] = Counter()
    for sample in train:
        found = value(field, sample)
        counts.update(found if isinstance(found, list) else [] if found is None else [found])
    least = 1 if field == "country" else MIN_COUNT
    ordered = sorted(
        (one for one in counts if counts[one] >= least), key=lambda one: (-counts[one], one.encode())
    )
    return {
        one: place + 1 for place, one in enumerate(ordered[: MOST_SITES - 1] if field == "site" else ordered)
    }


def ids(field: str, sample: dict[str, str], known: dict[str, int]) -> Any:
    """The ids of a field of a sample."""
    found = value(field, sample)
    if field == "device":
        return (
            0 if found is None else int(hashlib.md5(found.encode()).hexdigest()[:8], 16) % (HASH_ROWS - 1) + 1
        )
    if isinstance(found, list):
        return [known.get(one, 0) for one in found] or [0]
    return known.get(found, 0)
