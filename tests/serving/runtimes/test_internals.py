"""Each private name of torch in `serving/runtimes/internals.py` does what it is used for."""

import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._C import _aoti
from torch.export import Dim, export

from ham_dist.serving.runtimes.internals import (
    constants_of,
    constants_read,
    open_library,
    open_package,
    write_package,
)
from tests.support.compiled import needs_compiler


class Scaled(nn.Module):
    """x * (a + a) * ones + b, where a + a can be computed once; the constants are small, scalar, or equal."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.tensor(2.0))
        self.register_buffer("b", torch.tensor([1.0, 2.0]))
        self.register_buffer("ones", torch.ones(2))
        self.register_buffer("unused", torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.get_buffer("a") + self.get_buffer("a")
        return x * scale * self.get_buffer("ones") + self.get_buffer("b")


def test_the_class_of_compiled_models_has_the_methods_that_are_used() -> None:
    names = {"run", "get_constant_names_to_original_fqns", "update_constant_buffer"}
    assert names <= set(dir(_aoti.AOTIModelContainerRunnerCpu))


def test_what_is_no_library_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.so").write_text("text")
    with pytest.raises(RuntimeError):
        open_library(tmp_path / "model.so")
    with pytest.raises(RuntimeError):
        open_package(tmp_path / "model.so")


@needs_compiler
def test_code_has_no_constants_and_reads_those_that_are_set(tmp_path: Path) -> None:
    model = Scaled()
    program = export(model, (torch.ones(3, 2),), dynamic_shapes=({0: Dim("rows")},))
    write_package(program, tmp_path / "model.pt2")
    with zipfile.ZipFile(tmp_path / "model.pt2") as file:
        (name,) = (name for name in file.namelist() if name.endswith(".so"))
        (tmp_path / "model.so").write_bytes(file.read(name))
    library = open_library(tmp_path / "model.so")
    names = constants_of(library)
    assert set(names.values()) == constants_read(program) == {"a", "b", "ones"}
    assert set(library.get_constant_names_to_original_fqns()) > set(names), "a + a is computed once"
    constants = {"a": torch.tensor(5.0), "b": torch.tensor([0.5, 0.25]), "ones": torch.full((2,), 3.0)}
    library.update_constant_buffer(
        {name: constants[original] for name, original in names.items()}, False, False, True
    )
    (found,) = library.run([torch.ones(4, 2)])
    assert found.tolist() == [[30.5, 30.25]] * 4
    constants["b"][0] = 7  # read where it is, without a copy
    (found,) = library.run([torch.ones(1, 2)])
    assert found.tolist() == [[37, 30.25]]
