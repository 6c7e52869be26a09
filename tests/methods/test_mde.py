"""MDE against its rule written out, and on cases by hand."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ham_dist.config.target import Target
from tests.support.search_space import DIMS, LAYOUT, ROWS, method


def dims(target: Target, **settings: Any) -> list[int]:
    kept = LAYOUT.split(method("mde", target, **settings).choice())
    assert all(columns.tolist() == list(range(len(columns))) for columns in kept.values()), "first columns"
    return [len(columns) for columns in kept.values()]


def by_rule(scale: float, temperature: float, *, powers_of_two: bool) -> list[int]:
    """d = round(scale * C^-temperature), at least 1, then 2^round(log2 d); at most the table's dim."""
    found = []
    for table, most in DIMS.items():
        dim = torch.tensor(scale * ROWS[table] ** -temperature).round().clamp(min=1)
        if powers_of_two:
            dim = 2 ** dim.log2().round()
        found.append(min(most, int(dim)))
    return found


@given(scale=st.floats(0.1, 60), temperature=st.floats(0, 1.5), powers_of_two=st.booleans())
def test_a_target_that_the_rule_meets_exactly_gets_the_dims_of_the_rule(
    scale: float, temperature: float, powers_of_two: bool
) -> None:
    wanted = by_rule(scale, temperature, powers_of_two=powers_of_two)
    used = sum(4 * ROWS[table] * dim for table, dim in zip(DIMS, wanted, strict=True))
    for target in (Target(bytes=used), Target(columns=sum(wanted))):
        assert dims(target, temperature=temperature, powers_of_two=powers_of_two) == wanted


@pytest.mark.parametrize(
    ("target", "settings", "wanted"),
    [
        # Equal dims in rounds; what is left goes to the first tables.
        (Target(columns=6), {"temperature": 0.0}, [2, 2, 2]),
        # C^0.5 is 10, 1.7 and 7.1. Columns open at: user 15, 25, 35; gender 2.6; movie 10.6, 17.7, 24.7. A
        # column of user has 400 bytes, one of gender 12, one of movie 200. After 1, 2, 2 (824 bytes), 176 are
        # left, for which no column is small enough.
        (Target(bytes=1000), {"temperature": 0.5}, [1, 2, 2]),
        # With 400 more: the second column of user. 199 are left, one too few for a third of movie.
        (Target(bytes=1423), {"temperature": 0.5}, [2, 2, 2]),
        (Target(bytes=1424), {"temperature": 0.5}, [2, 2, 3]),
        # Powers of two: movie goes from 2 to 4 at once, for 400 bytes.
        (Target(bytes=1424), {"temperature": 0.5, "powers_of_two": True}, [2, 2, 2]),
        (Target(bytes=1624), {"temperature": 0.5, "powers_of_two": True}, [2, 2, 4]),
        # A target in columns is met by a table that stops between two powers.
        (Target(columns=7), {"temperature": 0.5, "powers_of_two": True}, [2, 2, 3]),
        # Too small for a column of every table: the smallest tables first.
        (Target(bytes=230), {}, [0, 2, 1]),
        (Target(columns=2), {}, [0, 1, 1]),
    ],
)
def test_by_hand(target: Target, settings: dict[str, float], wanted: list[int]) -> None:
    assert dims(target, **settings) == wanted
