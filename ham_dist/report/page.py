"""The page: what stands where in a report, and writing it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ham_dist
from ham_dist.config.paths import is_local
from ham_dist.config.units import size_text
from ham_dist.data.look import DataLook
from ham_dist.data.manifest import Truth
from ham_dist.errors import ReportError
from ham_dist.report import figures, tables
from ham_dist.report.dataset import Dataset, datasets_of, look_at_dataset
from ham_dist.report.figures import Figure, Point
from ham_dist.report.record import RunRecord, TargetRecord, read_runs
from ham_dist.report.tables import Table
from ham_dist.report.text import quality_text
from ham_dist.training.run_folder import write_text

TEMPLATE = "page.html"


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it, in this order; `key` is its anchor."""

    key: str
    title: str
    lines: Sequence[str] = ()
    warnings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    sections: Sequence["Section"] = ()


def write_report(runs: Sequence[str], out: str, *, with_data: bool) -> None:
    """Write a report of the run folders `runs` to the new file `out`.

    with_data: whether to look at the data of the runs, which reads it once through.
    raises:    ReportError if `out` is there or not on this machine, matplotlib is missing, or a folder is no run or damaged.
    """
    figures.require_matplotlib()
    records = read_runs(runs)
    path = _new_file(out)
    datasets = datasets_of(records)
    parts = [_run(f"run-{number}", run) for number, run in enumerate(records, 1)]
    write_text(path, render([results(datasets), *parts, *_data(datasets, with_data)]))


def render(sections: Sequence[Section]) -> str:
    """The page as HTML. All text is escaped; only the figures are taken as they are."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(TEMPLATE).render(sections=sections, version=ham_dist.__version__)


def _new_file(out: str) -> Path:
    if not is_local(out):
        raise ReportError(f"{out}: a report is written to a file of this machine. Give one, and copy it from there")
    path = Path(out)
    if path.exists():
        raise ReportError(f"{out}: is there already; a report is never written over. Delete it, or give another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(f"{path.parent}: cannot be made a folder: {error.strerror}. Give another file") from None
    return path


def results(datasets: Sequence[Dataset]) -> Section:
    """All targets of all runs side by side; of runs on several data sets, each data set by itself."""
    if len(datasets) == 1:
        return _comparison("results", "Results", datasets[0])
    what = f"are on {len(datasets)} different data sets" if all(dataset.digest for dataset in datasets) else "are not known to be on the same data"
    warning = f"These runs {what}. Test AUC and log loss are compared within each data set alone."
    parts = [_comparison(f"results-{number}", dataset.title, dataset) for number, dataset in enumerate(datasets, 1)]
    return Section("results", "Results", warnings=[warning], sections=parts)


def _comparison(key: str, title: str, dataset: Dataset) -> Section:
    done = sum(record.result is not None for run in dataset.runs for record in run.targets)
    drawn = [figures.comparison(f"{key}-figure", list(_points(dataset.runs)))] if done > 1 else []
    return Section(key, title, tables=[tables.results(dataset.runs)], figures=drawn)


def _points(runs: Iterable[RunRecord]) -> Iterator[Point]:
    """The narrow models, then the supernets, of which targets of one run share one."""
    supernets = {}
    for run in runs:
        for record in run.targets:
            if record.result is not None:
                model = record.result.model
                yield Point(f"{model}, {record.result.method}", record.result.embedding_bytes, record.result.test_auc)
                if (before := record.result.supernet) is not None:
                    supernets[run.name] = Point(f"{model}, supernet", before.embedding_bytes, before.auc)
    yield from supernets.values()


def _run(key: str, run: RunRecord) -> Section:
    settings = run.settings
    lines = [
        f"{settings.model.name} on {run.dataset}, searched by {settings.search.method}, seed {settings.seed}.",
        f"Data: {run.data_folder}",
    ]
    if run.truth is not None:
        lines.append(f"The data is generated: but by luck, no model reaches a test AUC over {quality_text(run.truth.bayes_auc)}.")
    parts = [_target(f"{key}-{record.target.label}", record, run.truth) for record in run.targets]
    parts.append(Section(f"{key}-settings", "Settings and versions", tables=[tables.settings(settings), tables.starts(run.starts)]))
    return Section(key, run.name, lines, run.notes, sections=parts)


def _target(key: str, record: TargetRecord, truth: Truth | None) -> Section:
    lines, shown, drawn = [], [], []
    if (result := record.result) is not None:
        ranks = "one rank" if result.world_size == 1 else f"{result.world_size} ranks"
        lines.append(f"On {ranks} ({result.device}), with up to {size_text(result.peak_memory_bytes)} of memory on a rank.")
        shown += [tables.quality(result), tables.cost(result)]
    if record.sizes:
        shown.append(tables.sizes(record.sizes, truth))
        drawn.append(figures.sizes(f"{key}-sizes", record.sizes))
    if any(row.stage in figures.STAGES for row in record.rows):
        drawn.append(figures.training(f"{key}-training", record.rows))
    if searched := [row for row in record.rows if row.used is not None]:
        drawn.append(figures.search(f"{key}-search", searched, "columns" if record.target.columns is not None else "bytes"))
    return Section(key, record.target.label, lines, record.notes, shown, drawn)


def _data(datasets: Sequence[Dataset], with_data: bool) -> Iterator[Section]:
    for number, dataset in enumerate(datasets, 1):
        if with_data:
            yield _dataset(f"data-{number}", dataset, look_at_dataset(dataset))


def _dataset(key: str, dataset: Dataset, look: DataLook | str) -> Section:
    lines = [f"Of {', '.join(run.name for run in dataset.runs)}."]
    title = f"Data: {dataset.title}"
    if isinstance(look, str):
        return Section(key, title, lines, [f"No look at the data: {look}"])
    return Section(key, title, lines, look.alarms, tables.data(look), [figures.heads(f"{key}-heads", look)])
