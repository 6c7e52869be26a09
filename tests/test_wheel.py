"""The files of an installed wheel that are not Python are found without a clone."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program `ham-dist` of a wheel, in an environment with this one's libraries but not its ham_dist."""
    pytest.importorskip("setuptools", "77", reason="setuptools builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("ham_dist", "launch", "datasets"):
        shutil.copytree(ROOT / name, folder / "clone" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "clone")
    built = run(sys.executable, "-c", BUILD, folder, cwd=folder / "clone")
    assert built.returncode == 0, built.stderr
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder).check_returncode()
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    (wheel,) = folder.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--python", folder / "venv" / "bin" / "python")
    done = run(*pip, "install", "--no-deps", "--no-index", "--force-reinstall", wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "clone")
    return folder / "venv" / "bin" / "ham-dist"


def test_recipes_and_sources_come_with_the_wheel(installed: Path, tmp_path: Path) -> None:
    fetched = run(installed, "fetch", "movielens-1m", "--out", "ml-1m", cwd=tmp_path)
    assert fetched.returncode == 2
    assert fetched.stdout.startswith("https://grouplens.org/datasets/movielens/1m/\n")
    assert "fetch movielens-1m: nothing was fetched\n  If you accept the licence above" in fetched.stderr
    assert (
        "Give one of: avazu, criteo-1tb, criteo-kaggle, frappe, movielens-1m."
        in run(installed, "fetch", "x", "--out", "x", cwd=tmp_path).stderr
    )
    (tmp_path / "empty").mkdir()
    prepared = run(installed, "prepare", "avazu", "--raw", "empty", "--out", "data", cwd=tmp_path)
    assert "empty: lacks train (plain or with .gz behind the name)" in prepared.stderr


def test_the_page_of_reports_comes_with_the_wheel(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "run.toml").write_text("seed = 3\n")
    done = run(installed, "report", "run", "--out", "x.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "<title>ham-dist report</title>" in (tmp_path / "x.html").read_text(encoding="utf-8")
