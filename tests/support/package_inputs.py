"""Inputs of packages of the bundle in tests/export/packages."""

from typing import Any

import numpy as np


def three_records(**changes: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs by name of three records, whose genres are [1, 2], none and [3]."""
    given = {
        "user": [3, 0, 10],
        "gone": [5, 0, 1],
        "age": [2, 1, 0],
        "zip": [29, 0, 1],
        "genres.values": [1, 2, 3],
        "genres.offsets": [0, 2, 2, 3],
    }
    return {name: np.array(values, np.int64) for name, values in (given | changes).items()}
