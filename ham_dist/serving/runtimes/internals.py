"""All private names of torch that compiled models need.

tests/serving/runtimes/test_internals.py fails if a new version changes one.

torch opens a package by importing all of its compiler, which takes 3 s, and extracts it to a temporary
folder, which a killed process leaves behind. So a scorer opens the shared library where it is.
"""

import warnings
from pathlib import Path
from typing import Any, Protocol

import torch
from torch._C import _aoti

_FOLDED = "_FOLDED_CONST_"
"""Beginning of the names of constants that the compiled code computes from others."""


class Library(Protocol):
    """A compiled model."""

    def run(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the outputs. Ends the process if a constant was never set."""

    def get_constant_names_to_original_fqns(self) -> dict[str, str]:
        """Returns the names of constants in the module, by their names in the code."""

    def update_constant_buffer(
        self,
        tensor_map: dict[str, torch.Tensor],
        use_inactive: bool,
        validate_full_updates: bool,
        user_managed: bool,
    ) -> None:
        """Sets constants; with `user_managed`, without a copy."""


def constants_of(library: Library) -> dict[str, str]:
    """Returns the names of the constants to set, in the module, by their names in the code."""
    names = library.get_constant_names_to_original_fqns()
    return {name: original for name, original in names.items() if not name.startswith(_FOLDED)}


def constants_read(program: torch.export.ExportedProgram) -> set[str]:
    """Returns the names of the weights and buffers that a program reads."""
    signature = program.graph_signature
    known = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    used = {node.name for node in program.graph.find_nodes(op="placeholder") if node.users}
    return {original for name, original in known.items() if name in used}


def open_library(path: Path) -> Library:
    """Opens the shared library of a compiled model.

    Raises:
        RuntimeError: It cannot be loaded.
    """
    library: Library = _aoti.AOTIModelContainerRunnerCpu(str(path), 1)
    return library


def open_package(path: Path) -> Any:
    """Opens the package (.pt2) of a compiled model, whose constants are to be set before it is called.

    Raises:
        RuntimeError: It cannot be opened.
    """
    from torch._inductor import aoti_load_package

    return aoti_load_package(str(path))


def write_package(
    program: torch.export.ExportedProgram, path: Path, *, fold: bool = True, check: bool = True
) -> None:
    """Compiles a program, and writes the package (.pt2) without its weights.

    Args:
        fold: Combine weights with each other once, when they are set. The code then has constants of its own,
            which are not to be set.
        check: Check each id again before each number that is looked up. Without it, the caller must have
            checked them: the code reads any memory.
    """
    from torch._inductor import aoti_compile_and_package

    with warnings.catch_warnings():
        # torch's own use of a deprecated name
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec", FutureWarning)
        aoti_compile_and_package(
            program,
            package_path=str(path),
            inductor_configs={
                "aot_inductor.package_constants_in_so": False,
                "aot_inductor.use_runtime_constant_folding": fold,
                "assert_indirect_indexing": check,
                # Else small constants, and constants of equal numbers, are written into the code.
                "always_keep_tensor_constants": True,
                "joint_graph_constant_folding": False,
                # Else the code is made for the number of threads of the process that compiles it.
                "cpp.threads": 1,
            },
        )
