"""Prepares raw files by a recipe: writes Parquet shards, vocabularies and manifest.json.

Rows are staged first (stage.py); one pass counts values (count.py), and one encodes rows (encoding.py).
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa

from ham_dist.data.engines.base import Engine, Machine
from ham_dist.data.engines.open import open_engine
from ham_dist.data.format.folder import already_there
from ham_dist.data.format.manifest import (
    FILE_NAME,
    FORMAT_VERSION,
    SPLITS,
    Manifest,
    RawFile,
    RejectedLines,
)
from ham_dist.data.format.shards import ROW_GROUP, write_shard
from ham_dist.data.prepare.count import Counting
from ham_dist.data.prepare.encoding import Encoding
from ham_dist.data.prepare.room import require_room, text_sizes
from ham_dist.data.prepare.stage import Segment, StagedSplit, Staging, rejected_lines
from ham_dist.data.prepare.workdir import Work, clear_leftovers, work_on
from ham_dist.data.raw.files import (
    FileState,
    Rejections,
    find_raw,
    name_in,
    refuse_binary,
    refuse_changed,
    stamp,
    state_of,
)
from ham_dist.data.raw.parse import REJECTED_SCHEMA, rejected_table
from ham_dist.data.raw.sides import read_side
from ham_dist.data.recipe.fields import Join
from ham_dist.data.recipe.load import Recipe
from ham_dist.errors import DataError
from ham_dist.io.hashing import sha256_of_json
from ham_dist.io.huge_pages import keep_freed_memory
from ham_dist.io.progress import progress

log = logging.getLogger(__name__)

# Increased whenever the same recipe and raw files give different bytes, so that partial output is not mixed.
_VERSION = 3


def prepare(
    recipe: Recipe,
    raw: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    rows_per_shard: int = 250_000,
    machine: Machine | None = None,
) -> Manifest:
    """Prepares the raw files in the folder `raw` and writes them into the new folder `out`.

    The same recipe, raw files, seed and rows_per_shard give the same shards and vocabularies on every
    machine. If `out` holds this data already, nothing is written. `out` appears only when it is complete. If
    the work is interrupted, finished parts are kept in a hidden folder next to `out`, and the same call
    resumes from them.

    Args:
        recipe: Describes the raw files and the fields.
        raw: Folder of the raw files.
        out: Output folder, which must not exist or be empty, or hold this data.
        seed: Seed of a random split.
        rows_per_shard: Rows of each shard except the last of a split.
        machine: Engine, threads and memory to use; None for the defaults.
    Returns:
        The manifest of `out`.
    Raises:
        DataError: Raw files cannot be read (the message names file and line), `out` is occupied, or there is
            too little disk space.
    """
    if rows_per_shard < 1:
        raise DataError(f"rows_per_shard = {rows_per_shard}; expected at least 1")
    keep_freed_memory()
    out, machine = Path(out), machine or Machine()
    files = find_raw(recipe, raw)
    planned = {
        "name": recipe.name,
        "recipe": _written(recipe),
        "settings": None,
        "seed": seed,
        "rows_per_shard": rows_per_shard,
    }
    if out.exists():
        entries = tuple(stamp(path, name_in(raw, path)) for path in files.values())
        there = already_there(out, _as_found(planned, out) | {"raw": entries})
        if there is not None:
            clear_leftovers(out)
            return there
    plan = [_VERSION, pa.__version__, planned, {name: path.name for name, path in files.items()}]
    with work_on(out, plan, machine.spill) as work:
        sizes = text_sizes(recipe, files)
        require_room(work, recipe, sizes)
        with open_engine(machine, work.spill) as engine:
            manifest = _Preparation(recipe, raw, files, work, engine, machine, seed, rows_per_shard).run(
                sizes, planned
            )
        work.keep_only(stored.file for stored in manifest.files())
        manifest.save(work.data)
    for reason, count in manifest.rejected.reasons.items():
        log.info("%s: %s lines rejected: %s; listed in %s", out, f"{count:,}", reason, out / "rejected")
    return manifest


def _written(recipe: Recipe) -> dict[str, Any]:
    """The recipe as stored in the manifest.

    Without `max_rejected`, which decides whether the work stops, not what it writes: a user may increase it.
    """
    return recipe.model_dump(mode="json", exclude={"max_rejected"})


def _as_found(planned: dict[str, Any], out: Path) -> dict[str, Any]:
    """`planned`, with the boundaries of the data in `out` for quantile fields whose recipe gives none."""
    if not (out / FILE_NAME).is_file():
        return planned
    there = (Manifest.load(out).recipe or {}).get("fields", {})
    fields = {
        name: {**field, "boundaries": there[name]["boundaries"]}
        if field.get("transform") == "quantile"
        and "boundaries" not in field
        and "boundaries" in there.get(name, {})
        else field
        for name, field in planned["recipe"]["fields"].items()
    }
    return planned | {"recipe": planned["recipe"] | {"fields": fields}}


@dataclass
class _Preparation:
    """One run from raw files to everything except the manifest's file. Each step skips finished parts."""

    recipe: Recipe
    raw: str | Path
    files: dict[str, Path]
    work: Work
    engine: Engine
    machine: Machine
    seed: int
    rows_per_shard: int

    def __post_init__(self) -> None:
        self._before: dict[Path, tuple[FileState, RawFile]] = {}

    def run(self, sizes: dict[str, tuple[float, float]], planned: dict[str, Any]) -> Manifest:
        raw = tuple(self._stamp(number, path) for number, path in enumerate(self.files.values()))
        side_rejections: list[Rejections] = []
        sides = list(self._sides(side_rejections))
        segments = self._stage(raw, sizes)
        rows_in = sum(segment.lines for segment in segments)
        rejected = sum((Counter(segment.rejected) for segment in segments), Counter())
        splits = {split: StagedSplit.of(self.work.stage, segments, split) for split in SPLITS}
        self._refuse_empty(splits, segments)
        raw_hash = sha256_of_json([one.model_dump() for one in raw])
        self.work.require("vocabulary", raw_hash)
        self.work.require("shards", raw_hash)
        counting = Counting(self.recipe, self.work, self.engine)
        entries = counting.count(splits["train"], sides)
        encoding = Encoding(self.recipe, self.work, self.engine, self.machine, self.rows_per_shard)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            fields=tuple(entries),
            splits=encoding.encode(splits, sides, entries, counting.fields),
            rows_in=rows_in,
            rows_dropped=sum(segment.dropped for segment in segments),
            engine=self.engine.versions | {"pyarrow": pa.__version__},
            truth=None,
            rejected=self._rejected(segments, rejected, side_rejections),
            row_group_rows=ROW_GROUP,
            checks=counting.checks,
            raw=raw,
            **planned | {"recipe": _written(self.recipe.model_copy(update={"fields": counting.fields}))},
        )
        rows_out = sum(split.rows for split in manifest.splits.values())
        if rows_in != rows_out + manifest.rows_dropped + manifest.rejected.samples:
            raise RuntimeError(
                f"{rows_in} rows in, {rows_out} out, {manifest.rows_dropped} dropped,"
                f" {manifest.rejected.samples} rejected"
            )
        return manifest

    def _refuse_empty(self, splits: Mapping[str, StagedSplit], segments: Sequence[Segment]) -> None:
        empty = sorted(split for split in SPLITS if not splits[split].rows)
        if not empty:
            return
        rows, dropped = sum(one.lines for one in segments), sum(one.dropped for one in segments)
        fix = "Add more samples"
        if dropped:
            fix += f", or change the recipe's label: {dropped:,} are neither positive nor negative"
        raise DataError(
            f"{self.files[self.recipe.samples.files[0]]}: has {rows:,} sample{'' if rows == 1 else 's'};"
            f" expected samples with a label in each split, but found none in {', '.join(empty)}\n  {fix}."
        )

    def _stamp(self, number: int, path: Path) -> RawFile:
        """Manifest entry of raw file `number`; the file is hashed again only if it has changed."""
        state, record = state_of(path), self.work.record(f"raw/{number:05d}")
        if record is None or record["state"] != state:
            entry = stamp(path, name_in(self.raw, path))
            self.work.done(f"raw/{number:05d}", {"state": state, "entry": entry.model_dump()})
        else:
            entry = RawFile(**record["entry"])
        self._before[path] = state, entry
        return entry

    def _refuse_changed(self, path: Path) -> None:
        """Raises DataError if a raw file has changed since it was hashed."""
        state, entry = self._before[path]
        refuse_changed(path, state, entry)

    def _sides(self, rejections: list[Rejections]) -> Iterator[tuple[Join, ibis.Table]]:
        columns = self.recipe.columns_of(self.recipe.fields)
        for number, join in enumerate(self.recipe.joins):
            path, store = self.files[join.file], self.work.stage / f"side-{number}.parquet"
            wanted = [column for column in join.columns if column in columns]
            rejections.append(Rejections(path, self.recipe.max_rejected))
            side = read_side(self.engine, path, join, wanted, self.recipe.format, store, rejections[-1])
            self._refuse_changed(path)
            yield join, side

    def _stage(self, raw: Sequence[RawFile], sizes: dict[str, tuple[float, float]]) -> list[Segment]:
        staging = Staging(self.work, self.recipe, self.seed, self.machine.threads, self.machine.memory)
        for path in self.files.values():
            refuse_binary(path)
        segments: list[Segment] = []
        rows_before = 0
        with progress("reading", sum(text for text, _ in sizes.values()), log.info) as step:
            for number, name in enumerate(self.recipe.samples.files):
                self.work.require(f"stage/{number:05d}", [raw[number].model_dump(), rows_before])
                rejections = Rejections(self.files[name], self.recipe.max_rejected)
                done = staging.stage(number, self.files[name], name, rows_before, rejections, step)
                self._refuse_changed(self.files[name])
                rows_before += done[-1].end.lines if done else 0
                segments += done
        return segments

    def _rejected(
        self, segments: Sequence[Segment], rejected: Counter[str], side_rejections: Sequence[Rejections]
    ) -> RejectedLines:
        reasons = sum((one.counts for one in side_rejections), rejected)
        stored = None
        if reasons:
            sides = (rejected_table(name_in(self.raw, one.path), one.kept) for one in side_rejections)
            lines = chain(sides, rejected_lines(self.work.stage, segments))
            stored, _ = write_shard(self.work.data, "rejected/lines.parquet", lines, REJECTED_SCHEMA)
        return RejectedLines(samples=rejected.total(), reasons=dict(sorted(reasons.items())), stored=stored)
