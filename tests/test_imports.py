import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "torch",
    "torchrec",
    "fbgemm_gpu",
    "pydantic",
    "numpy",
    "pyarrow",
    "ibis",
    "tensorboard",
    "matplotlib",
    "jinja2",
    "scipy",
}
HELP = (
    "import sys; sys.argv = ['ham-dist', {}]\n"
    "from ham_dist.cli import main\ntry: main()\nexcept SystemExit: pass"
)


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import ham_dist", set()),
        ("import ham_dist.cli", set()),
        ("import ham_dist.backend; ham_dist.backend.backend_problem()", set()),
        (HELP.format("'--help'"), set()),
        # typer may use pydantic for the types of a command's options.
        (HELP.format("'train', '--help'"), {"pydantic"}),
        (HELP.format("'report', '--help'"), {"pydantic"}),
        # Statistics of data. Libraries for figures and the page are loaded with the first of them.
        ("import ham_dist.report.page", {"pydantic", "numpy", "pyarrow", "ibis"}),
    ],
    ids=["package", "cli", "backend", "help", "train-help", "report-help", "report"],
)
def test_nothing_heavy_is_loaded(code: str, allowed: set[str]) -> None:
    script = f"{code}\nimport sys\nprint('loaded', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=600
    )
    loaded = set(done.stdout.split("loaded ")[1].split())
    assert "ham_dist" in loaded
    assert loaded & HEAVY <= allowed


def test_every_measurement_finds_what_it_imports() -> None:
    """The scripts of perf/ run rarely, so a moved name would be found late there."""
    folder = Path(__file__).parents[1] / "perf"
    names = sorted(path.stem for path in folder.glob("*.py"))
    assert names
    subprocess.run(
        [sys.executable, "-c", f"for name in {names}: __import__(name)"], cwd=folder, check=True, timeout=600
    )
