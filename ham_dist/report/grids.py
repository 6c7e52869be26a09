"""The grids of a report: rows of text. (A "table" is always an embedding table.)"""

from collections.abc import Sequence
from dataclasses import dataclass

from ham_dist.config.load import changes
from ham_dist.config.schema import RunSettings
from ham_dist.config.units import size_text
from ham_dist.data.format.manifest import Truth
from ham_dist.embedding.table_size import TableSize
from ham_dist.report.record import Result, RunRecord, Start
from ham_dist.report.text import NOTHING, count_text, quality_text
from ham_dist.training.frontier import SizedModel, smallest_within


@dataclass(frozen=True)
class Cell:
    """A cell of a grid.

    Attributes:
        text: Text that is shown.
        exact: Exact value, shown when the mouse is over the cell.
    """

    text: str
    exact: str = ""


@dataclass(frozen=True)
class Grid:
    """A titled grid of rows.

    Attributes:
        title: Title of the grid.
        names: Names of the columns.
        rows: The rows.
        texts: Number of columns, from the left, that hold text; the others hold numbers.
        total: Last row with the sums of the others; None without one.
    """

    title: str
    names: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    texts: int = 1
    total: Sequence[Cell | str] | None = None


def results(runs: Sequence[RunRecord]) -> Grid:
    """Returns a grid with one row for each target of each run."""
    names = (
        "run", "target", "model", "method", "seed", "columns", "test AUC", "over supernet", "log loss",
        "tables before", "tables after", "dense parameters", "minutes, pretraining included",
    )  # fmt: skip
    rows: list[Sequence[Cell | str]] = []
    for run in runs:
        for record in run.targets:
            search, result = run.settings.search, record.result
            words = (
                Cell(run.label, run.name),
                record.target.label,
                run.settings.model.name,
                search.method.name,
                str(run.settings.seed),
            )
            rows.append((*words, *(_result_row(result) if result else ("not done", *[NOTHING] * 7))))
    return Grid("", names, rows, texts=4)


def _result_row(result: Result) -> tuple[Cell | str, ...]:
    before = result.supernet
    return (
        count_text(sum(result.kept_columns.values())),
        _auc_text(result.test_auc),
        _difference(before.auc, result.test_auc) if before else NOTHING,
        quality_text(result.test_logloss),
        size_cell(before.embedding_bytes) if before else NOTHING,
        size_cell(result.embedding_bytes),
        count_text(result.dense_parameters),
        f"{sum(result.seconds.values()) / 60:.1f}",
    )


def quality(result: Result) -> Grid:
    """Returns quality and size of the sliced model and the supernet."""
    before = result.supernet.model_dump() if result.supernet else {}
    rows: list[Sequence[Cell | str]] = []
    for title, name, new in (
        ("test AUC", "auc", result.test_auc),
        ("test log loss", "logloss", result.test_logloss),
        ("validation AUC", "validation_auc", result.validation_auc),
    ):
        old = before.get(name)
        text = _auc_text if name == "auc" and before else quality_text
        rows.append((title, text(old), text(new), _difference(old, new)))
    for title, name, count in (
        ("embedding parameters", "embedding_parameters", result.embedding_parameters),
        ("dense parameters", "dense_parameters", result.dense_parameters),
    ):
        rows.append(
            (title, count_text(before.get(name)), count_text(count), _change(before.get(name), count))
        )
    size = before.get("embedding_bytes")
    rows.append(
        (
            "embedding bytes",
            NOTHING if size is None else size_cell(size),
            size_cell(result.embedding_bytes),
            _change(size, result.embedding_bytes),
        )
    )
    return Grid("Quality and size", ("", "supernet", "sliced", "change"), rows)


def frontier(points: Sequence[SizedModel], tolerance: float) -> Grid:
    """Returns the models of a run with their validation AUCs; the smallest within the tolerance is marked."""
    best = smallest_within(points, tolerance)
    rows = [
        (
            point.target,
            count_text(point.columns),
            size_cell(point.bytes),
            quality_text(point.validation_auc),
            f"{point.difference:+.5f}",
            f"{point.standard_error:.5f}",
            f"smallest within {tolerance:g}" if point is best else "within" if point.within else "",
        )
        for point in points
    ]
    names = ("target", "columns", "bytes", "validation AUC", "over supernet", "standard error", "tolerance")
    return Grid("Sizes and validation AUC", names, rows)


def cost(result: Result) -> Grid:
    """Returns epochs, time and speed of each stage."""
    rows = []
    for stage, seconds in result.seconds.items():
        speed = result.samples_per_second.get(stage)
        rows.append(
            (
                stage,
                count_text(result.epochs.get(stage)),
                f"{seconds:,.1f}",
                NOTHING if speed is None else f"{speed:,.0f}",
            )
        )
    total = ("all", "", f"{sum(result.seconds.values()):,.1f}", "")
    return Grid("Time", ("stage", "epochs", "seconds", "samples/s"), rows, total=total)


def sizes(tables: Sequence[TableSize], truth: Truth | None) -> Grid:
    """Returns the table of each field before and after the search; for generated data, with its true rank."""
    names = ["field", "rows", "base dim", "kept columns", "bytes before", "bytes after", "change"]
    rows: list[Sequence[Cell | str]] = [
        (
            table.field,
            count_text(table.num_embeddings),
            count_text(table.base_dim),
            count_text(table.searched_dim),
            size_cell(table.bytes_before),
            size_cell(table.bytes_after),
            _change(table.bytes_before, table.bytes_after),
        )
        for table in tables
    ]
    before, after = sum(table.bytes_before for table in tables), sum(table.bytes_after for table in tables)
    total: Sequence[Cell | str] = (
        "all",
        count_text(sum(table.num_embeddings for table in tables)),
        count_text(sum(table.base_dim for table in tables)),
        count_text(sum(table.searched_dim for table in tables)),
        size_cell(before),
        size_cell(after),
        _change(before, after),
    )
    if truth is not None:
        planted = [truth.planted_ranks.get(table.field) for table in tables]
        names.append("planted columns")
        rows = [(*row, count_text(count)) for row, count in zip(rows, planted, strict=True)]
        total = (*total, count_text(sum(count or 0 for count in planted)))
    return Grid("Columns kept", names, rows, total=total)


def settings(run: RunSettings) -> Grid:
    """Returns the settings that differ from their defaults."""
    return Grid(
        "Settings that are not the default",
        ("setting", "default", "value"),
        changes(RunSettings(), run),
        texts=3,
    )


def starts(entries: Sequence[Start]) -> Grid:
    """Returns versions and machine of each start of a run; one column for each package of any start."""
    packages = list(dict.fromkeys(name for entry in entries for name in entry.versions))
    rows: list[Sequence[Cell | str]] = [
        (
            entry.time,
            f"{entry.world_size} x {entry.device}",
            Cell(f"{entry.ham_dist}{f' ({entry.commit[:10]})' if entry.commit else ''}", entry.commit or ""),
            entry.python,
            *(entry.versions.get(package, NOTHING) for package in packages),
        )
        for entry in entries
    ]
    names = ("started", "ranks", "ham_dist", "python", *packages)
    return Grid("Starts, with versions", names, rows, texts=len(names))


def size_cell(count: int) -> Cell:
    """Returns a cell with rounded bytes and their exact number."""
    return Cell(size_text(count), f"{count:,} bytes")


def _auc_text(value: float | None) -> str:
    """Text of a test AUC; a finished model lacks one only if all labels of the split are the same."""
    return "not defined" if value is None else quality_text(value)


def _difference(old: float | None, new: float | None) -> str:
    return NOTHING if old is None or new is None else f"{new - old:+.4f}"


def _change(before: int | None, after: int) -> str:
    return f"{(after - before) / before:+.1%}" if before else NOTHING
