"""A test split whose labels are all alike has no AUC: null with the reason, never 0.5."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from ham_dist.cli.describe import describe
from ham_dist.data.format.manifest import Manifest, SplitEntry
from ham_dist.data.format.shards import LABEL, shard_name, write_shard
from ham_dist.data.synthetic.write import generate
from ham_dist.report.page import write_report
from tests.support.html_page import Page
from tests.support.small_run import tiny_run
from tests.support.whole_runs import do_run, metrics

REASON = "all 100 samples of test have label 0"


def without_positives(folder: Path) -> None:
    """Generated data whose test split has no positive sample."""
    manifest = generate(tiny_run().data.synthetic, folder)
    file = shard_name("test", 0)
    table = pq.read_table(folder / file)
    zeros = pa.array([0] * table.num_rows, pa.int8())
    table = table.set_column(table.column_names.index(LABEL), LABEL, zeros)
    stored, positives = write_shard(folder, file, [table], table.schema)
    split = SplitEntry(rows=table.num_rows, positives=positives, shards=(stored,))
    manifest.model_copy(update={"splits": {**manifest.splits, "test": split}}).save(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one class")
    without_positives(folder / "data")
    do_run(tiny_run(data={"path": str(folder / "data")}), folder / "run")
    return folder / "run"


def test_the_result_has_null_and_the_reason(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = json.loads((run / "result.json").read_text())
    assert (result["test_auc"], result["supernet"]["auc"]) == (None, None)
    assert result["test_auc_undefined"] == REASON
    assert result["test_logloss"] > 0
    assert metrics(run)[-1]["test_auc"] is None
    assert f"warning: {REASON}: the test AUC is not defined" in (run / "log.txt").read_text()
    do_run(tiny_run(data={"path": str(run.parent / "data")}), run, resume=True)
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "test AUC" in line]
    assert line.split() == ["test", "AUC", "not", "defined", "not", "defined", "\N{EN DASH}"]


def test_tables_and_reports_say_so(run: Path, tmp_path: Path) -> None:
    stream = io.StringIO()
    for part in describe(run):
        Console(file=stream, width=120).print(part)
    assert "not defined" in stream.getvalue()
    write_report([str(run)], str(tmp_path / "x.html"), with_data=False, overwrite=False)
    page = Page((tmp_path / "x.html").read_text(encoding="utf-8"))
    assert "not defined" in page.tables[""][1]
    assert page.warnings == [f"The test AUC is not defined: {REASON}."]
    assert "0.5000" not in (tmp_path / "x.html").read_text()


def test_the_truth_of_generated_data_may_have_no_auc(tmp_path: Path) -> None:
    manifest = generate(tiny_run().data.synthetic, tmp_path)
    assert manifest.truth is not None
    truth = manifest.truth.model_copy(update={"bayes_auc": None})
    manifest.model_copy(update={"truth": truth}).save(tmp_path)
    assert Manifest.load(tmp_path).truth == truth
