"""A stand-in for `triton_python_backend_utils`, which only Triton has.

It has the part of the published interface that model.py uses, with its names and arguments:
https://github.com/triton-inference-server/python_backend#usage
"""

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


class Tensor:
    """A named array."""

    def __init__(self, name: str, array: np.ndarray[Any, Any]) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray[Any, Any]:
        return self._array


class TritonError:
    """The error of one response."""

    def __init__(self, message: str) -> None:
        self._message = message

    def message(self) -> str:
        return self._message


@dataclass
class InferenceRequest:
    """The inputs of one request."""

    inputs: Sequence[Tensor]


@dataclass
class InferenceResponse:
    """The outputs of one request, or its error."""

    output_tensors: Sequence[Tensor] = field(default_factory=list)
    error: TritonError | None = None


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs if tensor.name() == name), None)


def load_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An initialized TritonPythonModel of the version folder `folder`."""
    utils = ModuleType("triton_python_backend_utils")
    for each in (Tensor, TritonError, InferenceResponse, get_input_tensor_by_name):
        setattr(utils, each.__name__, each)
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    model.initialize({"model_repository": str(folder.parent), "model_version": folder.name})
    return model
