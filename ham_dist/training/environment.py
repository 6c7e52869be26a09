"""Versions, source and machine of a start of a run: results may depend on them as well as on the settings."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import ham_dist

PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "numpy", "pyarrow", "duckdb")
"""Packages whose versions can change a run's numbers."""


def environment(world_size: int, device: str) -> dict[str, Any]:
    """Returns the entry of environment.json for a start of a run.

    Args:
        world_size: Number of ranks of this start.
        device: `cpu`, or the name of the GPU.
    """
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "ham_dist": ham_dist.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "device": device,
        "world_size": world_size,
    }


def other_versions(first: Mapping[str, Any], last: Mapping[str, Any]) -> list[str]:
    """Returns the packages whose versions differ between two starts, such as `torch 2.13.0 (was 2.11.0)`."""
    before, now = _versions(first), _versions(last)
    return [
        f"{name} {now.get(name, 'missing')} (was {before.get(name, 'missing')})"
        for name in dict.fromkeys((*before, *now))
        if before.get(name) != now.get(name)
    ]


def _versions(start: Mapping[str, Any]) -> dict[str, Any]:
    packages = start.get("versions")
    return {"ham_dist": start.get("ham_dist"), **(packages if isinstance(packages, dict) else {})}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the source tree, with `-dirty` if it has changes.

    None if ham_dist is not run from its repository.
    """
    source = Path(ham_dist.__file__).parent
    git = ["git", "-C", str(source)]
    try:
        # An installed copy may be in a folder of another repository: ask whether git keeps this very file.
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", "__init__.py"], check=True, capture_output=True, timeout=10
        )
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            check=True,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
