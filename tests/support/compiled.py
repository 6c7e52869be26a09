"""Bundles whose models are compiled, once for each test module: compiling takes a minute."""

from typing import Any

import numpy as np
import pytest

from ham_dist.serving.runtimes.compiling import cxx_compiler
from tests.support.live_models import as_arrays, some_ids

needs_compiler = pytest.mark.skipif(cxx_compiler() is None, reason="there is no C++ compiler")

MIXED = {"user": "int6", "gone": "fp32", "genres": "int8", "age": "fp16"}
"""A codec for each field of `live_models`; int4 is that of another model."""


def given_ids(rows: int, seed: int = 1) -> dict[str, Any]:
    """The ids of `some_ids`, as arrays."""
    return as_arrays(some_ids(rows, seed))


def require_equal(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    """Checks probabilities of the same records by two runtimes, which add in different orders."""
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
