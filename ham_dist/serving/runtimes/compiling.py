"""Compiles a bundle's model, and keeps the code with a record of what it was made from.

The code holds no number of the bundle: tables and weights are given to it when it is opened. It is kept in
the cache folder and never in the bundle, so a bundle brings no code to a machine.
"""

import logging
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch.export import Dim

from ham_dist.export.bundle import Bundle
from ham_dist.io.atomic import publish_folder, temporary_folder, write_json
from ham_dist.io.cache import cache_folder
from ham_dist.io.hashing import sha256_of, sha256_of_json
from ham_dist.io.untrusted import read_json
from ham_dist.serving.runtimes.aot import AotRuntime
from ham_dist.serving.runtimes.code_key import code_key
from ham_dist.serving.runtimes.eager import EagerRuntime
from ham_dist.serving.runtimes.internals import (
    constants_of,
    constants_read,
    open_library,
    write_package,
)
from ham_dist.serving.runtimes.plain_inputs import PlainInputs, plain_model

log = logging.getLogger(__name__)

LIBRARY, RECORD = "model.so", "compiled.json"
_ROWS, _VALUES = 4, 7
"""Sizes of the sample batch; torch.export would take sizes of 0 and 1 for constants."""

_TOLERANCE = 1e-4
"""Largest difference of a probability that may be rounding; wrong code differs far more."""


def cxx_compiler() -> str | None:
    """Returns the path of the C++ compiler that torch uses; None if there is none."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++"))


@contextmanager
def compiled_code(bundle: Bundle) -> Iterator[Path]:
    """Yields the path of a bundle's compiled library, to open it within the block.

    It is compiled at first use, into the cache folder, where later uses and other processes find it; if that
    cannot be written, for this use alone.

    Raises:
        Exception: Any error of torch's compiler or of the C++ compiler.
    """
    folder = cache_folder() / "compiled" / sha256_of_json(code_key(bundle))[:32]
    if mismatch(bundle, folder) is None:
        yield folder / LIBRARY
        return
    log.info("%s: compiling the model of %s, for this and later uses", folder, bundle.root)
    lock = FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        log.warning(
            "%s: cannot be written (%s): compiling for this process alone. "
            "Set XDG_CACHE_HOME to a folder that can be written.",
            folder.parent, error.strerror or error,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as temporary:  # the opened library outlives the file's name
            compile_bundle(bundle, Path(temporary) / "code")
            yield Path(temporary) / "code" / LIBRARY
        return
    try:
        if mismatch(bundle, folder):  # else another process compiled it
            shutil.rmtree(folder, ignore_errors=True)
            compile_bundle(bundle, folder)
        yield folder / LIBRARY
    finally:
        lock.release()


def mismatch(bundle: Bundle, folder: Path) -> str | None:
    """Returns why the code in a folder must not be run for a bundle here; None if it can be."""
    try:
        record = read_json(folder / RECORD)
        found, sha256 = record["key"], record["sha256"]
        for name, value in code_key(bundle).items():
            if found.get(name) != value:
                return f"{folder}: compiled for another {name} ({found.get(name)}; here {value})"
        if sha256 != sha256_of(folder / LIBRARY):
            return f"{folder / LIBRARY}: damaged: its sha256 is not that in {RECORD}"
    except FileNotFoundError as error:
        return f"{error.filename}: missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{folder / RECORD}: damaged: {error}"
    return None


def compile_bundle(bundle: Bundle, folder: Path) -> None:
    """Compiles the model of a bundle into the new folder `folder`, atomically.

    Raises:
        BundleError: The bundle is of kind `custom`.
        FileExistsError: There is such a folder.
        Exception: Any error of torch's compiler or of the C++ compiler.
    """
    key, model = code_key(bundle), plain_model(bundle)
    program = exported(model)
    with temporary_folder(folder) as temporary:
        package = temporary / "model.pt2"
        write_package(program, package, check=False)  # `Scorer` has checked the ids
        with zipfile.ZipFile(package) as file:
            (name,) = (name for name in file.namelist() if name.endswith(".so"))
            (temporary / LIBRARY).write_bytes(file.read(name))
        package.unlink()
        found = constants_of(open_library(temporary / LIBRARY)).values()
        # Their values would be those of this bundle in every other one.
        if written := constants_read(program) - set(found):
            raise RuntimeError(f"torch has written weights into the code: {', '.join(sorted(written))}")
        require_equal(model, temporary / LIBRARY)
        record = {"key": key, "sha256": sha256_of(temporary / LIBRARY)}
        write_json(temporary / RECORD, record)
        publish_folder(temporary, folder)


def require_equal(model: PlainInputs, library: Path) -> None:
    """Checks compiled code on random ids, also of one record, which torch.export does not promise to cover.

    Raises:
        RuntimeError: Its probabilities are not those of the model.
    """
    compiled, eager = AotRuntime(model, library, ""), EagerRuntime(model, "")
    for rows in (1, 2, 50):
        batch = model.order.random_batch(rows)
        difference = np.abs(compiled(batch) - eager(batch)).max()
        if not difference <= _TOLERANCE:
            raise RuntimeError(f"compiled, the probabilities of {rows} records differ by {difference:g}")


def exported(model: PlainInputs) -> torch.export.ExportedProgram:
    """Returns the program of a model, for any number of records from 1 and of values."""
    rows = Dim("rows", min=1)
    singles = torch.zeros(len(model.order.singles), _ROWS, dtype=torch.int64)
    several: list[torch.Tensor] = []
    sizes: list[dict[int, Dim]] = []
    for place, _ in enumerate(model.order.several):
        offsets = torch.tensor([*range(_ROWS), _VALUES], dtype=torch.int64)
        several += [torch.zeros(_VALUES, dtype=torch.int64), offsets]
        sizes += [{0: Dim(f"values_{place}", min=0)}, {0: rows + 1}]
    shapes = ({1: rows}, tuple(sizes)) if sizes else ({1: rows},)
    with torch.no_grad():
        return torch.export.export(model, (singles, *several), dynamic_shapes=shapes, strict=False)
