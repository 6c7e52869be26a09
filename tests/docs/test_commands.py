"""The commands and examples of README.md and docs/ are run unchanged, on small data with fewer epochs."""

import ast
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

from ham_dist.config.load import load_run
from ham_dist.data.recipe.load import Recipe, load_recipe
from ham_dist.export.bundle import open_bundle
from ham_dist.export.scorer import score
from ham_dist.study.grid import open_study
from tests.support.documents import PAGES, blocks, commands, run, run_page
from tests.support.forked import ROOT
from tests.support.raw_movielens import write_raw_movielens

LANGUAGES = {"sh", "python", "toml", "text", "json"}


@pytest.fixture(scope="module")
def readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository's root, with raw ratings, after the commands of README.md."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("launch", "ham_dist", "datasets", ".torchxconfig"):
        (folder / name).symlink_to(ROOT / name)
    write_raw_movielens(folder / "ml-1m", ratings=6_000)
    run_page(PAGES["README"], folder)
    return folder


def test_readme_runs(readme: Path) -> None:
    assert (readme / "runs/movielens/report.html").stat().st_size > 0
    assert len((readme / "runs/movielens/probabilities.csv").read_text(encoding="utf-8").splitlines()) > 5_000


@pytest.mark.parametrize("name", [name for name in PAGES if name != "README"])
def test_page_runs_after_the_readme(name: str, readme: Path, tmp_path: Path) -> None:
    """A page may use what README.md has written: data/movielens-1m and runs/movielens."""
    if not any(block.language in ("sh", "python") and block.not_run is None for block in blocks(PAGES[name])):
        return
    shutil.copytree(readme, tmp_path / "copy", symlinks=True)
    run_page(PAGES[name], tmp_path / "copy")


def test_readme_shows_every_step() -> None:
    shown = commands(PAGES["README"])
    kinds = {command.split()[1] for command in shown if command.startswith("ham-dist")}
    assert kinds >= {"prepare", "train", "export", "score", "report", "inspect"}
    assert "torchx run dist.ddp -j 1x8 ham_dist/train.py" in shown


def test_readme_example_needs_ten_added_lines(tmp_path: Path) -> None:
    (example,) = [block.code for block in blocks(PAGES["README"]) if block.language == "python"]
    added = [line for line in example.splitlines() if line.endswith("# +")]
    assert 0 < len(added) <= 10
    shown = "from ham_dist.export.bundle import open_bundle\nprint(sorted(open_bundle('bundle').tables()))\n"
    code = f"{example}\n{shown}"
    counts = ast.literal_eval(run(["python", "-c", code], tmp_path).splitlines()[0])
    assert sum(counts.values()) == 10
    assert counts["hour"] < min(counts["user"], counts["item"]), "the field that is pure noise keeps least"


def test_bundle_reader_of_the_page_gives_the_scores_of_ham_dist(
    readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader in NumPy on the bundle-format page, held against `ham-dist score`."""
    (code,) = [block.code for block in blocks(PAGES["bundle-format"]) if block.language == "python"]
    monkeypatch.chdir(readme)
    names: dict[str, object] = {}
    exec(code, names)
    bundle = open_bundle("runs/movielens/bundle-fp16")
    tables = names["tables"]
    assert isinstance(tables, dict)
    assert tables.keys() == bundle.tables().keys()
    for field, table in bundle.tables().items():
        assert np.array_equal(tables[field], table.numpy())
    score("runs/movielens/bundle-fp16", "data/movielens-1m/test", tmp_path / "scores.csv")
    expected = np.loadtxt(tmp_path / "scores.csv", skiprows=1)
    found = names["probabilities"]
    assert isinstance(found, np.ndarray)
    assert np.ptp(expected[: len(found)]) > 1e-4, "the samples differ in their scores"
    # float32 sums in another order
    assert np.abs(found - expected[: len(found)]).max() < 1e-6


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_run_or_gives_a_reason(name: str) -> None:
    text = PAGES[name].read_text(encoding="utf-8")
    found = blocks(PAGES[name])
    assert {block.language for block in found} <= LANGUAGES
    assert text.count("*Not run by the tests: ") == sum(block.not_run is not None for block in found)
    outside = text
    for block in found:
        outside = outside.replace(block.code, "")
    indented = [line for line in outside.splitlines() if line.startswith("    ") and "ham-dist" in line]
    assert indented == [], "commands stand in fenced blocks, so that they are run"


@pytest.mark.parametrize("name", PAGES)
def test_toml_blocks_are_valid(name: str, tmp_path: Path) -> None:
    for number, block in enumerate(block for block in blocks(PAGES[name]) if block.language == "toml"):
        path = tmp_path / f"{number}.toml"
        path.write_text(block.code, encoding="utf-8")
        keys = tomllib.loads(block.code).keys()
        if "arms" in keys:
            open_study(path)
        elif keys & {"name", "source"}:
            load_recipe(str(path))
        elif not keys <= Recipe.model_fields.keys():
            load_run(str(path))
