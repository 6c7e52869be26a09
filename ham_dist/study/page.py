"""The report of a study: one HTML page, and its tables and figures as files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ham_dist.errors import ReportError
from ham_dist.io.atomic import write_text
from ham_dist.report.course import search_course
from ham_dist.report.drawing import Figure, require_matplotlib
from ham_dist.report.page import Section, render
from ham_dist.report.record import TracePoint, read_lines
from ham_dist.study import evidence, figures
from ham_dist.study.comparison import Comparison, Endpoint
from ham_dist.study.cosines import PretrainedCosines, cosine_table, pretrained_cosines
from ham_dist.study.evidence import SIGNIFICANT, difference_text, p_text
from ham_dist.study.outcomes import Place, Results, read_results
from ham_dist.study.planted import planted_table
from ham_dist.study.statistics import require_scipy
from ham_dist.study.tables import Table
from ham_dist.training.run_folder import RunFolder

PAGE = "report.html"
AUTODIM = "autodim"
"""Beginning of the arms that the paper's Fig. 4 compares with HAM."""
OF_A_PLACE = ("main", "planted", "equal_bytes", "supernet", "sizes")
"""Tables with rows for each model, in the order of the page."""
PROTOCOL = (
    "Arms are compared within a seed, which sets the split of the data and the run. Primary endpoint: per "
    "seed, the mean AUC over the sizes of a model; one two-sided paired t-test per rival; Holm's correction "
    "over the rivals of a model; significant at 0.05. All rules: docs/protocol.md."
)


def write_study_report(folder: Path, out: Path, *, reference: str | None = None) -> list[str]:
    """Write the report of the study in `folder` to the folder `out`: report.html, tables/ and figures/.

    Works with the results so far, also while the study runs; an earlier report in `out` is replaced.

    Args:
        reference: Label of the arm that the others are compared with; None: `ham`, or else the first arm.
    Returns:
        The findings, a line for each model.
    Raises:
        ReportError: There are no results, they are damaged, there is no such arm, scipy or matplotlib is
            missing, or `out` is a folder of other files.
    """
    require_matplotlib()
    require_scipy()
    _require_own(out)
    comparison = Comparison(read_results(folder), reference)
    cosines = pretrained_cosines(comparison.results)
    tables = tables_of(comparison)
    if (of_columns := cosine_table(cosines)) is not None:
        tables.append(of_columns)
    drawn = figures_of(comparison) | courses(comparison) | cosine_figures(cosines)
    for table in tables:
        for suffix, text in ((".md", table.markdown()), (".csv", table.csv()), (".tex", table.latex())):
            _write(out / "tables" / f"{table.name}{suffix}", text)
    for name, figure in drawn.items():
        _write(out / "figures" / f"{name}.svg", f"{figure.svg}\n")
    _write(out / PAGE, render(sections(comparison, tables, drawn)))
    return findings(comparison)


def tables_of(comparison: Comparison) -> list[Table]:
    """Returns all tables that have rows."""
    outcomes = comparison.results.outcomes
    tables = [
        evidence.main_table(comparison),
        evidence.gain_table(comparison),
        planted_table(outcomes),
        evidence.equal_bytes_table(comparison),
        evidence.supernet_table(comparison),
        evidence.size_table(comparison),
        evidence.failure_table(outcomes),
        evidence.settings_table(outcomes),
        evidence.version_table(outcomes),
    ]
    return [table for table in tables if table is not None and table.rows]


def figures_of(comparison: Comparison) -> dict[str, Figure]:
    """Returns the figures by name: AUC by size of each model, and each pair of arms on each data set."""
    found: dict[str, Figure | None] = {}
    places = comparison.results.places
    for number, place in enumerate(places, 1):
        found[f"sizes-{number}"] = figures.by_size(f"sizes-{number}", comparison, place)
    for number, data in enumerate(dict.fromkeys(name for name, _ in places), 1):
        rivals = dict.fromkeys(arm for place in places for arm in comparison.rivals(place))
        for arm in rivals:
            if arm.startswith(AUTODIM):
                name = f"{arm}-{number}"
                found[name] = figures.against(name, comparison, data, [comparison.reference, arm])
    return {name: figure for name, figure in found.items() if figure is not None}


def courses(comparison: Comparison) -> dict[str, Figure]:
    """Returns the course of one search of the reference for each model, whose run folder is here."""
    found = {}
    for number, place in enumerate(comparison.results.places, 1):
        own = [o for o in comparison.results.of(place) if o.arm == comparison.reference and o.size.is_budget]
        for outcome in sorted(own, key=lambda outcome: (outcome.seed, outcome.size.order)):
            folder = comparison.results.folders.get(outcome.key)
            path = RunFolder(folder).search_trace if folder is not None else None
            if path is not None and (trace := read_lines(path, TracePoint, [])):
                figure = search_course(f"course-{number}", trace, outcome.size.unit)
                which = (
                    f"{outcome.arm}, {place[1]} on {place[0]}, size {outcome.size.label}, seed {outcome.seed}"
                )
                found[f"course-{number}"] = Figure(figure.svg, f"{which}. {figure.caption}")
                break
    return found


def cosine_figures(found: Sequence[PretrainedCosines]) -> dict[str, Figure]:
    """Returns the heat maps of the first seed that all arms of a model have."""
    drawn = {}
    for number, entry in enumerate(found, 1):
        if (common := entry.first_common()) is not None:
            (_, seed), arms = common
            where = f"pretrained {entry.place[1]} on {entry.place[0]}, seed {seed}"
            if (figure := figures.cosine_maps(f"cosines-{number}", arms, where)) is not None:
                drawn[f"cosines-{number}"] = figure
    return drawn


def sections(comparison: Comparison, tables: Sequence[Table], drawn: Mapping[str, Figure]) -> list[Section]:
    """Returns the sections of the page: a summary, each model, and settings with versions."""
    by_name = {table.name: table for table in tables}
    notes = {name: by_name[name].note for name in OF_A_PLACE if name in by_name}
    summary = Section(
        "summary",
        f"Study {comparison.results.study}",
        [*_facts(comparison), PROTOCOL, *findings(comparison)],
        [*comparison.results.notes, *_warnings(comparison)],
        grids=[by_name["gains"].grid()] if "gains" in by_name else [],
    )
    places = []
    for number, place in enumerate(comparison.results.places, 1):
        data, model = place
        of_place = [by_name[name].where(*place) for name in notes]
        figure = drawn.get(f"sizes-{number}")
        places.append(
            Section(
                f"place-{number}",
                f"{model} on {data}",
                grids=[table.grid() for table in of_place if table.rows],
                figures=[figure] if figure else [],
            )
        )
    columns = [by_name["cosines"].grid()] if "cosines" in by_name else []
    others = [figure for name, figure in drawn.items() if not name.startswith("sizes-")]
    return [
        summary,
        Section(
            "reading",
            "Reading the tables",
            [f"{by_name[name].title}: {text}" for name, text in notes.items()],
        ),
        *places,
        *([Section("figures", "Further figures", grids=columns, figures=others)] if others else []),
        Section(
            "settings",
            "Settings and versions",
            grids=[by_name[name].grid() for name in ("failures", "settings", "versions") if name in by_name],
        ),
    ]


def findings(comparison: Comparison) -> list[str]:
    """Returns what the primary tests show, a line for each model."""
    return [_finding(comparison, place) for place in comparison.results.places]


def _finding(comparison: Comparison, place: Place) -> str:
    entries = [entry for entry in comparison.endpoints(place) if entry.difference is not None]
    parts: dict[str, list[str]] = {"better than": [], "worse than": [], "not distinguishable from": []}
    untested = []
    for entry in entries:
        mean, p = entry.difference.mean if entry.difference else None, entry.p_holm
        if mean is None or p is None:
            untested.append(f"{entry.arm} ({entry.difference.no_test if entry.difference else ''})")
        elif p >= SIGNIFICANT:
            parts["not distinguishable from"].append(_named(entry))
        else:
            parts["better than" if mean < 0 else "worse than"].append(_named(entry))
    said = [f"{verdict} {', '.join(names)}" for verdict, names in parts.items() if names]
    said += [f"not tested against {', '.join(untested)}"] if untested else []
    data, model = place
    if not comparison.sizes(place):
        return f"{model} on {data}: no test: {comparison.reference or 'each arm'} has no target there."
    return f"{model} on {data}: {comparison.reference} is {'; '.join(said) or 'without rivals'}."


def _named(entry: Endpoint) -> str:
    """An arm with the reference's lead over it, and the corrected p-value."""
    assert entry.difference is not None
    assert entry.difference.mean is not None
    assert entry.p_holm is not None
    p = p_text(entry.p_holm)
    return f"{entry.arm} ({difference_text(-entry.difference.mean)}, p {p if p[0] == '<' else f'= {p}'})"


def _facts(comparison: Comparison) -> list[str]:
    results: Results = comparison.results
    failed = sum(outcome.failed(results.measure) for outcome in results.outcomes)
    groups = len({outcome.group for outcome in results.outcomes})
    seeds = sorted({outcome.seed for outcome in results.outcomes})
    listed = (
        f"{seeds[0]} to {seeds[-1]}" if seeds == list(range(seeds[0], seeds[-1] + 1)) else str(seeds)[1:-1]
    )
    commits = sorted({(outcome.commit or "unknown")[:10] for outcome in results.outcomes})
    halves = sorted({str(o.settings.get("search", {}).get("validation", "shared")) for o in results.outcomes})
    return [
        f"{len(results.outcomes):,} branches of {groups:,} pretrained supernets, {failed:,} failed; "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {listed}; "
        f"commit {', '.join(commits)}; validation {' or '.join(halves)}.",
    ]


def _warnings(comparison: Comparison) -> list[str]:
    warnings = []
    for place in comparison.results.places:
        where = f"{place[1]} on {place[0]}"
        if not comparison.results.folders and (missing := comparison.missing(place)):
            warnings.append("\n".join([f"Missing, {where}:", *missing]))
        if unequal := evidence.unequal_limits(comparison, place):
            warnings.append("\n".join([f"Unequal limits of training, {where}:", *unequal]))
    return warnings


def _require_own(out: Path) -> None:
    """Check that `out` is new, empty, or holds an earlier report."""
    if out.exists() and not out.is_dir():
        raise ReportError(f"{out}: is a file, but the report of a study is a folder. Give another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / PAGE).is_file():
        raise ReportError(
            f"{out}: is a folder of other files. Give a new folder, or one with an earlier report"
        )


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise ReportError(f"{path}: cannot be written: {error.strerror}. Give another --out") from None
