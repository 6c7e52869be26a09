"""Which runtime a scorer uses."""

import logging
import os
from typing import get_args

from ham_dist.errors import BackendError, ConfigError
from ham_dist.export.bundle import Bundle
from ham_dist.serving.runtimes.aot import AotRuntime
from ham_dist.serving.runtimes.compiling import compiled_code, cxx_compiler
from ham_dist.serving.runtimes.eager import EagerRuntime
from ham_dist.serving.runtimes.plain_inputs import PlainInputs
from ham_dist.serving.runtimes.runtime import Runtime, RuntimeName

log = logging.getLogger(__name__)

VARIABLE = "HAM_DIST_RUNTIME"
"""Environment variable with the runtime that `auto` stands for."""
_NO_COMPILER = "there is no C++ compiler (g++, or the one that CXX names)"


def open_runtime(bundle: Bundle, model: PlainInputs, wanted: RuntimeName = "auto") -> Runtime:
    """Returns the runtime of a bundle.

    Args:
        bundle: The bundle.
        model: Its model.
        wanted: `eager`, `aot`, or `auto`: the one that HAM_DIST_RUNTIME names; without it `aot`, or `eager`
            where the model cannot be compiled.
    Raises:
        BackendError: `aot` is wanted, and the model cannot be compiled or its code cannot be loaded.
        ConfigError: There is no such runtime.
    """
    source = "chosen by the caller"
    if wanted == "auto" and (named := os.environ.get(VARIABLE)):
        wanted, source = named, f"{VARIABLE} is set"  # type: ignore[assignment]
    if wanted not in get_args(RuntimeName):
        raise ConfigError(
            f"runtime = {wanted!r} ({source}): expected one of {', '.join(get_args(RuntimeName))}.\n"
            "  `auto` compiles the model where that is possible."
        )
    if wanted == "eager":
        return EagerRuntime(model, source)
    try:
        with compiled_code(bundle) as library:
            return AotRuntime(model, library, source if wanted == "aot" else "the model is compiled")
    except Exception as error:
        reason = _first_line(error) if cxx_compiler() else _NO_COMPILER
        if wanted == "aot":
            raise BackendError(
                f"{bundle.root}: runtime = 'aot': the model cannot be compiled: {reason}\n"
                "  Install g++, or use runtime = 'eager'."
            ) from error
        if cxx_compiler():  # a defect somewhere, whose traceback helps
            log.warning("%s: the model cannot be compiled: running it eagerly", bundle.root, exc_info=error)
        return EagerRuntime(model, f"the model cannot be compiled: {reason}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
