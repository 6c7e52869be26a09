"""Masks match columns by key, in any order of the keys, and only the mask gets their gradient."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from ham_dist.embedding.mask import ColumnLayout, ColumnMask, MaskedEmbeddingBagCollection, ordered_columns

DIMS = {"user": 3, "item": 2, "hour": 1}
LAYOUT = ColumnLayout(DIMS, {"user": 9, "item": 8, "hour": 7})


def looked_up(order: list[str], stored: dict[str, int]) -> KeyedTensor:
    """Four rows; the values of key k are 100 * its place in DIMS + the column number."""
    values = [
        torch.full((4, stored[key]), 100.0 * list(DIMS).index(key)) + torch.arange(stored[key])
        for key in order
    ]
    return KeyedTensor(order, [stored[key] for key in order], torch.cat(values, dim=1))


@given(
    order=st.permutations(list(DIMS)),
    padding=st.integers(0, 3),
    open_columns=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_mask_goes_by_name_in_any_order_and_under_padding(
    order: list[str], padding: int, open_columns: list[bool]
) -> None:
    mask = ColumnMask(LAYOUT)
    mask.set(torch.tensor(open_columns).float())
    stored = {key: dim + padding for key, dim in DIMS.items()}
    masked = ordered_columns(mask(looked_up(order, stored)), DIMS)
    unmasked = ordered_columns(looked_up(order, stored), DIMS)
    assert torch.equal(masked, unmasked * torch.tensor(open_columns).float())
    assert unmasked[0].tolist() == [0, 1, 2, 100, 101, 200]


@given(order=st.permutations(list(DIMS)), dim=st.integers(1, 3), padding=st.integers(0, 3))
def test_tables_that_are_all_alike_come_in_order_and_padding_gets_no_gradient(
    order: list[str], dim: int, padding: int
) -> None:
    found = looked_up(order, dict.fromkeys(DIMS, dim + padding))
    values = found.values().requires_grad_()
    columns = ordered_columns(found, dict.fromkeys(DIMS, dim))
    assert columns[0].tolist() == [
        100 * place + column for place in range(len(DIMS)) for column in range(dim)
    ]
    columns.sum().backward()
    assert values.grad is not None
    assert values.grad[0].tolist() == len(DIMS) * [*dim * [1.0], *padding * [0.0]]


@given(open_columns=st.lists(st.booleans(), min_size=6, max_size=6))
def test_join_is_the_inverse_of_split(open_columns: list[bool]) -> None:
    layout = LAYOUT
    mask = torch.tensor(open_columns).float()
    assert torch.equal(layout.join(layout.split(mask)), mask)


def test_without_a_mask_nothing_is_multiplied() -> None:
    values = looked_up(["hour", "user", "item"], DIMS)
    assert ColumnMask(LAYOUT)(values) is values


def ebc() -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name="t_item", embedding_dim=4, num_embeddings=10, feature_names=["clicked", "bought"]
            ),
            EmbeddingBagConfig(name="t_user", embedding_dim=3, num_embeddings=5, feature_names=["user"]),
        ]
    )


def features() -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        ["clicked", "bought", "user"],
        torch.tensor([1, 2, 3, 4, 5, 0, 1]),
        lengths=torch.tensor([2, 1, 1, 1, 1, 1]),
    )


def test_a_shared_table_is_masked_in_all_its_features() -> None:
    tables = ebc()
    mask = ColumnMask(ColumnLayout.of(tables))
    mask.set(torch.tensor([1.0, 0, 1, 1, 0, 1, 1]))
    masked, plain = MaskedEmbeddingBagCollection(tables, mask)(features()), tables(features())
    expected = {"clicked": [1.0, 0, 1, 1], "bought": [1.0, 0, 1, 1], "user": [0.0, 1, 1]}
    for key in plain.keys():  # noqa: SIM118  a KeyedTensor is no mapping
        assert torch.equal(masked[key], plain[key] * torch.tensor(expected[key]))


def test_gradient_reaches_the_mask_alone() -> None:
    tables = ebc()
    module = MaskedEmbeddingBagCollection(tables, ColumnMask(ColumnLayout.of(tables)))
    values = torch.ones(7, requires_grad=True)
    with module.mask.differentiable(values):
        output = module(features())
    output.values().square().sum().backward()
    plain = tables(features())
    wanted = torch.cat(
        [2 * (plain["clicked"].square() + plain["bought"].square()).sum(0), 2 * plain["user"].square().sum(0)]
    )
    assert values.grad is not None
    torch.testing.assert_close(values.grad, wanted)
    assert all(parameter.grad is None for parameter in tables.parameters())
    assert module.mask.values is None


def test_a_closed_column_takes_another_value_through_either_way_of_masking() -> None:
    """m x + (1 - m) c: by the collection, under padding and in another order, or by `applied` for a model."""
    mask = ColumnMask(LAYOUT)
    values = torch.tensor([1.0, 0, 0.5, 1, 0, 0])
    stored = {"item": 4, "hour": 4, "user": 4}
    found = looked_up(list(stored), stored)
    columns = ordered_columns(found, DIMS)
    with mask.differentiable(values, closed=lambda columns: 3.0 * columns + 1.0):
        by_collection = ordered_columns(mask(found), DIMS)
        by_model, left = mask.applied(columns)
    assert left is None
    wanted = [0.0, 3 * 1 + 1, 0.5 * 2 + 0.5 * (3 * 2 + 1), 100, 3 * 101 + 1, 3 * 200 + 1]
    assert by_collection[0].tolist() == by_model[0].tolist() == wanted
    with mask.differentiable(values):
        assert mask.applied(columns) == (columns, values)


def test_a_mask_is_no_state() -> None:
    module = MaskedEmbeddingBagCollection(ebc(), ColumnMask(LAYOUT))
    module.mask.set(torch.ones(6))
    assert list(module.state_dict()) == [
        "ebc.embedding_bags.t_item.weight",
        "ebc.embedding_bags.t_user.weight",
    ]
