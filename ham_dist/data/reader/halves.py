"""The two halves of a split: of rows 2k and 2k + 1 in file order, each half has one, by a hash of k.

The halves depend on the positions of the rows only, not on a seed or on the number of ranks. They are alike
even if neighbouring rows are more alike than others, as in files sorted by user or by time.
"""

from typing import Any, Literal

import numpy as np

from ham_dist.data.mixing import LOW_32, mix

Half = Literal["first", "second"]


def in_half(first: int, last: int, half: Half) -> np.ndarray[Any, Any]:
    """Returns True for each of the rows `first` to `last` - 1 of a split that is in `half`.

    Returns:
        (last - first,) bool.
    """
    rows = np.arange(first, last, dtype=np.int64)
    in_first = (rows & 1) == (mix((rows >> 1) & LOW_32) & 1)
    return in_first if half == "first" else ~in_first
