"""The key of compiled code: the versions, processor and shapes that it was compiled for.

Code with another key is compiled again, and never loaded.

The values of tables and weights are not part of it: compiled code reads them from the bundle, so the next
version of a model with tables of the same sizes needs no compilation.
"""

import inspect
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import ham_dist
from ham_dist import models
from ham_dist.export import codecs, compact
from ham_dist.export.bundle import Bundle
from ham_dist.export.codecs.registry import codec_of
from ham_dist.export.manifest import BundleManifest
from ham_dist.io.hashing import sha256_of_json
from ham_dist.models.registry import INTERACTIONS


def code_key(bundle: Bundle) -> dict[str, str]:
    """Returns everything that compiled code of a bundle depends on, by name."""
    return {
        "ham_dist": ham_dist.__version__,
        "torch": torch.__version__,
        "cpu": cpu_of_this_machine(),
        "model": sha256_of_json(_structure(bundle.manifest)),
        "sources": sha256_of_json(_sources(bundle.manifest)),
    }


def cpu_of_this_machine() -> str:
    """The machine's instruction set: compiled code uses all of it, and ends the process on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    extensions = sha256_of_json(sorted(flags.partition(":")[2].split()) or flags)[:16]
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {extensions}"


def _structure(manifest: BundleManifest) -> dict[str, Any]:
    """Settings of the model, sizes of its tables, and their codecs."""
    return {
        "model": None if manifest.model is None else manifest.model.model_dump(mode="json"),
        "fields": [field.model_dump(mode="json") for field in manifest.fields],
        "tables": [
            [table.field, table.num_embeddings, table.embedding_dim, table.codec]
            for table in (*manifest.tables, *manifest.first_order)
        ],
        "first_order": len(manifest.first_order),
    }


def _sources(manifest: BundleManifest) -> list[str]:
    """Content of the source files that the code is made from; a model or codec may be that of a plug-in."""
    assert manifest.model is not None, "a bundle of kind `ctr`"
    classes = [INTERACTIONS[manifest.model.name], *(type(codec_of(name)) for name in manifest.codecs)]
    files = [Path(compact.__file__), *Path(__file__).parent.glob("*.py")]
    for package in (models, codecs):
        files += Path(inspect.getfile(package)).parent.glob("*.py")
    for base in (base for kind in classes for base in kind.__mro__):
        with suppress(TypeError, OSError):  # built in, or typed into an interpreter
            files.append(Path(inspect.getfile(base)))
    return [path.read_text(encoding="utf-8") for path in sorted(set(files))]
