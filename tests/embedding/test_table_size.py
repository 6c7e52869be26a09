"""Bytes of tables with zeros."""

import pytest

from ham_dist.embedding.table_size import sparse_bytes


def test_sparse_forms_by_hand() -> None:
    """3 rows of 5: 15 bits in 2 bytes, and 4 numbers; or 4 pairs of number and column, and 4 positions."""
    assert sparse_bytes(3, 5, 4, 4) == {"bitmap": 2 + 16, "csr": 4 * (4 + 1) + 4 * 4}
    assert sparse_bytes(3, 5, 0, 2) == {"bitmap": 2, "csr": 16}


@pytest.mark.parametrize(("dim", "width"), [(1, 1), (256, 1), (257, 2), (65_536, 2), (65_537, 3)])
def test_columns_take_as_many_bytes_as_they_need(dim: int, width: int) -> None:
    assert sparse_bytes(1, dim, 10, 4)["csr"] == 10 * (4 + width) + 8
