"""Slices a TorchRec model on one process: its tables, and the weights that read them, keep only some columns.

Shape letters: B rows of a batch, D columns of all keys, in the order of the collection's keys.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from ham_dist.embedding.mask import Columns, MaskedEmbeddingBagCollection, as_evaluated, output_keys
from ham_dist.errors import ShardingError, SlicingError

Model = TypeVar("Model", bound=nn.Module)


class SlicedEmbeddingBagCollection(nn.Module):
    """An EmbeddingBagCollection with only the kept columns of its tables; it returns the same keys as before.

    Args:
        original: The collection to slice.
        columns: Kept columns of every table.
        fill_zeros: True to return removed columns as zeros, for a dense part that is not sliced; False to
            return the kept columns only.
    Attributes:
        ebc: The sliced tables; tables without a kept column are absent.
    """

    def __init__(self, original: EmbeddingBagCollection, columns: Columns, *, fill_zeros: bool) -> None:
        super().__init__()
        configs = original.embedding_bag_configs()
        self.ebc = EmbeddingBagCollection(
            tables=[
                replace(config, embedding_dim=len(columns[config.name]))
                for config in configs
                if len(columns[config.name])
            ],
            is_weighted=original.is_weighted(),
            device=original.device,
        )
        with torch.no_grad():
            for config in self.ebc.embedding_bag_configs():
                kept = columns[config.name].to(original.device)
                self.ebc.embedding_bags[config.name].weight.copy_(
                    original.embedding_bags[config.name].weight.index_select(1, kept)
                )
        self.fill_zeros = fill_zeros
        self.columns = {table: kept.clone() for table, kept in columns.items()}
        self._dims = {config.name: config.embedding_dim for config in configs}
        # A feature that reads several tables has the key "feature@table"; if only one of them is left, the
        # key is "feature".
        sliced_key = {(feature, table): key for key, feature, table in output_keys(self.ebc)}
        self._keys = [
            (key, sliced_key.get((feature, table)), table) for key, feature, table in output_keys(original)
        ]

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Looks up all keys.

        Args:
            features: Ids of B rows.
        Returns:
            KeyedTensor with the keys of the original collection in their order. Values: (B, sum of the kept
            columns), or (B, D) with `fill_zeros`.
        """
        looked_up = self.ebc(features)
        parts = [self._part(looked_up, sliced_key, table) for _, sliced_key, table in self._keys]
        return KeyedTensor(
            [key for key, _, _ in self._keys], [part.shape[1] for part in parts], torch.cat(parts, dim=1)
        )

    def description(self) -> dict[str, dict[str, Any]]:
        """Returns features, pooling, original dim and kept columns of each table, for a bundle manifest."""
        pooling = {config.name: config.pooling.name for config in self.ebc.embedding_bag_configs()}
        features: dict[str, list[str]] = {}
        for feature, _, table in self._keys:
            features.setdefault(table, []).append(feature)
        return {
            table: {
                "keys": features[table],
                "pooling": pooling.get(table),
                "base_dim": self._dims[table],
                "columns": kept.tolist(),
            }
            for table, kept in self.columns.items()
        }

    def _part(self, looked_up: KeyedTensor, key: str | None, table: str) -> torch.Tensor:
        rows = looked_up.values().shape[0]
        kept = looked_up.values().new_zeros((rows, 0)) if key is None else looked_up[key]
        if not self.fill_zeros:
            return kept
        return kept.new_zeros((rows, self._dims[table])).index_copy(
            1, self.columns[table].to(kept.device), kept
        )


def slice_columns(
    model: Model,
    columns: Columns,
    readers: Mapping[str, int | tuple[int, int]] | None = None,
    example: KeyedJaggedTensor | None = None,
) -> Model:
    """Returns a copy of `model` with only `columns` in its tables; `model` is unchanged.

    The tables under search are sliced directly, so no copy of their full size is made.

    Args:
        model: Contains one MaskedEmbeddingBagCollection, over tables that are not sharded.
        columns: Kept columns of every table.
        readers: Names of the weights that read the concatenated output of the tables
            (`KeyedTensor.values()`), each with the dimension that runs over the D columns, or with
            (dimension, index where the columns begin in it). These weights are sliced with the tables. None:
            no weight is sliced, and the tables return zeros in place of the removed columns.
        example: Features to compare the outputs of both models on, in evaluation mode.
    Raises:
        SlicingError: A reader has no such dimension, or the outputs on `example` differ by more than 1e-5.
        ShardingError: The tables are sharded.
    """
    path, masked = masked_tables(model)
    original = masked.ebc
    if not isinstance(original, EmbeddingBagCollection):
        raise ShardingError(
            f"slice_columns: {path} is a {type(original).__name__}, expected an EmbeddingBagCollection that "
            "is not sharded.\n"
            "  Load the state dict of the sharded model into a model that is not sharded, and slice that."
        )
    # The memo makes deepcopy use the sliced tables, so that it does not copy the original ones.
    sliced: Model = copy.deepcopy(
        model, {id(masked): SlicedEmbeddingBagCollection(original, columns, fill_zeros=readers is None)}
    )
    for name, place in (readers or {}).items():
        _slice_reader(sliced, name, place, original, columns)
    if example is not None:
        _compare(model, sliced, masked, columns, example)
    return sliced


def masked_tables(model: nn.Module) -> tuple[str, MaskedEmbeddingBagCollection]:
    """Returns the name and module of the only MaskedEmbeddingBagCollection in `model`.

    Raises:
        SlicingError: There is none, or more than one.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, MaskedEmbeddingBagCollection)
    ]
    if not found:
        raise SlicingError(
            f"{type(model).__name__}: has no masked tables, expected one MaskedEmbeddingBagCollection. "
            "Wrap its EmbeddingBagCollection with mask_columns."
        )
    if len(found) > 1:
        raise SlicingError(
            f"{type(model).__name__}: has {len(found)} masked collections "
            f"({', '.join(name for name, _ in found)}), expected one: the target of a search is shared by "
            "the tables of one collection.\n"
            "  Put all tables into one EmbeddingBagCollection, and pass each part of the model its own keys "
            "of the KeyedTensor that the collection returns."
        )
    return found[0]


def _slice_reader(
    model: nn.Module,
    name: str,
    place: int | tuple[int, int],
    original: EmbeddingBagCollection,
    columns: Columns,
) -> None:
    dimension, start = place if isinstance(place, tuple) else (place, 0)
    dims = {config.name: config.embedding_dim for config in original.embedding_bag_configs()}
    tables = [table for _, _, table in output_keys(original)]
    total = sum(dims[table] for table in tables)
    parameters = dict(model.named_parameters())
    if name not in parameters:
        raise SlicingError(
            f"slice_columns: readers: the model has no weight {name!r}. Its weights: {', '.join(parameters)}"
        )
    weight = parameters[name]
    if dimension >= weight.dim() or weight.shape[dimension] < start + total:
        raise SlicingError(
            f"slice_columns: readers: {name} has shape {tuple(weight.shape)}, but dimension {dimension} must "
            f"hold {total} columns from index {start} on.\n"
            "  Give the dimension of the weight that runs over the columns of the tables, or (dimension, "
            "first index)."
        )
    kept, first = [torch.arange(start)], start
    for table in tables:
        kept.append(columns[table] + first)
        first += dims[table]
    kept.append(torch.arange(first, weight.shape[dimension]))
    module_name, _, attribute = name.rpartition(".")
    module = model.get_submodule(module_name)
    sliced = weight.detach().index_select(dimension, torch.cat(kept).to(weight.device))
    setattr(module, attribute, nn.Parameter(sliced, requires_grad=weight.requires_grad))
    if isinstance(module, nn.Linear) and attribute == "weight":
        module.out_features, module.in_features = sliced.shape


@torch.no_grad()
def _compare(
    model: nn.Module,
    sliced: nn.Module,
    masked: MaskedEmbeddingBagCollection,
    columns: Columns,
    example: KeyedJaggedTensor,
) -> None:
    before = masked.mask.values
    masked.mask.set(masked.mask.layout.join(columns).to(example.device()))
    try:
        with as_evaluated(model), as_evaluated(sliced):
            difference = float((model(example) - sliced(example)).abs().max())
    except RuntimeError as error:
        raise SlicingError(
            f"slice_columns: the sliced model fails on the output of its tables: {error}\n"
            "  A layer that reads the tables but is not in `readers`, or that has several weights to slice "
            "(BatchNorm, LayerNorm), needs all columns: leave `readers` out, and removed columns are "
            "returned as zeros."
        ) from error
    finally:
        masked.mask.set(before)
    if not difference <= 1e-5:
        raise SlicingError(
            f"slice_columns: the sliced model's output differs from the masked model's by {difference:.3g}, "
            "expected at most 1e-5.\n"
            "  List every weight that reads the tables in `readers`, with the dimension that runs over "
            "their columns."
        )
