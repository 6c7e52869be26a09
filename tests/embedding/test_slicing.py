"""Slicing any model: its outputs are those of the masked model, whether its readers are sliced or not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.embedding.mask import ColumnLayout, ColumnMask, MaskedEmbeddingBagCollection
from ham_dist.embedding.slicing import slice_columns
from ham_dist.errors import SlicingError


class ClickModel(nn.Module):
    """Puts dense features before the columns; two features share a table, and one feature reads two."""

    def __init__(self) -> None:
        super().__init__()
        configs = [
            EmbeddingBagConfig(
                name="t_item", embedding_dim=4, num_embeddings=10, feature_names=["clicked", "bought"]
            ),
            EmbeddingBagConfig(name="t_user", embedding_dim=3, num_embeddings=6, feature_names=["user"]),
            EmbeddingBagConfig(name="t_user_2", embedding_dim=2, num_embeddings=6, feature_names=["user"]),
        ]
        self.tables = MaskedEmbeddingBagCollection(
            EmbeddingBagCollection(tables=configs), mask := ColumnMask(ColumnLayout(*layout(configs)))
        )
        self.mask = mask
        self.over = nn.Sequential(nn.Linear(2 + 13, 5), nn.ReLU(), nn.Linear(5, 1))

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        columns = self.tables(features).values()
        return self.over(torch.cat([columns.new_ones(columns.shape[0], 2), columns], dim=1)).squeeze(1)


def layout(configs: list[EmbeddingBagConfig]) -> tuple[dict[str, int], dict[str, int], dict[str, str]]:
    keys = {"clicked": "t_item", "bought": "t_item", "user@t_user": "t_user", "user@t_user_2": "t_user_2"}
    return (
        {config.name: config.embedding_dim for config in configs},
        {config.name: config.num_embeddings for config in configs},
        keys,
    )


def features() -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        ["clicked", "bought", "user"],
        torch.tensor([1, 2, 3, 4, 5, 0, 1]),
        lengths=torch.tensor([2, 1, 1, 1, 1, 1]),
    )


@given(open_columns=st.lists(st.booleans(), min_size=9, max_size=9).filter(any), slice_readers=st.booleans())
@settings(max_examples=60, deadline=None)
def test_sliced_equals_masked(open_columns: list[bool], slice_readers: bool) -> None:
    torch.manual_seed(0)
    model = ClickModel()
    columns = model.mask.layout.split(torch.tensor(open_columns).float())
    sliced = slice_columns(
        model, columns, readers={"over.0.weight": (1, 2)} if slice_readers else None, example=features()
    )
    model.mask.set(torch.tensor(open_columns).float())
    torch.testing.assert_close(sliced(features()), model(features()), rtol=0, atol=1e-6)
    kept = sum(
        len(columns[table]) * times for table, times in (("t_item", 2), ("t_user", 1), ("t_user_2", 1))
    )
    assert sliced.over[0].weight.shape == (5, 2 + (kept if slice_readers else 13))
    numbers = sum(parameter.numel() for parameter in sliced.tables.parameters())
    assert numbers == 10 * len(columns["t_item"]) + 6 * (len(columns["t_user"]) + len(columns["t_user_2"]))
    assert model.over[0].weight.shape == (5, 15), "the given model is unchanged"


def test_a_missing_reader_is_found() -> None:
    model = ClickModel()
    columns = model.mask.layout.split(torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1, 1]))
    with pytest.raises(SlicingError, match=r"over\.0\.weight"):
        slice_columns(model, columns, readers={"over.0.weight": 0})
    with pytest.raises(SlicingError, match="no weight 'under'"):
        slice_columns(model, columns, readers={"under": 1})
    with pytest.raises(SlicingError, match="readers"):
        slice_columns(model, columns, readers={"over.0.weight": (1, 0)}, example=features())


def test_a_model_without_masked_tables_is_refused() -> None:
    with pytest.raises(SlicingError, match="mask_columns"):
        slice_columns(nn.Linear(2, 2), {})
