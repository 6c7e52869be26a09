"""Raw files -> Parquet shards, vocabularies and manifest.json, as a recipe says: staging, then a pass that counts and a pass that encodes."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa

from ham_dist.data.encode.encoder import Encoder
from ham_dist.data.encode.expressions import Sides
from ham_dist.data.engines.base import Engine, Machine
from ham_dist.data.engines.open import open_engine
from ham_dist.data.format.folder import already_there
from ham_dist.data.format.manifest import (
    FILE_NAME,
    FORMAT_VERSION,
    SPLITS,
    DataField,
    Manifest,
    RawFile,
    RejectedLines,
    SplitEntry,
    StoredFile,
)
from ham_dist.data.format.shards import (
    LABEL,
    ROW_GROUP,
    shard_name,
    split_schema,
    write_shard,
)
from ham_dist.data.prepare.count import Counting, is_hashed
from ham_dist.data.prepare.room import require_room, text_sizes
from ham_dist.data.prepare.stage import STAGED_LABEL, Segment, StagedSplit, Staging, rejected_lines
from ham_dist.data.prepare.workdir import Work, clear_leftovers, work_on
from ham_dist.data.raw.files import (
    FileState,
    Rejections,
    find_raw,
    name_in,
    read_side,
    refuse_binary,
    refuse_changed,
    stamp,
    state_of,
)
from ham_dist.data.raw.parse import REJECTED_SCHEMA, rejected_table
from ham_dist.data.recipe.fields import AnyField, Join
from ham_dist.data.recipe.load import Recipe
from ham_dist.errors import DataError
from ham_dist.io.hashing import sha256_of_json
from ham_dist.io.huge_pages import keep_freed_memory
from ham_dist.io.progress import progress

log = logging.getLogger(__name__)

# Raised whenever the same recipe and raw files give other bytes than before, so that pieces of before are not mixed in.
_VERSION = 3
# Rows of a query where the vocabularies are small: enough for its fixed cost (some milliseconds a field) not to matter.
_ROWS_TOGETHER = 1_000_000
# Ids of one query under way, as a share of the memory.
_IDS_SHARE = 0.1


def prepare(
    recipe: Recipe,
    raw: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    rows_per_shard: int = 250_000,
    machine: Machine | None = None,
) -> Manifest:
    """Write the raw files in the folder `raw` as prepared data into the new folder `out`, and give its manifest.

    The same recipe, raw files, seed and rows_per_shard give the same shards and vocabularies, whatever the machine. Where `out` holds that already it
    is left alone. `out` is there whole or not at all; what is finished when the work stops is kept beside it, and the same call goes on from there.
    raises: DataError naming file and line of what cannot be read, the folder that is in the way, or the room on disk that is missing.
    """
    if rows_per_shard < 1:
        raise DataError(f"rows_per_shard = {rows_per_shard}: must be at least 1")
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
        log.info("%s: %s lines rejected: %s; they stand in %s", out, f"{count:,}", reason, out / "rejected")
    return manifest


def _written(recipe: Recipe) -> dict[str, Any]:
    """A recipe as manifests have it. `max_rejected` decides whether the work stops, not what it writes: a user may raise it."""
    return recipe.model_dump(mode="json", exclude={"max_rejected"})


def _as_found(planned: dict[str, Any], out: Path) -> dict[str, Any]:
    """`planned` with the boundaries that the data in `out` was cut at, where the recipe leaves them to prepare."""
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
    """One run from raw files to all but the manifest's file; each step leaves alone what is finished."""

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
        of_sides: list[Rejections] = []
        sides = list(self._sides(of_sides))
        segments = self._stage(raw, sizes)
        rows_in = sum(segment.lines for segment in segments)
        rejected = sum((Counter(segment.rejected) for segment in segments), Counter())
        splits = {split: StagedSplit.of(self.work.stage, segments, split) for split in SPLITS}
        self._refuse_empty(splits, segments)
        whole = sha256_of_json([one.model_dump() for one in raw])
        self.work.require("vocabulary", whole)
        self.work.require("shards", whole)
        counting = Counting(self.recipe, self.work, self.engine)
        entries = counting.count(splits["train"], sides)
        entry = self._encode(splits, sides, entries, counting.fields)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            fields=tuple(entries),
            splits=entry,
            rows_in=rows_in,
            rows_dropped=sum(segment.dropped for segment in segments),
            engine=self.engine.versions | {"pyarrow": pa.__version__},
            truth=None,
            rejected=self._rejected(segments, rejected, of_sides),
            row_group_rows=ROW_GROUP,
            checks=counting.checks,
            raw=raw,
            **planned | {"recipe": _written(self.recipe.model_copy(update={"fields": counting.fields}))},
        )
        rows_out = sum(split.rows for split in manifest.splits.values())
        if rows_in != rows_out + manifest.rows_dropped + manifest.rejected.samples:
            raise RuntimeError(
                f"{rows_in} rows in, {rows_out} out, {manifest.rows_dropped} dropped, {manifest.rejected.samples} rejected"
            )
        return manifest

    def _refuse_empty(self, splits: Mapping[str, StagedSplit], segments: Sequence[Segment]) -> None:
        empty = sorted(split for split in SPLITS if not splits[split].rows)
        if not empty:
            return
        rows, dropped = sum(one.lines for one in segments), sum(one.dropped for one in segments)
        where = (
            f"{self.files[self.recipe.samples.files[0]]}: of its {rows:,} sample{'' if rows == 1 else 's'}"
        )
        way_out = "Give more samples"
        if dropped:
            way_out += f", or change the recipe's label: {dropped:,} are neither positive nor negative"
        raise DataError(f"{where} none that has a label falls into {', '.join(empty)}\n  {way_out}.")

    def _stamp(self, number: int, path: Path) -> RawFile:
        """The entry of raw file `number`, worked out once for as long as the file stays as it is."""
        state, record = state_of(path), self.work.record(f"raw/{number:05d}")
        if record is None or record["state"] != state:
            entry = stamp(path, name_in(self.raw, path))
            self.work.done(f"raw/{number:05d}", {"state": state, "entry": entry.model_dump()})
        else:
            entry = RawFile(**record["entry"])
        self._before[path] = state, entry
        return entry

    def _refuse_changed(self, path: Path) -> None:
        """Raises DataError if a raw file is not the one that was hashed."""
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

    def _encode(
        self,
        splits: dict[str, StagedSplit],
        sides: Sides,
        entries: Sequence[DataField],
        fields: Mapping[str, AnyField],
    ) -> dict[str, SplitEntry]:
        """Every shard, written."""
        parts = [
            (split, number)
            for split in SPLITS
            for number in range(-(-splits[split].rows // self.rows_per_shard))
        ]
        encoder = self._encoder({e.name: self.work.data / e.vocabulary.file for e in entries}, sides, fields)
        schema = split_schema({entry.name: entry.multi_valued for entry in entries})
        together = self._shards_together(entries)
        with (
            progress("encoding", sum(staged.rows for staged in splits.values()), log.info) as step,
            ThreadPoolExecutor(1) as pool,
        ):
            writing: Future[None] | None = None
            for split, numbers in _groups(
                parts, together, lambda part: self.work.record(_shard_record(*part)) is not None
            ):
                first, last = (
                    numbers[0] * self.rows_per_shard,
                    min((numbers[-1] + 1) * self.rows_per_shard, splits[split].rows),
                )
                staged = splits[split].part(self.engine, first, last)
                table = pa.table({LABEL: staged.cells(STAGED_LABEL), **encoder.encode(staged)}).cast(schema)
                if writing is not None:
                    writing.result()
                writing = pool.submit(self._write_shards, split, numbers, table, schema)
                step(last - first, last - first)
            if writing is not None:
                writing.result()
        entry = {}
        for split in SPLITS:
            records = [
                self.work.record(_shard_record(split, number)) for owner, number in parts if owner == split
            ]
            shards = tuple(StoredFile(**record["stored"]) for record in records)
            entry[split] = SplitEntry(
                rows=splits[split].rows,
                positives=sum(record["positives"] for record in records),
                shards=shards,
            )
        return entry

    def _encoder(
        self, vocabularies: Mapping[str, Path], sides: Sides, fields: Mapping[str, AnyField]
    ) -> Encoder:
        made = {
            name: (self.recipe.column(name), field, self.recipe.max_rows_of(name))
            for name, field in fields.items()
        }
        kept = {
            name: self.engine.keep(self.engine.read_parquet([vocabularies[name]]))
            for name, field in fields.items()
            if not is_hashed(field)
        }
        return Encoder(self.engine, made, kept, sides, self.machine.threads or os.cpu_count() or 1)

    def _write_shards(self, split: str, numbers: Sequence[int], table: pa.Table, schema: pa.Schema) -> None:
        for place, number in enumerate(numbers):
            rows = table.slice(place * self.rows_per_shard, self.rows_per_shard)
            stored, positives = write_shard(self.work.data, shard_name(split, number), [rows], schema)
            self.work.done(
                _shard_record(split, number), {"stored": stored.model_dump(), "positives": positives}
            )

    def _shards_together(self, entries: Sequence[DataField]) -> int:
        """How many shards one query is about: a query builds the lookup of a whole vocabulary, which should not cost more than the lookups."""
        most = int(self.machine.memory * _IDS_SHARE / (4 * len(entries)) / self.rows_per_shard)
        wanted = max(_ROWS_TOGETHER, *(entry.rows for entry in entries)) // self.rows_per_shard
        return max(1, most if self.engine.long_queries else min(wanted, most))

    def _rejected(
        self, segments: Sequence[Segment], rejected: Counter[str], of_sides: Sequence[Rejections]
    ) -> RejectedLines:
        reasons = sum((one.counts for one in of_sides), rejected)
        stored = None
        if reasons:
            sides = (rejected_table(name_in(self.raw, one.path), one.kept) for one in of_sides)
            lines = chain(sides, rejected_lines(self.work.stage, segments))
            stored, _ = write_shard(self.work.data, "rejected/lines.parquet", lines, REJECTED_SCHEMA)
        return RejectedLines(samples=rejected.total(), reasons=dict(sorted(reasons.items())), stored=stored)


def _shard_record(split: str, number: int) -> str:
    return f"shards/{split}-{number:05d}"


def _groups(
    parts: Sequence[tuple[str, int]], together: int, finished: Any
) -> Iterator[tuple[str, list[int]]]:
    """The parts that are not finished, in runs of neighbours of one split."""
    run: list[int] = []
    owner = ""
    for split, number in parts:
        if run and (split != owner or number != run[-1] + 1 or len(run) == together):
            yield owner, run
            run = []
        if not finished((split, number)):
            owner = split
            run.append(number)
    if run:
        yield owner, run
