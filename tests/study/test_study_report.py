"""The report of a study: page, files and the command, with whole, partial and negative results."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tomlkit
import torch
from typer.testing import CliRunner

from ham_dist.cli import app
from ham_dist.errors import ReportError
from ham_dist.export.bundle import open_bundle
from ham_dist.study.comparison import Comparison
from ham_dist.study.cosines import Cosines, column_cosines, cosines_of
from ham_dist.study.figures import against, by_size, cosine_maps
from ham_dist.study.folder import StudyFolder
from ham_dist.study.grid import open_study
from ham_dist.study.outcomes import read_results
from ham_dist.study.page import PAGE, write_study_report
from ham_dist.study.worker import work
from tests.support.html_page import Page
from tests.support.small_run import tiny_run
from tests.support.study_results import grid, outcome, write_study

PLACE = ("ml", "dcnv2")


NOISE = {
    "ham": (0, 3, 1, 4), "sam": (2, 1, 4, 0), "better": (1, 2, 0, 3), "equal": (3, 1, 2, 2),
    "autodim": (0, 1, 3, 2),
}  # fmt: skip


def auc(arm: str, size: int, seed: int) -> float:
    lead = {"ham": 0.0, "sam": -0.02, "better": 0.01, "equal": 0.0, "autodim": -0.001}[arm]
    return 0.88 + lead + size / 10_000 + 0.0001 * NOISE[arm][seed]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    outcomes = grid(auc, ("ham", "sam", "better", "equal", "autodim"))
    outcomes += [outcome("supernet", seed, None, auc=0.881) for seed in range(4)]
    return write_study(tmp_path / "study", outcomes)


def test_page_and_files(study: Path) -> None:
    out = study / "report"
    write_study_report(study, out)
    page = Page((out / PAGE).read_text(encoding="utf-8"))
    header, *rows = page.tables["Test AUC"]
    assert header[:3] == ["size", "arm", "test AUC"]
    assert ["28", "ham", f"{sum(auc('ham', 28, seed) for seed in range(4)) / 4:.4f}"] in [r[:3] for r in rows]
    assert len(page.ids()) == len(set(page.ids()))
    for name in ("main", "sizes", "gains", "supernet", "settings", "versions"):
        for suffix in (".md", ".csv", ".tex"):
            assert (out / "tables" / f"{name}{suffix}").stat().st_size > 0
    assert {path.name for path in (out / "figures").iterdir()} == {"sizes-1.svg", "autodim-1.svg"}
    assert page.markers["sizes-1-size-0"] == 2
    assert page.markers["autodim-1-1-0"] == 2


def test_findings_name_losses_as_plainly_as_gains(study: Path) -> None:
    (line,) = write_study_report(study, study / "report")
    assert re.search(r"ham is better than sam \(\+0\.0\d+, p [<=]", line)
    assert re.search(r"; worse than better \(-0\.0\d+, p [<=]", line)
    assert re.search(r"; not distinguishable from equal \(", line)


def test_a_report_of_the_first_branches(tmp_path: Path) -> None:
    """The page of one branch that is not tested."""
    folder = write_study(tmp_path / "study", [outcome("sam", 0)], tested=False)
    (line,) = write_study_report(folder, folder / "report")
    assert line == "dcnv2 on ml: sam is without rivals."
    page = Page((folder / "report" / PAGE).read_text(encoding="utf-8"))
    assert page.tables["Validation AUC"][1][2] == "0.8100"
    assert any("No claim rests on them" in warning for warning in page.warnings)


def test_only_the_supernet_or_failures(tmp_path: Path) -> None:
    failed = outcome("ham", 0, error="killed", validation_auc=None)
    folder = write_study(tmp_path / "study", [outcome("supernet", 0, None), failed])
    (line,) = write_study_report(folder, folder / "report")
    assert line == "dcnv2 on ml: ham is without rivals."
    page = Page((folder / "report" / PAGE).read_text(encoding="utf-8"))
    assert page.tables["Failures"][1][-1] == "killed"


def test_an_earlier_report_is_replaced_and_other_files_are_not(study: Path, tmp_path: Path) -> None:
    write_study_report(study, tmp_path / "out")
    write_study_report(study, tmp_path / "out", reference="sam")
    assert "over sam" in (tmp_path / "out" / PAGE).read_text(encoding="utf-8")
    other = tmp_path / "other"
    other.mkdir()
    (other / "main.csv").write_text("mine")
    with pytest.raises(ReportError, match="is a folder of other files"):
        write_study_report(study, other)
    with pytest.raises(ReportError, match="is a file"):
        write_study_report(study, other / "main.csv")


def test_text_is_escaped_on_the_page(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", [outcome("<b>", 0), outcome("$x_1$", 0)])
    write_study_report(folder, folder / "report", reference="<b>")
    page = Page((folder / "report" / PAGE).read_text(encoding="utf-8"))
    assert "b" not in page.tags
    assert "$x_1$" in page.texts


def test_the_command(study: Path) -> None:
    done = CliRunner().invoke(app, ["study", "report", str(study), "--out", str(study / "r")])
    assert done.exit_code == 0, done.output
    assert "ham is better than sam" in done.output
    assert (study / "r" / PAGE).is_file()


def test_the_report_loads_no_torch(study: Path) -> None:
    script = (
        "import sys\nfrom ham_dist.study.page import write_study_report\nfrom pathlib import Path\n"
        "write_study_report(Path(sys.argv[1]), Path(sys.argv[1]) / 'r')\nprint('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(study)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_figure_by_size_marks_every_mean_and_names_what_it_leaves_out(tmp_path: Path) -> None:
    outcomes = grid(auc, ("ham", "equal", "autodim", "sam"))
    outcomes += [outcome("pep", seed, 14, auc=0.88, stored_bytes=60_000) for seed in range(3)]
    found = Comparison(read_results(write_study(tmp_path, outcomes)))
    figure = by_size("x", found, PLACE)
    assert figure is not None
    page = Page(figure.svg)
    arms = found.arms(PLACE)
    for number, arm in enumerate(arms):
        assert page.markers.get(f"x-size-{number}", 0) == (0 if arm == "pep" else 2)
        assert page.markers.get(f"x-parameters-{number}", 0) == {"pep": 1, "sam": 0}.get(arm, 2)
    assert "left out on the right: sam." in figure.caption
    assert "only on the right: pep." in figure.caption
    assert "embedding parameters" in page.texts
    assert "test AUC" in page.texts
    assert figure.svg == getattr(by_size("x", found, PLACE), "svg", None), "equal results give equal bytes"


def test_figure_of_two_arms(study: Path) -> None:
    found = Comparison(read_results(study))
    assert against("x", found, "ml", ["ham", "missing"]) is None
    assert against("x", found, "frappe", ["ham", "autodim"]) is None


def test_cosines_by_hand() -> None:
    table = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    found = column_cosines(table)
    half = 1 / np.sqrt(2)
    assert found[:2, :2] == pytest.approx(np.array([[1, half], [half, 1]]))
    assert np.isnan(found[2]).all(), "a column of zeros has no direction"
    assert Cosines("x", found).mean == pytest.approx(half)


def test_cosines_of_a_large_table_are_float64() -> None:
    """1e4 rows of a large common part: sums in float32 would be off in the fourth digit."""
    random = torch.Generator().manual_seed(0)
    table = torch.randn(10_000, 4, generator=random) + 100
    wide = table.double().numpy()
    expected = wide.T @ wide / np.outer(np.linalg.norm(wide, axis=0), np.linalg.norm(wide, axis=0))
    assert column_cosines(table) == pytest.approx(expected, abs=1e-12)


def test_heat_maps_have_a_cell_for_each_pair_of_columns() -> None:
    random = torch.Generator().manual_seed(0)
    tables = {"genre": torch.randn(50, 4, generator=random), "one": torch.randn(5, 1, generator=random)}
    arms = {"with": cosines_of(tables), "without": cosines_of({"genre": tables["genre"] + 3})}
    assert list(arms["with"]) == ["genre"]
    figure = cosine_maps("x", arms, "DCN-V2, seed 0")
    assert figure is not None
    for number in range(2):
        (mesh,) = re.findall(rf'<g id="x-{number}-0">(.*?)</g>', figure.svg, flags=re.DOTALL)
        assert mesh.count("<path") == 16
    assert "<image" not in figure.svg, "a page may not hold images"
    assert cosine_maps("x", {"with": arms["with"], "other": {}}, "") is None


@pytest.fixture(scope="module")
def whole_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two pretrained supernets, one of them without orthogonality, and one search from each."""
    folder = tmp_path_factory.mktemp("whole")
    sections = {"data", "model", "pretrain", "search", "retrain"}
    base = tiny_run().model_dump(mode="json", exclude_none=True, include=sections)
    base["data"] = {key: base["data"][key] for key in ("batch_size", "synthetic")}
    del base["search"]["targets"]
    arms = [{"label": "ham"}, {"label": "none", "set": {"orthogonality": {"form": "none"}}}]
    study = {"name": "tiny", "base": base, "test": True, "targets": [{"columns": 4}], "arms": arms}
    (folder / "tiny.toml").write_text(tomlkit.dumps(study), encoding="utf-8")
    opened = StudyFolder(folder / "study", open_study(folder / "tiny.toml"))
    opened.write_grid()
    work(opened)
    return opened.path


def test_the_report_of_a_real_study(whole_study: Path, tmp_path: Path) -> None:
    write_study_report(whole_study, tmp_path / "report")
    page = Page((tmp_path / "report" / PAGE).read_text(encoding="utf-8"))
    rows = {tuple(row[:2]) for row in page.tables["Validation AUC"][1:]}
    assert rows >= {("4", "ham"), ("4", "none"), ("all, pretrained", "supernet")}
    ids = set(page.ids())
    assert {"course-1-used", "cosines-1-0-0", "cosines-1-1-0"} <= ids
    cosines = page.tables["Cosines between the columns of pretrained tables"]
    assert {row[3] for row in cosines[1:]} == {"supernet", "supernet+none"}
    results = read_results(whole_study)
    (supernet,) = [o for o in results.outcomes if o.arm == "supernet+none"]
    table = open_bundle(results.folders[supernet.key] / "bundle").tables()["field_0"].double()
    unit = table / table.norm(dim=0)
    expected = float((unit.T @ unit - torch.eye(4)).abs().sum() / 12)
    (row,) = [row for row in cosines if row[2:4] == ["field_0", "supernet+none"]]
    assert row[4] == f"{expected:.4f}"
