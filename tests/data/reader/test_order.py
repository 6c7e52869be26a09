from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ham_dist.data.reader.order import BLOCK, LANES, Order, permutation, rows_of_rank

ORDERS = st.builds(
    Order,
    group_rows=st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(sum).map(np.array),
    batch_size=st.integers(1, 120),
    shuffle=st.none() | st.tuples(st.integers(-3, 3), st.integers(0, 3)),
    shuffle_rows=st.integers(1, 400),
)


@given(rows=st.integers(0, 3000), world_size=st.integers(1, 70))
def test_ranks_share_a_batch_in_whole_blocks(rows: int, world_size: int) -> None:
    parts = [rows_of_rank(rows, rank, world_size) for rank in range(world_size)]
    assert [first for first, _ in parts] == [0, *(last for _, last in parts[:-1])]
    assert parts[-1][1] == rows
    sizes = [last - first for first, last in parts]
    if rows >= world_size:
        assert min(sizes) > 0, "no rank is without rows where there are enough"
    if rows > BLOCK * (world_size - 1):
        assert all(first % BLOCK == 0 for first, _ in parts)
        assert max(sizes) - min(sizes) < 2 * BLOCK


@pytest.mark.parametrize(
    ("rows", "world_size", "parts"),
    [
        (2048, 4, [512, 512, 512, 512]),
        (100, 3, [32, 32, 36]),
        (100, 8, [8, 16, 8, 16, 16, 8, 16, 12]),
        (7, 3, [2, 2, 3]),
        (2, 3, [0, 1, 1]),
        (0, 2, [0, 0]),
    ],
)
def test_parts_of_ranks(rows: int, world_size: int, parts: list[int]) -> None:
    assert [
        last - first for first, last in (rows_of_rank(rows, rank, world_size) for rank in range(world_size))
    ] == parts


def places(order: Order) -> list[list[tuple[int, int]]]:
    """(row group, row in it) of each row of each global batch, read by spans and windows."""
    of_lane: dict[int, list[tuple[int, int]]] = {}
    for lane in range(order.lanes):
        of_lane[lane] = []
        for window in order.windows(lane):
            rows = [(part.group, row) for part in window.ranges for row in range(part.first, part.last)]
            assert window.first == len(of_lane[lane])
            assert window.last - window.first == len(rows)
            permuted = window.order()
            of_lane[lane] += rows if permuted is None else [rows[place] for place in permuted]
    batches = range(-(-order.rows // order.batch_size))
    return [
        [
            row
            for lane, first, last in order.spans(step, 0, order.batch_rows(step))
            for row in of_lane[lane][first:last]
        ]
        for step in batches
    ]


@given(order=ORDERS)
def test_every_row_comes_once(order: Order) -> None:
    batches = places(order)
    assert [len(batch) for batch in batches] == [order.batch_rows(step) for step in range(len(batches))]
    assert Counter(row for batch in batches for row in batch) == Counter(
        (group, row) for group, rows in enumerate(order.group_rows) for row in range(rows)
    )


@given(order=ORDERS)
def test_what_is_in_memory_is_bounded(order: Order) -> None:
    largest = max(window.last - window.first for lane in range(order.lanes) for window in order.windows(lane))
    assert largest * order.lanes <= max(order.shuffle_rows, order.group_rows.max())
    assert order.lanes <= LANES


@given(order=ORDERS, data=st.data())
def test_parts_of_a_batch_are_cut_out_of_it(order: Order, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, (order.rows - 1) // order.batch_size))
    size = order.batch_rows(step)
    cut = data.draw(st.integers(0, size))

    def positions(first: int, last: int) -> list[tuple[int, int]]:
        return [
            (lane, position)
            for lane, low, high in order.spans(step, first, last)
            for position in range(low, high)
        ]

    assert positions(0, cut) + positions(cut, size) == positions(0, size)


def test_file_order_is_one_lane_of_row_groups() -> None:
    order = Order(np.array([5, 0, 3, 4]), 6, None, 4)
    assert [row for batch in places(order) for row in batch] == [
        (g, row) for g, rows in enumerate((5, 0, 3, 4)) for row in range(rows)
    ]
    assert [window.last - window.first for window in order.windows(0)] == [5, 3, 4]


def test_another_seed_epoch_or_batch_size_is_another_order() -> None:
    groups = np.full(10, 20)
    made = [
        [row for batch in places(Order(groups, size, shuffle, 60)) for row in batch]
        for size, shuffle in [(10, (0, 0)), (10, (0, 1)), (10, (1, 0)), (10, (-1, 0)), (12, (0, 0))]
    ]
    assert all(first != second for number, first in enumerate(made) for second in made[:number])


def test_a_whole_split_is_shuffled_as_ever() -> None:
    """Published results rest on this order: it must not change with a version of ours or of numpy."""
    assert permutation(12, 0, 3).tolist() == [8, 10, 2, 11, 7, 6, 3, 4, 9, 1, 5, 0]


@pytest.mark.parametrize("rows", [2_000])
def test_batches_of_a_sorted_file_are_mixed_as_promised(rows: int) -> None:
    """A file with all zeros before all ones: the spread of label rates is within the bound of order.py."""
    group, batch_size, shuffle_rows = 50, 100, 500
    order = Order(np.full(rows // group, group), batch_size, (0, 0), shuffle_rows)
    labels = [[number >= rows // group // 2 for number, _ in batch] for batch in places(order)]
    spread = float(np.std([np.mean(batch) for batch in labels]))
    true = 0.5 / np.sqrt(batch_size)
    assert spread < 1.5 * true * np.sqrt(batch_size / (shuffle_rows / group))
    assert spread < 0.5 / 2, "file order has 0.5"
