"""Checks that the installed torch, torchrec and fbgemm-gpu fit together, before they are imported."""

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


# torchrec's release notes name the torch and fbgemm-gpu of each release. This list has only versions that the
# tests were run with, the newest first.
SUPPORTED = (Trio("2.13", "1.8", "1.8"), Trio("2.11", "1.6", "1.6"))
FBGEMM_BUILDS = ("fbgemm-gpu", "fbgemm-gpu-cpu")


def require_backend() -> None:
    """Checks the versions without importing the packages.

    An import takes seconds, and can crash if the versions do not fit.

    Raises:
        BackendError: The versions do not fit; the message has the commands that install supported ones.
    """
    problem = backend_problem()
    if problem:
        raise BackendError(f"{problem}\n  {install_commands()}")


def backend_problem() -> str | None:
    """Problem with the installed versions; None if they are supported."""
    builds = {build: version for build in FBGEMM_BUILDS if (version := installed(build))}
    torch, torchrec = installed("torch"), installed("torchrec")
    if len(builds) > 1:
        return "fbgemm-gpu and fbgemm-gpu-cpu are both installed, and overwrite each other's files"
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


def install_commands() -> str:
    """Shell commands that install supported versions, for the installed torch if possible."""
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
    """Returns True if this machine seems to have NVIDIA's driver; works without torch."""
    return shutil.which("nvidia-smi") is not None


def installed(package: str) -> str | None:
    """Version of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])
