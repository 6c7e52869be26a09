"""Reports of real runs, and of what is left of runs that were cut off."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ham_dist.cli import app
from ham_dist.config.load import load_run
from ham_dist.config.schema import RunSettings
from ham_dist.config.synthetic import SyntheticSettings
from ham_dist.config.units import size_text
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.statistics import compute_statistics
from ham_dist.data.synthetic.write import generate
from ham_dist.errors import ConfigError, ReportError
from ham_dist.io.atomic import write_json
from ham_dist.report.dataset import datasets_of
from ham_dist.report.drawing import STYLES
from ham_dist.report.figures import FIELDS_SHOWN, Point, comparison, heads
from ham_dist.report.page import results, write_report
from ham_dist.report.record import read_runs
from ham_dist.run import run_stages
from ham_dist.training.run_folder import RunFolder, read_json
from tests.support.forked import run_python
from tests.support.html_page import Page
from tests.support.small_run import tiny_run

LABELS = ("columns-4", "bytes-300")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of two targets."""
    folder = tmp_path_factory.mktemp("report") / "two targets"
    run_stages(
        tiny_run(search={"targets": [{"columns": 4}, {"bytes": 300}]}, checkpoint={"every_steps": 0}),
        folder,
        resume=False,
    )
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return report(run, out=run.parent / "page.html", with_data=True)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The run again, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def report(*runs: Path, out: Path, with_data: bool | None = False) -> Page:
    write_report([str(run) for run in runs], str(out), with_data=with_data, overwrite=False)
    return Page(out.read_text(encoding="utf-8"))


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RunFolder(folder).metrics.read_text().splitlines()]


def test_results_and_sizes_stand_in_the_tables(run: Path, page: Page) -> None:
    rows = page.tables[""][1:]
    for label, row in zip(LABELS, rows, strict=True):
        result = read_json(RunFolder(run / label).result)
        assert row[:6] == [
            "two targets",
            label,
            "dcnv2",
            "ham",
            "0",
            str(sum(result["kept_columns"].values())),
        ]
        assert row[6] == f"{result['test_auc']:.4f}"
        assert row[7] == f"{result['test_auc'] - result['supernet']['auc']:+.4f}"
        assert f"{result['test_logloss']:.4f}" == row[8]
        assert row[10:12] == [size_text(result["embedding_bytes"]), f"{result['dense_parameters']:,}"]
        assert f"{result['embedding_bytes']:,} bytes" in page.exact
    sizes = read_json(RunFolder(run / LABELS[-1]).sizes)
    *fields, total = page.tables["Columns kept"][1:]
    planted = Manifest.load(run / "data").truth
    assert planted is not None
    for size, cells in zip(sizes, fields, strict=True):
        assert cells[:4] == [
            size["field"],
            str(size["num_embeddings"]),
            str(size["base_dim"]),
            str(size["searched_dim"]),
        ]
        assert cells[4:6] == [size_text(size["bytes_before"]), size_text(size["bytes_after"])]
        assert cells[7] == str(planted.planted_ranks[size["field"]])
    assert total[3] == str(sum(size["searched_dim"] for size in sizes))
    cost = {row[0]: row[1:] for row in page.tables["Time"][1:]}
    for stage in ("pretrain", "search", "retrain"):
        assert cost[stage] == [
            str(result["epochs"][stage]),
            f"{result['seconds'][stage]:,.1f}",
            f"{result['samples_per_second'][stage]:,.0f}",
        ]
    assert any(
        size_text(result["peak_memory_bytes"]) in text and "one rank (cpu)" in text for text in page.texts
    )


def test_figures_have_a_point_for_each_row_of_the_metrics(run: Path, page: Page) -> None:
    for label in LABELS:
        name = f"run-1-{label}"
        rows = metrics(run) + metrics(run / label)
        for stage in ("pretrain", "search", "retrain"):
            epochs = sum(row["stage"] == stage for row in rows)
            assert epochs > 0
            for line in ("auc", "train-loss", "validation-loss"):
                assert page.markers[f"{name}-training-{stage}-{line}"] == epochs
        assert page.markers[f"{name}-search-used"] == sum("used" in row for row in rows)
        assert f"{name}-course-used" in page.ids()
    assert page.markers["results-figure-kind-0"] == len(LABELS)
    assert page.markers["results-figure-kind-1"] == 1, "targets of one run share their supernet"


def test_data_is_what_inspect_finds(run: Path, page: Page) -> None:
    look = compute_statistics(run / "data", Manifest.load(run / "data"), 4)
    splits = {row[0]: row[1:] for row in page.tables["Splits"][1:]}
    assert {
        name: [f"{split.rows:,}", f"{split.positives:,}", f"{split.label_rate:.1%}"]
        for name, split in look.splits.items()
    } == splits
    (fields,) = (rows for title, rows in page.tables.items() if title.startswith("Tables 4 columns wide"))
    (shares,) = (rows for title, rows in page.tables.items() if title.startswith("Share of values"))
    for number, field in enumerate(look.fields):
        assert fields[number + 1][:3] == [field.name, f"{field.rows:,}", size_text(field.bytes)]
        assert fields[number + 1][5:] == [f"{share:.1%}" for share in field.head.values()]
        assert shares[number + 1] == [
            field.name,
            *(f"{share:.1%}" for share in (*field.zero.values(), *field.unseen.values())),
        ]
        assert page.markers[f"data-1-heads-field-{number}"] == len(field.head)
    assert ["raw rows", "1,000"] in page.tables["Raw lines"]


def test_tables_of_the_data_are_counted_in_the_precision_of_the_run(copy: Path, tmp_path: Path) -> None:
    settings, identity = RunFolder(copy).settings, RunFolder(copy).identity
    settings.write_text(settings.read_text().replace('tables = "float32"', 'tables = "float16"'))
    known = read_json(identity)
    known["settings"]["precision.tables"] = "float16"
    write_json(identity, known)
    page = report(copy, out=tmp_path / "x.html", with_data=True)
    (fields,) = (
        rows for title, rows in page.tables.items() if title.startswith("Tables 4 columns wide in float16")
    )
    whole = compute_statistics(copy / "data", Manifest.load(copy / "data"), 4)
    assert [row[2] for row in fields[1:-1]] == [size_text(field.bytes // 2) for field in whole.fields]


def test_settings_and_versions(run: Path, page: Page) -> None:
    changed = {row[0]: row[1:] for row in page.tables["Settings that are not the default"][1:]}
    assert changed["model.base_dim"] == [str(RunSettings().model.base_dim), "4"]
    assert "model.name" not in changed
    names, start = page.tables["Starts, with versions"]
    (entry,) = read_json(RunFolder(run).environment)
    assert dict(zip(names, start, strict=True))["torch"] == entry["versions"]["torch"]


def test_page_needs_nothing_else_and_no_two_things_have_one_name(page: Page) -> None:
    assert page.tags & {"script", "link", "img", "iframe", "object", "embed"} == set()
    links = [value for _, name, value in page.attributes if name in ("href", "xlink:href", "src")]
    assert links
    assert {link[0] for link in links} == {"#"}
    assert {link[1:] for link in links} <= set(page.ids())
    assert set(re.findall(r"url\(#?(.)", page.html)) <= set("rd"), "only of figures' own parts"
    assert len(page.ids()) == len(set(page.ids()))
    assert "#010203" not in page.html


def test_same_runs_give_the_same_bytes(run: Path, page: Page, tmp_path: Path) -> None:
    done = run_python(["-m", "ham_dist", "report", run, "--out", tmp_path / "again.html"])
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"report of 1 run in {tmp_path / 'again.html'}\n"
    assert "--no-data skips this" in done.stderr
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page.html


def test_one_target_alone_has_its_pretraining(run: Path, tmp_path: Path) -> None:
    page = report(run / LABELS[0], out=tmp_path / "x.html")
    assert page.warnings == []
    assert page.markers[f"run-1-{LABELS[0]}-training-pretrain-auc"] == len(metrics(run))


def test_runs_on_one_data_set_share_a_figure(run: Path, copy: Path, tmp_path: Path) -> None:
    page = report(run, copy, out=tmp_path / "x.html", with_data=True)
    assert [row[0] for row in page.tables[""][1:]] == ["two targets"] * 2 + ["copy"] * 2
    assert page.markers["results-figure-kind-0"] == 4
    assert page.markers["results-figure-kind-1"] == 2
    assert page.warnings == []
    assert [name for name in page.ids() if re.fullmatch(r"data-\d+", name)] == ["data-1"], "read once"


def test_runs_on_other_data_have_figures_of_their_own(run: Path, copy: Path, tmp_path: Path) -> None:
    record = read_json(RunFolder(copy).data_record)
    write_json(RunFolder(copy).data_record, record | {"sha256": "0" * 64})
    page = report(run, copy, out=tmp_path / "x.html", with_data=True)
    assert page.markers["results-1-figure-kind-0"] == page.markers["results-2-figure-kind-0"] == 2
    compared, problem = page.warnings
    assert compared.startswith("These runs are on 2 different data sets.")
    assert "the run began with other data than its data folder holds now" in problem
    RunFolder(copy).data_record.unlink()
    (compared,) = results(datasets_of(read_runs([str(run), str(copy)]))).warnings
    assert compared.startswith("These runs are not known to be on the same data.")


def test_what_is_left_of_a_killed_run_is_shown(copy: Path, tmp_path: Path) -> None:
    pretrained = len(metrics(copy))
    killed, never = (RunFolder(copy / label) for label in LABELS)
    killed.result.unlink()
    killed.sizes.unlink()
    lines = killed.metrics.read_bytes().splitlines(keepends=True)
    searched = [line for line in lines if b'"search"' in line]
    killed.metrics.write_bytes(b"".join(searched) + lines[-1][:20])
    with RunFolder(copy).metrics.open("ab") as file:
        file.write(lines[-1][:20])
    shutil.rmtree(never.path)
    shutil.rmtree(copy / "data")
    RunFolder(copy).environment.unlink()
    page = report(copy, out=tmp_path / "x.html", with_data=True)
    assert [row[5:7] for row in page.tables[""][1:]] == [["not done", "\N{EN DASH}"]] * 2
    assert page.markers[f"run-1-{LABELS[0]}-search-used"] == len(searched)
    advice = f"If it no longer runs, resume it with `ham-dist train --resume --run-dir {copy}`."
    for wanted in (
        "environment.json is missing",
        f"Not finished: the last line of its metrics is for search, epoch {len(searched) - 1}. {advice}",
        f"Not finished: the last line of its metrics is for pretrain, epoch {pretrained - 1}. {advice}",
        f"No statistics of the data: {copy / 'data'}: no such folder",
    ):
        assert any(wanted in warning for warning in page.warnings), wanted
    assert not any("incomplete" in warning for warning in page.warnings), "a running run is writing that line"


def test_a_line_cut_off_in_a_finished_run_is_told(copy: Path, tmp_path: Path) -> None:
    with RunFolder(copy / LABELS[0]).metrics.open("ab") as file:
        file.write(b'{"stage"')
    assert report(copy, out=tmp_path / "x.html").warnings == [
        "The last line of metrics.jsonl is incomplete and left out."
    ]


def test_the_mend_of_one_target_alone_is_a_command_that_train_takes(copy: Path, tmp_path: Path) -> None:
    run = copy.rename(tmp_path / "it's a run")
    RunFolder(run / LABELS[0]).result.unlink()
    (warning,) = report(run / LABELS[0], out=tmp_path / "x.html").warnings
    command = shlex.split(warning.split("`")[1])
    assert command == ["ham-dist", "train", "--resume", "--run-dir", str(run)]
    assert RunFolder(command[-1]).whole() is None, "train refuses one target alone"


def test_numbers_that_are_not_finite_leave_a_gap(copy: Path, tmp_path: Path) -> None:
    first, *rest = metrics(copy / LABELS[0])
    lines = [json.dumps(first | {"train_loss": None}), *map(json.dumps, rest)]
    RunFolder(copy / LABELS[0]).metrics.write_text("".join(f"{line}\n" for line in lines))
    page = report(copy, out=tmp_path / "x.html")
    name = f"run-1-{LABELS[0]}-training-search"
    assert page.markers[f"{name}-train-loss"] == page.markers[f"{name}-auc"] - 1


HOSTILE = '--></text><script>alert("1")</script>&\N{CJK UNIFIED IDEOGRAPH-6F22}'

FORMULA = "$x^$\N{CJK UNIFIED IDEOGRAPH-6F22}"
"""matplotlib would take it for a formula with a mistake, and has no such letter."""


def test_hostile_names_are_text(copy: Path, tmp_path: Path) -> None:
    for label in LABELS:
        folder = RunFolder(copy / label)
        sizes = read_json(folder.sizes)
        sizes[0]["field"], sizes[1]["field"] = HOSTILE, FORMULA
        write_json(folder.sizes, sizes)
        write_json(
            folder.result, read_json(folder.result) | {"model": HOSTILE, "method": HOSTILE, "device": HOSTILE}
        )
    record = read_json(RunFolder(copy).data_record)
    record["manifest"]["name"] = HOSTILE
    write_json(RunFolder(copy).data_record, record)
    evil = copy.rename(tmp_path / "<script>alert(2)<&")
    page = report(evil, out=tmp_path / "x.html")
    assert "script" not in page.tags
    assert any(HOSTILE in text for text in page.texts)
    assert page.tables["Columns kept"][1][0] == HOSTILE
    assert any(
        text.startswith('--></text><script>alert("1")') and text.endswith("…") for text in page.texts
    ), "in a figure, cut to fit"
    assert page.texts.count(FORMULA) == 2 * len(LABELS), "in the table and in the figure of each target"


def test_alarms_of_the_data_are_warnings(tmp_path: Path) -> None:
    sparse = SyntheticSettings(rows=2000, planted_ranks=(1, 1), num_embeddings=(20, 100_000), skew=0.0)
    manifest = generate(sparse, tmp_path / "data")
    folder = RunFolder(tmp_path / "run")
    folder.start(load_run(None, [f"data.path={tmp_path / 'data'}"]), resume=False, world_size=1, device="cpu")
    folder.tie(manifest)
    page = report(folder.path, out=tmp_path / "deep" / "x.html", with_data=True)
    alarms = [warning for warning in page.warnings if warning.startswith("field field_1: ")]
    assert len(alarms) == 2
    assert all("never in the training split" in alarm for alarm in alarms)
    assert any(
        "Not finished: it has no metrics yet. If it no longer runs, " in warning for warning in page.warnings
    )


def test_kinds_are_told_apart_or_not_named() -> None:
    points = [Point(f"kind {number}", 100 + number, 0.5 + number / 1000) for number in range(STYLES + 1)]
    svg = comparison("x", points).svg
    marks = re.findall(
        r'<g id="x-kind-\d+">.*?<use [^>]*?href="(#[^"]+)"', svg, flags=re.DOTALL
    )  # a mark's name goes by its shape and colour
    assert len(marks) == STYLES + 1
    assert len(set(marks)) == STYLES
    assert marks[-1] == marks[0]
    assert f">kind {STYLES - 1}<" in svg
    assert f">kind {STYLES}<" not in svg


def test_the_names_of_many_fields_leave_room_for_their_curves(run: Path) -> None:
    look = compute_statistics(run / "data", Manifest.load(run / "data"), 4)
    for count, ending, named in (
        (FIELDS_SHOWN, "m" * 40, True),
        (FIELDS_SHOWN, "m" * 8, True),
        (FIELDS_SHOWN + 1, "m", False),
    ):
        fields = [look.fields[0].model_copy(update={"name": f"{number}-{ending}"}) for number in range(count)]
        svg = heads(
            "x", look.model_copy(update={"fields": fields})
        ).svg  # matplotlib warns, which fails a test, where there is no room
        assert (">49-m" in svg) is named


def test_many_fields_are_drawn_in_part(copy: Path, tmp_path: Path) -> None:
    folder = RunFolder(copy / LABELS[0])
    size = read_json(folder.sizes)[0]
    write_json(
        folder.sizes, [size | {"field": f"f{number}", "bytes_before": number} for number in range(120)]
    )
    page = report(copy, out=tmp_path / "x.html")
    assert "Columns and bytes before and after: the 50 largest of 120 fields." in page.texts
    assert "f119" in page.texts
    assert page.texts.count("f69") == 1, "in the table alone"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("columns-4/result.json", "{", r"result\.json: is damaged: Expecting property name"),
        (
            "columns-4/result.json",
            '{"model": "fm"}',
            r"result\.json: is damaged: method: Field required\n  Copy it again",
        ),
        ("columns-4/sizes.json", "[1]", r"sizes\.json: is damaged: 0: "),
        ("columns-4/metrics.jsonl", '{"stage": "search"\n{}\n', r"metrics\.jsonl, line 1: is damaged"),
        ("environment.json", "\x00", r"environment\.json: is damaged"),
        ("data.json", "[]", r"data\.json: is damaged"),
        ("run.toml", "seed = ", r"run\.toml: is not TOML"),
    ],
)
def test_damaged_files_are_named(copy: Path, tmp_path: Path, file: str, text: str, message: str) -> None:
    (copy / file).write_text(text)
    with pytest.raises((ReportError, ConfigError), match=message):
        report(copy, out=tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_what_is_no_run_is_told_apart(run: Path, tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none", "no such folder"),
        (tmp_path, r"is not a run folder \(it has no identity\.json"),
        (run / "run.toml", r"run\.toml: is a file, but reports read run folders"),
        (run / "data", "is prepared data or a bundle"),
        (run / LABELS[0] / "bundle", "is prepared data or a bundle"),
    ):
        with pytest.raises(ReportError, match=message):
            report(path, out=tmp_path / "x.html")
    with pytest.raises(ReportError, match="is given twice"):
        report(run, run / ".", out=tmp_path / "x.html")
    with pytest.raises(ReportError, match="s3://runs/first: reports read only run folders on this machine"):
        write_report(["s3://runs/first"], str(tmp_path / "x.html"), with_data=False, overwrite=False)


def test_where_a_report_can_go(run: Path, tmp_path: Path) -> None:
    (tmp_path / "old.html").write_text("mine")
    for out, message in (
        (str(tmp_path / "old.html"), r"already exists\. Replace it with --overwrite"),
        (str(tmp_path / "old.html" / "x.html"), r"old\.html: the folder cannot be created"),
        (str(tmp_path), "is a folder, but a report is a file"),
        ("s3://pages/x.html", "s3://pages/x.html: reports are written only to this machine"),
    ):
        with pytest.raises(ReportError, match=message):
            write_report([str(run)], out, with_data=False, overwrite=False)
    assert (tmp_path / "old.html").read_text() == "mine"
    replaced = CliRunner().invoke(
        app, ["report", str(run), "--out", str(tmp_path / "old.html"), "--no-data", "--overwrite"]
    )
    assert replaced.exit_code == 0
    assert "Columns kept" in Page((tmp_path / "old.html").read_text(encoding="utf-8")).tables
    with pytest.raises(ReportError, match="is a folder"):
        write_report([str(run)], str(tmp_path), with_data=False, overwrite=True)


def test_large_data_is_read_only_if_asked_for(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ham_dist.report.page.MAX_ROWS_READ", 999)
    caplog.set_level("INFO", logger="ham_dist")
    skipped = f"{run / 'data'}: has 1,000 rows; more than 999 are read only with --data"
    page = report(run, out=tmp_path / "unasked.html", with_data=None)
    assert page.warnings == [f"No statistics of the data: {skipped}"]
    assert caplog.messages == [f"no statistics of the data: {skipped}"]
    assert "Splits" not in page.tables
    assert "Splits" in report(run, out=tmp_path / "asked.html", with_data=True).tables
    never = report(run, out=tmp_path / "never.html", with_data=False)
    assert "data-1" not in never.ids()


def test_without_matplotlib_the_mend_is_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused = CliRunner().invoke(app, ["report", str(run), "--out", str(tmp_path / "x.html")])
    assert refused.exit_code == 2
    assert (
        refused.stderr
        == "ham-dist: report: matplotlib is not installed. Install it with pip install 'ham-dist[report]'\n"
    )


@pytest.mark.parametrize("name", ["run.toml", "environment.json", "metrics.jsonl"])
def test_a_file_of_the_run_is_never_replaced(copy: Path, name: str) -> None:
    before = (copy / name).read_bytes()
    with pytest.raises(ReportError, match="is not a report, and --overwrite replaces only reports"):
        write_report([str(copy)], str(copy / name), with_data=False, overwrite=True)
    assert (copy / name).read_bytes() == before
