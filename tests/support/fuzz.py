"""Damaged and hostile files: one valid set of all files that ham_dist reads, and code that reads each part.

Input `number` of a seed is always the same. A reader may succeed or raise a HamError; anything else is a
fault.
"""

import io
import logging
import random
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ham_dist.cli.describe import describe
from ham_dist.config.load import load_saved_run
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.reader.split import open_split
from ham_dist.data.recipe.load import load_recipe
from ham_dist.data.statistics import compute_statistics
from ham_dist.distributed.checkpoint.index import IndexedReader
from ham_dist.distributed.checkpoint.storage import values_of
from ham_dist.embedding.table_size import read_sizes
from ham_dist.errors import HamError
from ham_dist.export.scorer import score
from ham_dist.io.console import print_parts
from ham_dist.report.record import read_runs
from tests.support.earlier_version import unpack
from tests.support.mutations import mutate
from tests.support.raw_movielens import write_raw_movielens

SECONDS = 60
"""Limit of a reader's processor time for one input; a valid one takes less than a second."""
SECONDS_ASLEEP = 600
"""Limit for a reader that waits for something, in seconds of the clock, which also run on a busy machine."""


def make_valid(folder: Path) -> Path:
    """Write the valid set: data, a finished run with its bundle, raw files and a recipe."""
    unpack(folder)
    for name in ("unfinished", "scores.txt"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.move(folder / "finished", folder / "run")
    shutil.move(folder / "run" / "bundle", folder / "bundle")
    write_raw_movielens(folder / "raw", ratings=150)
    recipe = Path(__file__).parents[2] / "datasets" / "movielens-1m.toml"
    shutil.copyfile(recipe, folder / "recipe.toml")
    split = folder / "data" / "test" / "part-00000.parquet"
    pq.write_table(pq.read_table(split, partitioning=None).slice(0, 5), folder / "ids.parquet")
    fields = ("user", "movie", "gender", "age", "occupation", "zip", "genres")
    values = (("1", "4", "F", "25", "3", "48001", "Comedy|Drama"), ("9", "7", "M", None, "x", "", ""))
    records = [dict(zip(fields, row, strict=True)) for row in values]
    pq.write_table(pa.Table.from_pylist(records), folder / "records.parquet")
    return folder


def read_bundle(folder: Path) -> None:
    print_parts(describe(folder / "bundle"))
    score(folder / "bundle", folder / "ids.parquet", folder / "scores.txt", values="ids")


def read_vocabulary(folder: Path) -> None:
    score(folder / "bundle", folder / "records.parquet", folder / "scores.txt", values="raw")


def read_data(folder: Path) -> None:
    print_parts(describe(folder / "data"))
    manifest = Manifest.load(folder / "data")
    manifest.check(folder / "data", deep=True)
    for split in manifest.splits:
        open_split(folder / "data", manifest, split).take(3)


def look_at_data(folder: Path) -> None:
    compute_statistics(folder / "data", Manifest.load(folder / "data"), 4)


def read_run(folder: Path) -> None:
    read_runs([str(folder / "run")])
    print_parts(describe(folder / "run"))
    load_saved_run(folder / "run" / "run.toml")


def read_sizes_of_run(folder: Path) -> None:
    read_sizes(folder / "run" / "sizes.json")


def read_checkpoints(folder: Path) -> None:
    for path in sorted((folder / "run" / "checkpoints").glob("*/*")):
        values_of(path)
        IndexedReader(path).read_metadata()


def read_recipe(folder: Path) -> None:
    load_recipe(str(folder / "recipe.toml"))


def read_raw(folder: Path) -> None:
    prepare(load_recipe(str(folder / "recipe.toml")), folder / "raw", folder / "out")


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        needs: Names of the parts of the valid set that are copied.
        files: Returns the files that may be damaged.
        read: Reads the files as a command does.
        share: Number of inputs of this kind among 1,000.
    """

    name: str
    needs: tuple[str, ...]
    files: Callable[[Path], list[Path]]
    read: Callable[[Path], None]
    share: int


def _under(*patterns: str) -> Callable[[Path], list[Path]]:
    return lambda folder: sorted(
        path for pattern in patterns for path in folder.glob(pattern) if path.is_file()
    )


KINDS = (
    Kind("bundle manifest", ("bundle", "ids.parquet"), _under("bundle/manifest.json"), read_bundle, 250),
    Kind(
        "bundle files",
        ("bundle", "ids.parquet"),
        _under("bundle/*.safetensors", "bundle/*/**/*"),
        read_bundle,
        130,
    ),
    Kind(
        "vocabulary",
        ("bundle", "records.parquet"),
        _under("bundle/vocabulary/*", "records.parquet"),
        read_vocabulary,
        10,
    ),
    Kind("data manifest", ("data",), _under("data/manifest.json"), read_data, 170),
    Kind("data files", ("data",), _under("data/*/*.parquet"), read_data, 100),
    Kind("data to look at", ("data",), _under("data/train/*.parquet", "data/manifest.json"), look_at_data, 8),
    Kind("run", ("run",), _under("run/*.json", "run/*.jsonl", "run/run.toml"), read_run, 160),
    Kind("sizes", ("run",), _under("run/sizes.json"), read_sizes_of_run, 40),
    Kind("checkpoints", ("run",), _under("run/checkpoints/*/*/*.json"), read_checkpoints, 50),
    Kind("recipe", ("recipe.toml",), _under("recipe.toml"), read_recipe, 80),
    Kind("raw", ("raw", "recipe.toml"), _under("raw/*"), read_raw, 6),
    Kind("recipe and raw", ("raw", "recipe.toml"), _under("recipe.toml"), read_raw, 6),
)


class Hung(BaseException):
    """A reader took longer than `SECONDS` or `SECONDS_ASLEEP`."""


@contextmanager
def limited() -> Iterator[None]:
    """Raises Hung in the block after `SECONDS` or `SECONDS_ASLEEP`."""

    def ring(number: int, _: object) -> None:
        raise Hung("too much processor time" if number == signal.SIGPROF else "waited too long")

    before = {number: signal.signal(number, ring) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(SECONDS_ASLEEP)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def check(valid: Path, work: Path, seed: str, number: int) -> str | None:
    """Reads input `number` of `seed`, made in the empty folder `work` from `valid`.

    Returns:
        The traceback of a fault, or None.
    """
    draw = random.Random(f"{seed}-{number}")
    kind = draw.choices(KINDS, [kind.share for kind in KINDS])[0]
    return check_kind(valid, work, kind, draw)


def check_kind(valid: Path, work: Path, kind: Kind, draw: random.Random) -> str | None:
    """Like `check`, with an input of one kind."""
    copy_needed(valid, work, kind)
    done = mutate(work, kind.files(work), draw)
    logging.disable(logging.CRITICAL)
    try:
        with limited(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            kind.read(work)
    except HamError:
        return None
    except (Exception, Hung):
        return f"{kind.name}, {done[:300]}\n{traceback.format_exc()}"
    finally:
        logging.disable(logging.NOTSET)
    return None


def copy_needed(valid: Path, work: Path, kind: Kind) -> None:
    """Copy what `kind` needs of the valid set into the empty folder `work`."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    for name in kind.needs:
        if (valid / name).is_dir():
            shutil.copytree(valid / name, work / name, ignore=shutil.ignore_patterns("*.distcp"))
        else:
            shutil.copyfile(valid / name, work / name)
