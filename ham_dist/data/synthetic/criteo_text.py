"""Generates text in the format of Criteo's click logs.

Each line has a label, 13 integers and 26 hexadecimal values; tab-separated, no header, missing values empty.

It replaces the licensed logs for benchmarks of preparing data: it has the same number of values per field,
bytes per row and share of missing values. The relation between values and label is made up, so it is no
benchmark of models.
"""

import gzip
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from ham_dist.data.mixing import mix
from ham_dist.data.prepare.workdir import make_folder, work_on
from ham_dist.data.synthetic.zipf import Zipf
from ham_dist.errors import DataError
from ham_dist.io.atomic import new_file

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

# Rows drawn at once. Each chunk has its own random stream, so it can be generated without earlier chunks.
CHUNK = 50_000
# Share of clicks in Criteo's Kaggle training file: 25.6 % of 45,840,617 rows.
CLICKS = 0.256

# For each integer column: share of missing values, share of zeros among the others, and mean and standard
# deviation of ln(1 + z) over positive z. Measured on the first 8,000 rows of Criteo's Kaggle training file,
# rounded.
_INTEGERS = (
    (0.45, 0.48, 1.5, 0.9), (0.00, 0.20, 2.9, 2.0), (0.20, 0.01, 2.3, 1.3), (0.20, 0.07, 1.9, 0.9),
    (0.05, 0.02, 7.4, 2.7), (0.25, 0.06, 3.8, 1.6), (0.05, 0.25, 2.0, 1.2), (0.00, 0.12, 2.3, 1.0),
    (0.05, 0.03, 3.7, 1.6), (0.45, 0.51, 0.8, 0.2), (0.05, 0.27, 1.2, 0.6), (0.78, 0.74, 1.2, 0.7),
    (0.20, 0.06, 2.0, 1.0),
)  # fmt: skip
# Only the second integer column has negative numbers, in a tenth of its rows.
_NEGATIVE_COLUMN, _NEGATIVE = 1, 0.1

# Distinct values of each categorical column in Criteo's Kaggle training file, as counted by DLRM's
# preprocessing (facebookresearch/dlrm).
NUM_EMBEDDINGS = (
    1460, 583, 10_131_227, 2_202_608, 305, 24, 12_517, 633, 3, 93_145, 5683, 8_351_593, 3194,
    27, 14_992, 5_461_306, 10, 5652, 2173, 4, 7_046_547, 18, 15, 286_181, 105, 142_572,
)  # fmt: skip
# Share of missing values of each categorical column, measured on the same rows.
_MISSING = (
    0, 0, 0.03, 0.03, 0, 0.13, 0, 0, 0, 0, 0, 0.03, 0,
    0, 0, 0.03, 0, 0, 0.45, 0.45, 0.03, 0.82, 0, 0.03, 0.45, 0.45,
)  # fmt: skip
# Made up: the most frequent of 10 million values then has 8 % of the rows; Criteo's has 5 %.
_EXPONENT = 1.05
# Made up: a value of each of the first 8 columns changes the logit by at most 0.8, depending on its bits.
_COLUMNS_WITH_EFFECT, _EFFECT = 8, 0.8

# The two lower-case hexadecimal digits of each byte 0 .. 255, as one 16-bit number.
_DIGITS = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), dtype=np.uint16)
# Fast compression: the text is written once and read a few times.
_GZIP_LEVEL = 1


def criteo_chunk(seed: int, day: int, number: int, rows: int) -> pa.Table:
    """Generates one chunk of one day.

    The share of clicks is exactly CLICKS, up to rounding: the rows with the highest sum of a logit and
    logistic noise are clicks.

    Args:
        seed: Random seed.
        day: Number of the day.
        number: Number of the chunk.
        rows: Number of rows, at most CHUNK.
    Returns:
        label int8, I1 .. I13 int64 and C1 .. C26 strings; null if missing.
    """
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, day, number])))
    columns: dict[str, pa.Array] = {}
    for place, (missing, zero, mean, deviation) in enumerate(_INTEGERS):
        columns[f"I{place + 1}"] = _integers(
            random, rows, missing, zero, mean, deviation, _NEGATIVE if place == _NEGATIVE_COLUMN else 0
        )
    score = random.logistic(size=rows)
    for place, missing in enumerate(_MISSING):
        values = _zipf(place).draw(lambda places: random.random(len(places)), rows)
        # Columns have different values, as hashed ones do: each column hashes the same number differently.
        hashed = mix(values.astype(np.int64) + (place << 25))
        absent = random.random(rows) < missing
        columns[f"C{place + 1}"] = _hexadecimal(hashed, absent)
        if place < _COLUMNS_WITH_EFFECT:
            score += np.where(absent, 0, ((hashed & 0xFF) / 127.5 - 1) * _EFFECT)
    clicks = np.zeros(rows, dtype=np.int8)
    clicks[np.argsort(score, kind="stable")[rows - round(rows * CLICKS) :]] = 1
    return pa.table({"label": clicks} | columns)


def write_criteo_file(path: Path, rows: int, *, seed: int = 0, day: int = 0) -> None:
    """Writes `rows` rows to one file, gzipped if its name ends in .gz.

    Equal arguments give equal bytes. Memory does not grow with `rows`.

    Raises:
        DataError: `path` exists, or its folder cannot be created.
    """
    if path.exists():
        raise DataError(
            f"{path}: already exists; nothing was written\n  Choose a name that does not exist, or delete it."
        )
    options = pa.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    make_folder(path.parent)
    with new_file(path) as hidden, _open(hidden, gzipped=path.suffix == ".gz") as file:
        for number, first in enumerate(range(0, rows, CHUNK)):
            pa.csv.write_csv(criteo_chunk(seed, day, number, min(CHUNK, rows - first)), file, options)


def write_criteo_days(folder: Path, rows: int, days: int, *, seed: int = 0, gzipped: bool = False) -> None:
    """Writes `rows` rows to the files day_0, day_1, ... of the new folder `folder`, in nearly equal parts.

    Days finished by an earlier, interrupted call with the same arguments are kept.

    Args:
        folder: Output folder, which must not exist or be empty.
        rows: Rows of all days together.
        days: Number of files.
        seed: Random seed.
        gzipped: Compress the files and append .gz to their names.
    Raises:
        DataError: `folder` is not empty or cannot be created, or there are more days than rows.
    """
    if days > rows:
        raise DataError(f"{days} days with {rows} rows in total: each day needs at least one row")
    plan = {
        "what": "criteo-text",
        "rows": rows,
        "days": days,
        "seed": seed,
        "gzipped": gzipped,
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
    }
    with work_on(folder, plan) as work:
        for day in range(days):
            path = work.data / f"day_{day}{'.gz' if gzipped else ''}"
            if not path.exists():
                write_criteo_file(path, rows * (day + 1) // days - rows * day // days, seed=seed, day=day)
                log.info("%s: day %d of %d", folder, day + 1, days)


@cache
def _zipf(column: int) -> Zipf:
    return Zipf.over(NUM_EMBEDDINGS[column], _EXPONENT)


def _integers(
    random: np.random.Generator,
    rows: int,
    missing: float,
    zero: float,
    mean: float,
    deviation: float,
    negative: float,
) -> pa.Array:
    """Log-normal counts with extra zeros; a share `negative` is -1 or, a tenth as often, -2."""
    kind = random.random(rows)
    values = np.maximum(np.expm1(np.minimum(random.normal(mean, deviation, rows), 21.0)), 1.0).astype(
        np.int64
    )
    values[kind < negative + zero] = 0
    values[kind < negative] = -1
    values[kind < negative / 11] = -2
    return pa.array(values, mask=random.random(rows) < missing)


def _hexadecimal(values: Array, absent: Array) -> pa.Array:
    """Eight hexadecimal digits per value, made in one buffer without a Python object per value."""
    digits = _DIGITS[values.astype(">u4").view(np.uint8)]
    offsets = np.arange(0, 8 * len(values) + 1, 8, dtype=np.int32)
    validity = pa.array(~absent).buffers()[1]
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(digits), validity)


@contextmanager
def _open(path: Path, gzipped: bool) -> Iterator[Any]:
    with path.open("wb") as file:
        if not gzipped:
            yield file
            return
        # No time and no name in the header: equal rows give equal bytes.
        with gzip.GzipFile(
            filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=file, mtime=0
        ) as packed:
            yield packed
