"""Checks whether this machine can execute runs, and how to fix what is missing."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

import ham_dist
from ham_dist import backend

COMPONENT = "launch.components"
GIGABYTE = 1e9


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: Thing that was checked.
        found: Result, as text.
        fix: Command or advice that fixes the problem; None if there is no problem.
        needed: True if runs need it; else the fix is optional.
    """

    name: str
    found: str
    fix: str | None = None
    needed: bool = True


def report(console: Console | None = None) -> bool:
    """Print a line for each check, with the fix below it. Returns True if nothing that runs need fails."""
    console = console or Console(highlight=False, soft_wrap=True)
    can_run = True
    for check in checks():
        can_run &= check.fix is None or not check.needed
        mark = "ok " if check.fix is None else "NOT" if check.needed else "-  "
        console.print(f"{mark} {check.name}: {check.found}", markup=False)
        if check.fix is not None:
            console.print(f"      {check.fix}", markup=False)
    return can_run


def checks() -> Iterator[Check]:
    """Yields all checks, the fast ones first."""
    yield Check(
        "ham_dist", f"{ham_dist.__version__}, Python {platform.python_version()}, {platform.platform()}"
    )
    yield _trio()
    yield _torchrec_loads()
    yield from _devices()
    yield _memory()
    yield _disk()
    yield _torchx()
    yield _torchrun()


def _trio() -> Check:
    problem = backend.backend_problem()
    versions = ", ".join(
        f"{name} {version}"
        for name in ("torch", "torchrec", *backend.FBGEMM_BUILDS)
        if (version := backend.installed(name))
    )
    return Check(
        "versions",
        versions if problem is None else problem,
        None if problem is None else backend.install_commands(),
    )


def _torchrec_loads() -> Check:
    """Importing torchrec loads fbgemm-gpu's kernels, which fails if that build does not fit the machine."""
    try:
        import torchrec  # noqa: F401
    except Exception as error:
        found = f"cannot be imported: {type(error).__name__}: {error}"
        return Check("torchrec", found, backend.install_commands())
    return Check("torchrec", "can be imported, fbgemm-gpu's kernels are loaded")


def _devices() -> Iterator[Check]:
    torch = _torch()
    if torch is None:
        return
    cores = os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Check("cores", f"{cores}" + (f", OMP_NUM_THREADS = {threads}" if threads else ""))
    driver = backend.has_nvidia_driver()
    if torch.cuda.is_available():
        yield Check(
            "GPUs",
            ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())),
        )
    elif driver:
        yield Check(
            "GPUs",
            "there is an NVIDIA driver, but this torch cannot use it",
            "Install a torch that was built for CUDA",
            needed=False,
        )
    else:
        yield Check("GPUs", "none, runs use the CPU")
    distributed = torch.distributed
    gloo = distributed.is_available() and distributed.is_gloo_available()
    yield Check(
        "gloo",
        "available" if gloo else "missing",
        None if gloo else "Install a torch that was built with gloo",
    )
    if torch.cuda.is_available():
        nccl = distributed.is_available() and distributed.is_nccl_available()
        yield Check(
            "nccl",
            "available" if nccl else "missing",
            None if nccl else "Install a torch that was built with NCCL",
        )


def _torch() -> Any:
    try:
        import torch
    except Exception:
        return None  # _torchrec_loads reports it.
    return torch


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return Check("memory", f"{free / GIGABYTE:.1f} GB free of {total / GIGABYTE:.1f} GB")


def _disk() -> Check:
    usage = shutil.disk_usage(Path.cwd())
    full = usage.free < GIGABYTE
    return Check(
        "disk",
        f"{usage.free / GIGABYTE:.1f} GB free in this folder",
        "Free disk space: data and checkpoints need more than 1 GB" if full else None,
    )


def _torchx() -> Check:
    entries = {entry.name: entry.value for entry in metadata.entry_points(group="torchx.components")}
    if entries.get("dist") == COMPONENT:
        return Check("torchx component", "dist.ddp takes a script as its first argument")
    fix = "Install ham_dist again (pip install --no-deps -e .), or write --script before ham_dist/train.py"
    return Check("torchx component", "dist.ddp is not ham_dist's", fix)


def _torchrun() -> Check:
    path = shutil.which("torchrun")
    if path is not None:
        return Check("torchrun", path)
    return Check(
        "torchrun",
        "is not on PATH, where torchx looks for it",
        f"source {Path(sys.prefix) / 'bin' / 'activate'}",
        needed=False,
    )
