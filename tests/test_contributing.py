"""CONTRIBUTING.md: its code is extracted and runs as a contributor would run it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ham_dist.export.manifest import MANIFEST

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCK = re.compile(r'^```(\w+)(?: title="(\S+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def _run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the page."""
    folder = tmp_path_factory.mktemp("contributing")
    for _, title, code in BLOCK.findall(PAGE):
        if title:
            (folder / title).write_text(code, encoding="utf-8")
    return folder


def test_a_method_and_a_model_of_ones_own_go_through_training_slicing_and_export_on_two_ranks(
    written: Path,
) -> None:
    shell = [line for kind, title, code in BLOCK.findall(PAGE) if kind == "sh" for line in code.splitlines()]
    train = "torchrun --nproc-per-node 2 with_mine.py train mine.toml --run-dir runs/mine"
    export = "torchrun --nproc-per-node 2 with_mine.py export runs/mine --out bundles/mine --precision bf16"
    look = "python with_mine.py inspect bundles/mine"
    assert shell[-3:] == [train, export, look]
    _run(written, "-m", "torch.distributed.run", *train.split()[1:])
    result = json.loads((written / "runs/mine/result.json").read_text())
    assert (result["model"], result["method"], result["world_size"]) == ("plain_mlp", "saliency", 2)
    assert sum(result["kept_columns"].values()) == 4
    assert result["epochs"]["search"] == 1
    manifest = json.loads((written / "runs/mine/bundle" / MANIFEST).read_text())
    assert manifest["model"]["hidden"] == [8]
    assert manifest["verified"]["max_difference"] <= 1e-6
    _run(written, "-m", "torch.distributed.run", *export.split()[1:])
    exported = json.loads((written / "bundles/mine" / MANIFEST).read_text())
    assert {table["codec"] for table in exported["tables"]} == {"bf16"}
    assert 0 < exported["verified"]["max_difference"] <= 1e-2
    assert "plain_mlp" in _run(written, *look.split()[1:])


@pytest.mark.parametrize(
    "folder", ["cli", "stages", "methods", "models", "distributed", "data", "config", "io"]
)
def test_the_folders_that_the_page_names_exist(folder: str) -> None:
    assert f"`{folder}/`" in PAGE
    assert (ROOT / "ham_dist" / folder).is_dir()


def test_the_places_of_a_kind_of_recipe_field_exist() -> None:
    section = PAGE.partition("## Add a kind of recipe field")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\S+)` \| (.+) \|$", section, re.MULTILINE)
    assert len(rows) == 10
    for place, text in rows:
        path = ROOT / place if (ROOT / place).exists() else ROOT / "ham_dist" / place
        content = path.read_text(encoding="utf-8")
        names = [name for name in re.findall(r"`([A-Za-z_.]+)`", text) if name != "case"]
        for name in names:
            assert name.rpartition(".")[2] in content, f"{place} has no {name}"
