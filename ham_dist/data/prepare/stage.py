"""Stages raw samples as Parquet by file, segment and split, with label and ROW, for the passes over the data.

A segment is one block of a raw file. One thread parses it, divides it into splits and writes it. An
interrupted run keeps whole segments.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ham_dist.data.encode.encoder import Encoder
from ham_dist.data.encode.expressions import ROW, tenth_of
from ham_dist.data.engines.base import Engine
from ham_dist.data.format.manifest import SPLITS
from ham_dist.data.prepare.workdir import Work
from ham_dist.data.raw.blocks import BLOCK_BYTES, Block, Position, count_lines
from ham_dist.data.raw.files import SHOWN, Rejections, sample_blocks
from ham_dist.data.raw.parse import RejectedLine, parse, rejected_table
from ham_dist.data.recipe.fields import FileSplit, Label
from ham_dist.data.recipe.load import Recipe
from ham_dist.io.atomic import new_file
from ham_dist.io.progress import Advance

# The label column of staged rows; no recipe can give a column this name.
STAGED_LABEL = "_label"
# Memory for text, columns and Parquet of one block in progress, as a multiple of the block size.
_MEMORY_OF_A_BLOCK = 12


@dataclass(frozen=True)
class Segment:
    """The record of a finished segment.

    Attributes:
        file: Number of the raw file, from 0.
        number: Number of the segment in the file, from 0.
        end: Position in the raw file where it ends.
        share: Estimated share of the raw file's bytes before its end; see Block.
        rows: Number of staged rows by split.
        dropped: Rows whose label is neither positive nor negative.
        rejected: Number of rejected lines by reason.
        worst: The first rejected lines.
    """

    file: int
    number: int
    end: Position
    share: float
    rows: dict[str, int]
    dropped: int
    rejected: dict[str, int]
    worst: list[RejectedLine]

    def path(self, stage: Path, what: str) -> Path:
        """Path of its rows of the split `what`, or of its rejected lines (`what` = "rejected")."""
        return stage / f"{self.file:05d}" / f"{self.number:06d}-{what}.parquet"

    @property
    def lines(self) -> int:
        """Number of its lines that are not blank."""
        return sum(self.rows.values()) + self.dropped + sum(self.rejected.values())

    @staticmethod
    def of(record: dict[str, Any]) -> "Segment":
        """The segment of a stored record."""
        return Segment(
            **record
            | {"end": Position(**record["end"]), "worst": [RejectedLine(**one) for one in record["worst"]]}
        )


class Staging:
    """Stages the sample files of a recipe into `work`."""

    def __init__(self, work: Work, recipe: Recipe, seed: int, threads: int | None, memory: int) -> None:
        self._work, self._recipe, self._seed = work, recipe, seed
        columns = recipe.columns_of(recipe.fields) | {recipe.label.column: recipe.label.kind}
        self._wanted = {name: columns[name] for name in recipe.samples.columns if name in columns}
        self._threads = max(
            1, min(threads or os.cpu_count() or 1, memory // (2 * _MEMORY_OF_A_BLOCK * BLOCK_BYTES))
        )

    def stage(
        self, number: int, path: Path, name: str, rows_before: int, rejections: Rejections, step: Advance
    ) -> list[Segment]:
        """Stages one sample file; segments that are finished are kept.

        Args:
            number: Number of the file, from 0.
            path: The raw file.
            name: Its name in the recipe.
            rows_before: ROW of its first line.
            rejections: Collects its rejected lines.
            step: Called with bytes of text and number of rows.
        Returns:
            All segments of the file, in order.
        Raises:
            DataError: Too many of its lines are rejected.
        """
        segments = list(self._finished(number))
        for segment in segments:
            rejections.add(segment.lines, segment.rejected, segment.worst)
        if segments:
            step(segments[-1].end.offset, 0)
        start = segments[-1].end if segments else Position()
        split = self._split_rule(path, name)
        file = Path(name).with_name(path.name).as_posix()
        (self._work.stage / f"{number:05d}").mkdir(parents=True, exist_ok=True)

        def write(place: int, block: Block) -> Segment:
            return self._write(file, number, place, block, rows_before, split)

        blocks = sample_blocks(path, self._recipe.samples.columns, self._recipe.format, start)
        for segment in _in_order(self._threads, write, enumerate(blocks, len(segments))):
            rejections.add(segment.lines, segment.rejected, segment.worst)
            rejections.check_early(segment.share)
            self._work.done(f"stage/{number:05d}/{segment.number:06d}", asdict(segment))
            step(segment.end.offset - (segments[-1].end.offset if segments else 0), segment.lines)
            segments.append(segment)
        rejections.check()
        return segments

    def _finished(self, number: int) -> Iterator[Segment]:
        place = 0
        while (record := self._work.record(f"stage/{number:05d}/{place:06d}")) is not None:
            yield Segment.of(record)
            place += 1

    def _split_rule(self, path: Path, name: str) -> tuple[str, str, int] | None:
        """Split before a line, split from that line on, and the line; None if rows are split at random."""
        split = self._recipe.split
        if not isinstance(split, FileSplit):
            return None
        if name in split.train:
            return "train", "train", 0
        if name not in split.test:
            return "validation", "validation", 0
        if name not in split.validation:
            return "test", "test", 0
        header = self._recipe.format.header_lines
        return "validation", "test", header + (count_lines(path, self._recipe.format) - header) // 2

    def _write(
        self,
        file: str,
        number: int,
        place: int,
        block: Block,
        rows_before: int,
        split: tuple[str, str, int] | None,
    ) -> Segment:
        label = self._recipe.label
        rows = parse(
            block, self._recipe.samples.columns, self._wanted, self._recipe.format, required=[label.column]
        )
        positive, negative = label_masks(rows.table[label.column], label)
        known = positive | negative
        positions = rows_before + rows.lines
        part = self._splits(rows.lines, positions, split)
        table = rows.table.drop_columns(label.column)
        table = table.append_column(STAGED_LABEL, pa.array(positive.astype(np.int8))).append_column(
            ROW, pa.array(positions)
        )
        counts: dict[str, int] = {}
        segment = Segment(
            number,
            place,
            block.end,
            block.share,
            counts,
            int(len(known) - known.sum()),
            rows.reasons(),
            rows.rejected[:SHOWN],
        )
        if rows.rejected:
            _write_parquet(rejected_table(file, rows.rejected), segment.path(self._work.stage, "rejected"))
        for code, name in enumerate(SPLITS):
            mask = known & (part == code)
            counts[name] = int(mask.sum())
            if counts[name]:
                _write_parquet(table.filter(pa.array(mask)), segment.path(self._work.stage, name))
        return segment

    def _splits(
        self, lines: np.ndarray[Any, Any], positions: np.ndarray[Any, Any], split: tuple[str, str, int] | None
    ) -> np.ndarray[Any, Any]:
        """Index in SPLITS of each row's split."""
        if split is None:
            return np.maximum(tenth_of(positions, self._seed) - 7, 0)
        before, after, middle = split
        return np.where(lines < middle, SPLITS.index(before), SPLITS.index(after))


def label_masks(cells: pa.ChunkedArray, label: Label) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Masks of the positive and of the negative samples."""
    if label.positive is not None and label.negative is not None:
        positive, negative = (
            pc.is_in(cells, pa.array(words, pa.string())) for words in (label.positive, label.negative)
        )
    else:
        positive, negative = pc.greater(cells, label.positive_above), pc.less(cells, label.negative_below)
    return positive.to_numpy(), negative.to_numpy()


def _in_order(
    threads: int, function: Callable[[int, Block], Segment], items: Iterator[tuple[int, Block]]
) -> Iterator[Segment]:
    """Yields function(*item) for each item, in the order of the items; `threads` calls run at a time."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: list[Future[Segment]] = []
        try:
            for item in items:
                waiting.append(pool.submit(function, item[0], item[1]))
                if len(waiting) > threads:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def _write_parquet(table: pa.Table, path: Path) -> None:
    # Positions are all distinct, so a dictionary would cost time for no gain.
    repeating = [name for name in table.column_names if name != ROW]
    with new_file(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="lz4",
            use_dictionary=repeating,
            dictionary_pagesize_limit=BLOCK_BYTES,
            write_statistics=[ROW],
        )


@dataclass(frozen=True)
class StagedSplit:
    """The staged rows of one split, in order of ROW.

    Attributes:
        paths: The Parquet files.
        counts: Number of rows of each file.
    """

    paths: list[Path]
    counts: list[int]

    @staticmethod
    def of(stage: Path, segments: Sequence[Segment], split: str) -> "StagedSplit":
        """The staged rows of `split` in `segments`."""
        own = [segment for segment in segments if segment.rows[split]]
        return StagedSplit(
            [segment.path(stage, split) for segment in own], [segment.rows[split] for segment in own]
        )

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(self.counts)

    def part(self, engine: Engine, first: int, last: int) -> "StagedPart":
        """Rows first to last - 1 of the split."""
        ends = np.cumsum(self.counts)
        low, high = (
            int(np.searchsorted(ends, first, side="right")),
            int(np.searchsorted(ends, last, side="left")),
        )
        skipped = first - int(ends[low] - self.counts[low])
        return StagedPart(engine, self.paths[low : high + 1], skipped, last - first)


class StagedPart:
    """Consecutive rows of a split, as `RawSamples` of an encoder.

    Args:
        engine: Reads the rows for `view`.
        paths: Consecutive files that hold the rows.
        skipped: Number of rows at the start of the files to skip.
        count: Number of rows after those.
    """

    def __init__(self, engine: Engine, paths: Sequence[Path], skipped: int, count: int) -> None:
        self._engine, self._paths, self._skipped, self._count = engine, paths, skipped, count
        self._metadata = [pq.read_metadata(path) for path in paths]
        self.columns: Collection[str] = [
            name for name in self._metadata[0].schema.names if name not in (ROW, STAGED_LABEL)
        ]
        self.rows = self.cells(ROW).to_numpy()

    def cells(self, column: str) -> pa.Array:
        """A column of the staged rows: numbers unchanged, text dictionary-encoded."""
        pieces = []
        for path, metadata in zip(self._paths, self._metadata, strict=True):
            with pq.ParquetFile(path, metadata=metadata, read_dictionary=[column]) as file:
                pieces += file.read([column], use_threads=False).column(0).chunks
        cells = pa.chunked_array(pieces).slice(self._skipped, self._count)
        return cells.unify_dictionaries().combine_chunks()

    def view(self) -> ibis.Table:
        """All rows as a table of the engine."""
        staged = self._engine.read_parquet(self._paths)
        return self._engine.show(
            Encoder.VIEW, staged.filter(staged[ROW].between(int(self.rows[0]), int(self.rows[-1])))
        )


def rejected_lines(stage: Path, segments: Sequence[Segment]) -> Iterator[pa.Table]:
    """The rejected lines of `segments`, as tables of REJECTED_SCHEMA."""
    for segment in segments:
        if segment.rejected:
            yield pq.read_table(segment.path(stage, "rejected"), partitioning=None)
