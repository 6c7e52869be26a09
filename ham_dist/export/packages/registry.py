"""The formats of packages, and what each of them gives."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from ham_dist.backend import require_backend
from ham_dist.errors import BackendError, BundleError
from ham_dist.export.bundle import Bundle
from ham_dist.export.packages import onnx, pt2, torchrec, triton
from ham_dist.export.packages.check import Runner


class PackageFormat(NamedTuple):
    """A format of packages.

    Attributes:
        write: Writes the files of a bundle's package into an empty folder.
        runners: Opens the models in such a folder, by name; used to compare them with the bundle's.
        modules: Modules of other libraries that `write` and `runners` import.
    """

    write: Callable[[Bundle, Path], None]
    runners: Callable[[Bundle, Path], Mapping[str, Runner]]
    modules: tuple[str, ...] = ()


FORMATS: dict[str, PackageFormat] = {
    "onnx": PackageFormat(onnx.write, onnx.runners, onnx.MODULES),
    "pt2": PackageFormat(pt2.write, pt2.runners),
    "triton": PackageFormat(triton.write, triton.runners, triton.MODULES),
    "torchrec": PackageFormat(torchrec.write, torchrec.runners, torchrec.MODULES),
}
"""All formats by name."""


def format_of(name: str) -> PackageFormat:
    """Returns the format called `name`.

    Raises:
        BundleError: There is none.
        BackendError: A library that it needs is not installed, or of another version than TorchRec needs.
    """
    if name not in FORMATS:
        raise BundleError(f"--format {name}: no such format of packages; expected {', '.join(FORMATS)}")
    found = FORMATS[name]
    if "torchrec" in found.modules:  # no part of the extra: it is installed without its dependencies
        require_backend()
    if missing := [module for module in found.modules if find_spec(module) is None]:
        raise BackendError(
            f"--format {name}: {', '.join(missing)} is not installed. "
            "Install it with pip install 'ham-dist[package]'"
        )
    return found
