"""Files of version 0.1.0 open: its data trains, its runs resume, export and report, its bundle scores.

Numbers are compared to a tolerance, since another processor may have computed them: logits of the same
weights differ by some 1e-7 there, and training carries that on. Splits of some hundred rows have few pairs
that such a difference could exchange, so the test AUC is compared to 1e-3, which is a handful of them.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ham_dist.cli import app
from ham_dist.export.bundle import open_bundle
from ham_dist.training.run_folder import read_json
from tests.support.earlier_version import unpack

PROBABILITY = 1e-5
"""Tolerance of a probability, and of a log loss."""
AUC = 1e-3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The unpacked files, in the working directory: their runs name the data by a relative path."""
    monkeypatch.chdir(unpack(tmp_path))
    return tmp_path


def command(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.stderr
    return result.output


def probabilities(path: str) -> list[float]:
    return [float(line) for line in Path(path).read_text().splitlines()]


def test_the_unfinished_run_resumes_and_ends_as_the_finished_one(folder: Path) -> None:
    command("train", "--run-dir", "unfinished", "--resume")
    ours, theirs = read_json(Path("unfinished/result.json")), read_json(Path("finished/result.json"))
    for name in ("model", "method", "dataset", "seed", "target", "kept_columns", "embedding_bytes", "epochs"):
        assert ours[name] == theirs[name], name
    assert ours["test_logloss"] == pytest.approx(theirs["test_logloss"], abs=PROBABILITY)
    assert ours["test_auc"] == pytest.approx(theirs["test_auc"], abs=AUC)
    tables, wanted = (
        open_bundle(Path("unfinished/bundle")).tables(),
        open_bundle(Path("finished/bundle")).tables(),
    )
    assert tables.keys() == wanted.keys()
    for name, table in tables.items():
        torch.testing.assert_close(table, wanted[name], rtol=0, atol=1e-5)
    assert read_json(Path("unfinished/identity.json"))["earlier"] is True
    assert read_json(Path("unfinished/identity.json"))["settings"]["data.path"] == str(folder / "data")


def test_the_finished_run_exports_and_reports(folder: Path) -> None:
    command("export", "finished", "--out", "bundle")
    command("score", "bundle", "data/test", "--out", "ours.txt")
    assert probabilities("ours.txt") == pytest.approx(probabilities("scores.txt"), abs=PROBABILITY)
    command("report", "finished", "unfinished", "--out", "report.html", "--data")
    page = Path("report.html").read_text(encoding="utf-8")
    assert f"{read_json(Path('finished/result.json'))['test_auc']:.4f}" in page
    assert "not done" in page
    assert "columns-9" in command("inspect", "finished")


def test_a_moved_run_whose_data_moved_too_exports(folder: Path) -> None:
    Path("data").rename("data-2")
    shutil.move("finished", "elsewhere")
    settings = Path("elsewhere/run.toml")
    settings.write_text(settings.read_text().replace('path = "data"', f'path = "{folder / "data-2"}"'))
    command("export", "elsewhere", "--out", "bundle")


def test_the_bundle_scores_as_it_did(folder: Path) -> None:
    command("score", "finished/bundle", "data/test", "--out", "ours.txt")
    assert probabilities("ours.txt") == pytest.approx(probabilities("scores.txt"), abs=PROBABILITY)
    assert "a bundle, dcnv2" in command("inspect", "finished/bundle")


def test_the_data_trains(folder: Path) -> None:
    refused = CliRunner().invoke(app, ["train", "settings.toml", "--run-dir", "new"])
    assert refused.exit_code == 2
    assert "model.base_width: no such key. It is called model.base_dim" in refused.stderr
    settings = Path("settings.toml")
    settings.write_text(settings.read_text().replace("base_width", "base_dim"))
    short = ["--set=pretrain.max_epochs=1", "--set=search.epochs=1", "--set=retrain.max_epochs=1"]
    command("train", "settings.toml", *short, "--run-dir", "new")
    result = json.loads(Path("new/result.json").read_text())
    assert result["epochs"] == {"pretrain": 1, "search": 1, "retrain": 1}
    assert "prepared data, movielens-1m" in command("inspect", "data")
