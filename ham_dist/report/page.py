"""The page of a report: its sections, and writing it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ham_dist
from ham_dist.config.units import size_text
from ham_dist.data.format.manifest import Truth
from ham_dist.errors import ReportError
from ham_dist.io.atomic import write_text
from ham_dist.io.paths import is_local
from ham_dist.report import figures, grids
from ham_dist.report.course import search_course
from ham_dist.report.dataset import Dataset, data_grids, datasets_of, look_at_dataset
from ham_dist.report.drawing import Figure, require_matplotlib
from ham_dist.report.figures import Point
from ham_dist.report.grids import Grid
from ham_dist.report.record import RunRecord, TargetRecord, read_runs
from ham_dist.report.text import quality_text

TEMPLATE = "page.html"
SUFFIXES = (".html", ".htm")
"""Files with other endings are never replaced: they could be files of a run."""
MAX_ROWS_READ = 50_000_000
"""Largest number of rows of a data set, over all splits, that a report reads without --data."""


@dataclass(frozen=True)
class Section:
    """A section of the page: a heading and the content below it, in this order; `key` is its anchor."""

    key: str
    title: str
    lines: Sequence[str] = ()
    warnings: Sequence[str] = ()
    grids: Sequence[Grid] = ()
    figures: Sequence[Figure] = ()
    sections: Sequence["Section"] = ()


def write_report(runs: Sequence[str], out: str, *, with_data: bool | None, overwrite: bool) -> None:
    """Write a report of the run folders `runs` to the file `out`.

    Args:
        runs: Run folders.
        with_data: Add statistics of the runs' data, which reads all of it; None: only of data of up to
            MAX_ROWS_READ rows.
        overwrite: Replace the file `out` if it exists.
    Raises:
        ReportError: `out` may not be written or is not on this machine, matplotlib is missing, or a folder is
            not a run or is damaged.
    """
    require_matplotlib()
    records = read_runs(runs)
    path = _file(out, overwrite)
    datasets = datasets_of(records)
    parts = [_run(f"run-{number}", run) for number, run in enumerate(records, 1)]
    most_rows = None if with_data else MAX_ROWS_READ
    looks = (
        []
        if with_data is False
        else [_dataset(f"data-{number}", dataset, most_rows) for number, dataset in enumerate(datasets, 1)]
    )
    write_text(path, render([results(datasets), *parts, *looks]))


def render(sections: Sequence[Section]) -> str:
    """Returns the page as HTML. All text is escaped, except the SVG of the figures."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(sections=sections, version=ham_dist.__version__)


def _file(out: str, overwrite: bool) -> Path:
    if not is_local(out):
        raise ReportError(
            f"{out}: reports are written only to this machine. Give a local file, and copy it from there"
        )
    path = Path(out)
    if path.is_dir():
        raise ReportError(f"{out}: is a folder, but a report is a file. Give {path / 'report.html'}")
    if path.exists() and not overwrite:
        raise ReportError(f"{out}: already exists. Replace it with --overwrite, or give another file")
    if path.exists() and (path.suffix.lower() not in SUFFIXES or not path.is_file()):
        raise ReportError(
            f"{out}: is not a report, and --overwrite replaces only reports. Give a file that ends in .html"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(
            f"{path.parent}: the folder cannot be created: {error.strerror}. Give another file"
        ) from None
    return path


def results(datasets: Sequence[Dataset]) -> Section:
    """Returns a comparison of all targets of all runs; one for each data set if there are several."""
    if len(datasets) == 1:
        return _comparison("results", "Results", datasets[0])
    what = (
        f"are on {len(datasets)} different data sets"
        if all(dataset.digest for dataset in datasets)
        else "are not known to be on the same data"
    )
    warning = f"These runs {what}. Compare test AUC and log loss only within a data set."
    parts = [
        _comparison(f"results-{number}", dataset.title, dataset) for number, dataset in enumerate(datasets, 1)
    ]
    return Section("results", "Results", warnings=[warning], sections=parts)


def _comparison(key: str, title: str, dataset: Dataset) -> Section:
    done = sum(record.result is not None for run in dataset.runs for record in run.targets)
    points = list(_points(dataset.runs))
    drawn = [figures.comparison(f"{key}-figure", points)] if done > 1 and points else []
    return Section(key, title, grids=[grids.results(dataset.runs)], figures=drawn)


def _points(runs: Iterable[RunRecord]) -> Iterator[Point]:
    """The sliced models with a test AUC, then the supernets; the targets of a run share one supernet."""
    supernets = {}
    for run in runs:
        for record in run.targets:
            if (result := record.result) is not None and result.test_auc is not None:
                model = result.model
                yield Point(f"{model}, {result.method}", result.embedding_bytes, result.test_auc)
                if (before := result.supernet) is not None and before.auc is not None:
                    supernets[run.name] = Point(f"{model}, supernet", before.embedding_bytes, before.auc)
    yield from supernets.values()


def _run(key: str, run: RunRecord) -> Section:
    settings = run.settings
    lines = [
        f"{settings.model.name} on {run.dataset}, "
        f"searched by {settings.search.method.name}, seed {settings.seed}.",
        f"Data: {run.data_folder}",
    ]
    if run.truth is not None and run.truth.bayes_auc is not None:
        lines.append(
            "The data is generated: except by chance, no model has a test AUC above "
            f"{quality_text(run.truth.bayes_auc)}."
        )
    parts = [_target(f"{key}-{record.target.label}", record, run.truth) for record in run.targets]
    if run.frontier:
        drawn = [figures.frontier(f"{key}-frontier-figure", run.frontier)]
        of_sizes = [grids.frontier(run.frontier, settings.search.tolerance)]
        parts.insert(0, Section(f"{key}-frontier", "Sizes", grids=of_sizes, figures=drawn))
    parts.append(
        Section(
            f"{key}-settings",
            "Settings and versions",
            grids=[grids.settings(settings), grids.starts(run.starts)],
        )
    )
    return Section(key, run.name, lines, run.notes, sections=parts)


def _target(key: str, record: TargetRecord, truth: Truth | None) -> Section:
    lines, shown, drawn = [], [], []
    if (result := record.result) is not None:
        ranks = "one rank" if result.world_size == 1 else f"{result.world_size} ranks"
        lines.append(
            f"On {ranks} ({result.device}), "
            f"with up to {size_text(result.peak_memory_bytes)} of memory on a rank."
        )
        shown += [grids.quality(result), grids.cost(result)]
    if record.sizes:
        shown.append(grids.sizes(record.sizes, truth))
        drawn.append(figures.sizes(f"{key}-sizes", record.sizes))
    if any(row.stage in figures.STAGES for row in record.rows):
        drawn.append(figures.training(f"{key}-training", record.rows))
    if searched := [row for row in record.rows if row.used is not None]:
        drawn.append(
            figures.search(
                f"{key}-search", searched, "columns" if record.target.columns is not None else "bytes"
            )
        )
    if record.trace:
        unit = "columns" if record.target.columns is not None else "bytes"
        drawn.append(search_course(f"{key}-course", record.trace, unit))
    return Section(key, record.target.label, lines, record.notes, shown, drawn)


def _dataset(key: str, dataset: Dataset, most_rows: int | None) -> Section:
    look = look_at_dataset(dataset, most_rows)
    lines = [f"Data of {', '.join(run.name for run in dataset.runs)}."]
    title = f"Data: {dataset.title}"
    if isinstance(look, str):
        return Section(key, title, lines, [f"No statistics of the data: {look}"])
    return Section(key, title, lines, look.alarms, data_grids(look), [figures.heads(f"{key}-heads", look)])
