"""Whether the installed torch, torchrec and fbgemm-gpu were built for one another; asked before the first of them is imported."""

import shutil
from dataclasses import dataclass
from importlib import metadata

from ham_dist.errors import BackendError


@dataclass(frozen=True)
class Trio:
    """Versions (`major.minor`) of torch, torchrec and fbgemm-gpu that work together."""

    torch: str
    torchrec: str
    fbgemm: str


# torchrec's release notes name the torch and fbgemm-gpu of each release; only pairs that the tests were run with stand here, the newest first.
SUPPORTED = (Trio("2.13", "1.8", "1.8"), Trio("2.11", "1.6", "1.6"))
FBGEMM_BUILDS = ("fbgemm-gpu", "fbgemm-gpu-cpu")


def require_backend() -> None:
    """Check the trio without importing it (that takes seconds, and a wrong one can end the process).

    raises: BackendError that says what is installed and the commands that mend it.
    """
    problem = backend_problem()
    if problem:
        raise BackendError(f"{problem}\n  {mend()}")


def backend_problem() -> str | None:
    """What is wrong with the installed trio; None if it is supported."""
    builds = {build: version for build in FBGEMM_BUILDS if (version := installed(build))}
    torch, torchrec = installed("torch"), installed("torchrec")
    if len(builds) > 1:
        return "fbgemm-gpu and fbgemm-gpu-cpu are both installed, and each overwrites the other's files"
    missing = [
        name
        for name, version in (
            ("torch", torch),
            ("torchrec", torchrec),
            ("fbgemm-gpu", "".join(builds.values())),
        )
        if not version
    ]
    if missing:
        return f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed"
    (build, fbgemm), *_ = builds.items()
    found = Trio(_minor(torch or ""), _minor(torchrec or ""), _minor(fbgemm))
    if found in SUPPORTED:
        return None
    known = "; ".join(
        f"torch {trio.torch}, torchrec {trio.torchrec}, fbgemm-gpu {trio.fbgemm}" for trio in SUPPORTED
    )
    return f"torch {torch}, torchrec {torchrec} and {build} {fbgemm} do not fit together; supported: {known}"


def mend() -> str:
    """The commands that install a supported trio: the one of the installed torch if there is one, else the newest."""
    torch = _minor(installed("torch") or "")
    trio = next((trio for trio in SUPPORTED if trio.torch == torch), SUPPORTED[0])
    wanted, other = (
        ("fbgemm-gpu", "fbgemm-gpu-cpu") if has_nvidia_driver() else ("fbgemm-gpu-cpu", "fbgemm-gpu")
    )
    commands = [f"pip uninstall -y {other}"] if installed(other) else []
    if trio.torch != torch:
        commands.append(f"pip install torch=={trio.torch}.*")
    commands.append(
        f"pip install --no-deps --force-reinstall torchrec=={trio.torchrec}.* {wanted}=={trio.fbgemm}.*"
    )
    return " && ".join(commands)


def has_nvidia_driver() -> bool:
    """Whether this machine has NVIDIA's driver, as far as can be told without torch."""
    return shutil.which("nvidia-smi") is not None


def installed(package: str) -> str | None:
    """Version of an installed package, None without it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])
