import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ham_dist import backend
from ham_dist.errors import BackendError


def _install(monkeypatch: pytest.MonkeyPatch, packages: dict[str, str], nvidia: bool = False) -> None:
    monkeypatch.setattr(backend, "installed", packages.get)
    monkeypatch.setattr(backend, "has_nvidia_driver", lambda: nvidia)


@pytest.mark.parametrize(
    "packages",
    [
        {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"},
        {"torch": "2.11.1", "torchrec": "1.6.0", "fbgemm-gpu": "1.6.0"},
    ],
)
def test_supported_trios_pass(monkeypatch: pytest.MonkeyPatch, packages: dict[str, str]) -> None:
    _install(monkeypatch, packages)
    backend.require_backend()


@pytest.mark.parametrize(
    ("packages", "nvidia", "problem", "fix"),
    [
        (
            {"torch": "2.13.0", "torchrec": "1.6.0", "fbgemm-gpu-cpu": "1.8.0"},
            False,
            "torch 2.13.0, torchrec 1.6.0 and fbgemm-gpu-cpu 1.8.0 do not fit together",
            "pip install --no-deps --force-reinstall torchrec==1.8.* fbgemm-gpu-cpu==1.8.*",
        ),
        (
            {"torch": "2.11.0", "torchrec": "1.6.0"},
            True,
            "fbgemm-gpu is not installed",
            "pip install --no-deps --force-reinstall torchrec==1.6.* fbgemm-gpu==1.6.*",
        ),
        (
            {"torch": "1.9.0", "torchrec": "1.8.0", "fbgemm-gpu": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"},
            False,
            "fbgemm-gpu and fbgemm-gpu-cpu are both installed",
            "pip uninstall -y fbgemm-gpu && pip install torch==2.13.* && "
            "pip install --no-deps --force-reinstall torchrec==1.8.*",
        ),
        (
            {},
            False,
            "torch and torchrec and fbgemm-gpu are not installed",
            "pip install torch==2.13.* && pip install --no-deps",
        ),
    ],
)
def test_other_trios_are_refused_with_the_commands(
    monkeypatch: pytest.MonkeyPatch, packages: dict[str, str], nvidia: bool, problem: str, fix: str
) -> None:
    _install(monkeypatch, packages, nvidia)
    with pytest.raises(BackendError) as caught:
        backend.require_backend()
    first, second = str(caught.value).splitlines()
    assert first.startswith(problem)
    assert second.startswith(f"  {fix}")


def test_the_installed_trio_is_supported() -> None:
    backend.require_backend()


ROOT = Path(__file__).parents[1]


def test_pyproject_takes_the_torch_of_each_supported_trio_and_no_other() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (torch,) = (
        needed
        for needed in map(Requirement, project["dependencies"])
        if needed.name in {"torch", "torchrec", *backend.FBGEMM_BUILDS}
    )
    assert torch.name == "torch"
    taken = {
        f"{major}.{minor}"
        for major in range(1, 4)
        for minor in range(30)
        if torch.specifier.contains(f"{major}.{minor}.1")
    }
    assert taken == {trio.torch for trio in backend.SUPPORTED}


def test_the_makefile_installs_the_newest_supported_trio() -> None:
    names = "TORCH|TORCHREC|FBGEMM_VERSION"
    pinned = dict(
        re.findall(rf"^({names}) \?= (\d+\.\d+)\.\d+$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    )
    newest = backend.SUPPORTED[0]
    assert pinned == {"TORCH": newest.torch, "TORCHREC": newest.torchrec, "FBGEMM_VERSION": newest.fbgemm}
