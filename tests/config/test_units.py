from typing import get_args

import pytest

from ham_dist.config.schema import TablePrecision
from ham_dist.config.units import NUMBER_BYTES, size_text
from ham_dist.embedding.tables import Table


def test_bytes_per_number_are_those_of_torch() -> None:
    assert set(NUMBER_BYTES) == set(get_args(TablePrecision))
    for precision, count in NUMBER_BYTES.items():
        assert Table("field", 10, 4, 4, 4, precision).number_bytes == count


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (26_400, "26.4 kB"),
        (999_960, "1 MB"),
        (317_708, "317.7 kB"),
        (4e15, "4 PB"),
    ],
)
def test_sizes_have_a_unit_that_fits(count: float, text: str) -> None:
    assert size_text(count) == text
