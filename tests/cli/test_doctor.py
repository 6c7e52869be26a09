import io

import pytest
from rich.console import Console

from ham_dist import backend
from ham_dist.cli import doctor


def _report() -> tuple[bool, str]:
    stream = io.StringIO()
    well = doctor.report(Console(file=stream, width=200, soft_wrap=True))
    return well, stream.getvalue()


def test_this_machine_can_run() -> None:
    well, text = _report()
    assert well, text
    assert "ok  gloo: available" in text


def test_a_problem_is_printed_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        backend, "installed", {"torch": "2.13.0", "torchrec": "1.6.0", "fbgemm-gpu-cpu": "1.8.0"}.get
    )
    well, text = _report()
    assert not well
    assert "NOT versions: torch 2.13.0, torchrec 1.6.0 and fbgemm-gpu-cpu 1.8.0 do not fit together" in text
    assert "      pip install --no-deps --force-reinstall torchrec==1.8.*" in text


def test_a_problem_that_runs_do_not_need_fixed_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    well, text = _report()
    assert well, text
    assert "-   torchrun: is not on PATH" in text
