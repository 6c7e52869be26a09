"""The raw files that a recipe names: found, whole, and read into one table of samples."""

import hashlib
from pathlib import Path

import ibis

from ham_dist.data.engine import DuckDB
from ham_dist.data.expressions import ROW, joined
from ham_dist.data.manifest import RawFile
from ham_dist.data.recipe import Recipe
from ham_dist.errors import DataError


def find_raw(recipe: Recipe, raw: Path) -> dict[str, Path]:
    """The path of each file that `recipe` names, plain or gzipped, in the folder `raw`.

    raises: DataError that names every file that is not there.
    """
    if not raw.is_dir():
        what = "is a file" if raw.exists() else "no such folder"
        raise DataError(f"{raw}: {what}; give the folder that holds {_names(recipe)}\n  {recipe.name} comes from {recipe.source}")
    found = {}
    for name in (recipe.samples.file, *(join.file for join in recipe.joins)):
        candidates = [raw / name, raw / f"{name}.gz"]
        found[name] = next((path for path in candidates if path.is_file()), None)
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise DataError(f"{raw}: lacks {', '.join(missing)} (plain or with .gz behind the name)\n  {recipe.name} comes from {recipe.source}")
    return {name: path for name, path in found.items() if path is not None}


def _names(recipe: Recipe) -> str:
    return ", ".join([recipe.samples.file, *(join.file for join in recipe.joins)])


def stamp(path: Path) -> RawFile:
    """Name, size and sha256 of a raw file."""
    try:
        with path.open("rb") as file:
            return RawFile(file=path.name, bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def read_samples(engine: DuckDB, recipe: Recipe, files: dict[str, Path], with_label: bool) -> ibis.Table:
    """One row a sample in file order: its columns and those of its side files as strings, and ROW. `with_label` reads the label's column as float64.

    raises: DataError with file and line of what cannot be read.
    """
    types = dict.fromkeys(recipe.samples.columns, "string")
    if with_label:
        types[recipe.label.column] = "float64"
    path = files[recipe.samples.file]
    samples = engine.read_text(path, types, recipe.format)
    if with_label:
        _refuse_nan(samples, recipe, path)
    sides = []
    for join in recipe.joins:
        side = engine.read_text(files[join.file], dict.fromkeys(join.columns, "string"), recipe.format)
        _refuse_repeated(side, join.key, files[join.file])
        sides.append((join, side))
    return joined(samples, sides)


def _refuse_nan(samples: ibis.Table, recipe: Recipe, path: Path) -> None:
    first = samples.filter(samples[recipe.label.column].isnan())[ROW].min().to_pyarrow().as_py()
    if first is not None:
        raise DataError(f"{path}: sample {first + 1:,} (blank lines not counted): {recipe.label.column} is not a number")


def _refuse_repeated(side: ibis.Table, key: str, path: Path) -> None:
    """A key that is there twice would double its samples."""
    counts = (
        side.filter(side[key].notnull()).group_by(key).aggregate(count=lambda t: t.count(), first=lambda t: t[ROW].min(), last=lambda t: t[ROW].max())
    )
    rows = counts.filter(counts["count"] > 1).order_by("first").limit(1).to_pyarrow().to_pylist()
    if rows:
        row = rows[0]
        where = f"{row['first'] + 1:,} and {row['last'] + 1:,}"
        raise DataError(f"{path}: {key} {row[key]!r} is there {row['count']} times (rows {where}, blank lines not counted)\n  Keep one line a {key}.")
