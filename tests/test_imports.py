import subprocess
import sys

import pytest

HEAVY = {"torch", "torchrec", "fbgemm_gpu", "pydantic", "numpy", "pyarrow", "ibis", "tensorboard", "matplotlib", "jinja2"}
HELP = "import sys; sys.argv = ['ham-dist', {}]\nfrom ham_dist.cli import main\ntry: main()\nexcept SystemExit: pass"


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import ham_dist", set()),
        ("import ham_dist.cli", set()),
        ("import ham_dist.backend; ham_dist.backend.backend_problem()", set()),
        (HELP.format("'--help'"), set()),
        # typer may ask pydantic about the types of a command's options.
        (HELP.format("'train', '--help'"), {"pydantic"}),
        (HELP.format("'report', '--help'"), {"pydantic"}),
        # The look at data; figures and page are drawn by libraries that are loaded with the first of them.
        ("import ham_dist.report.page", {"pydantic", "numpy", "pyarrow", "ibis"}),
    ],
    ids=["package", "cli", "backend", "help", "train-help", "report-help", "report"],
)
def test_nothing_heavy_is_loaded(code: str, allowed: set[str]) -> None:
    script = f"{code}\nimport sys\nprint('loaded', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.split("loaded ")[1].split())
    assert "ham_dist" in loaded
    assert loaded & HEAVY <= allowed
