"""Slicing any TorchRec model on one process: only the kept columns of its tables stay, and of those of its weights that read them.

D columns that the tables give side by side, in the order of the collection's keys
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


class NarrowEmbeddingBagCollection(nn.Module):
    """An EmbeddingBagCollection with only some columns of its tables, giving the same keys as before.

    ebc:     the narrow tables; those without a column are gone.
    widened: whether closed columns come back as zeros, so that a dense part that was not sliced can read them; else they are missing.
    """

    def __init__(self, wide: EmbeddingBagCollection, columns: Columns, *, widened: bool) -> None:
        super().__init__()
        configs = wide.embedding_bag_configs()
        self.ebc = EmbeddingBagCollection(
            tables=[
                replace(config, embedding_dim=len(columns[config.name]))
                for config in configs
                if len(columns[config.name])
            ],
            is_weighted=wide.is_weighted(),
            device=wide.device,
        )
        with torch.no_grad():
            for config in self.ebc.embedding_bag_configs():
                kept = columns[config.name].to(wide.device)
                self.ebc.embedding_bags[config.name].weight.copy_(
                    wide.embedding_bags[config.name].weight.index_select(1, kept)
                )
        self.widened = widened
        self.columns = {table: kept.clone() for table, kept in columns.items()}
        self._widths = {config.name: config.embedding_dim for config in configs}
        # A feature of several tables is called "feature@table", and just "feature" once only one of them is left.
        narrow_key = {(feature, table): key for key, feature, table in output_keys(self.ebc)}
        self._keys = [
            (key, narrow_key.get((feature, table)), table) for key, feature, table in output_keys(wide)
        ]

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Vectors of all keys, in the order of the wide collection."""
        looked_up = self.ebc(features)
        parts = [self._part(looked_up, narrow_key, table) for _, narrow_key, table in self._keys]
        return KeyedTensor(
            [key for key, _, _ in self._keys], [part.shape[1] for part in parts], torch.cat(parts, dim=1)
        )

    def description(self) -> dict[str, dict[str, Any]]:
        """By table, what it takes to build the model again: features, pooling, the wide table's width, and which of its columns are left."""
        pooling = {config.name: config.pooling.name for config in self.ebc.embedding_bag_configs()}
        features: dict[str, list[str]] = {}
        for feature, _, table in self._keys:
            features.setdefault(table, []).append(feature)
        return {
            table: {
                "keys": features[table],
                "pooling": pooling.get(table),
                "base_dim": self._widths[table],
                "columns": kept.tolist(),
            }
            for table, kept in self.columns.items()
        }

    def _part(self, looked_up: KeyedTensor, key: str | None, table: str) -> torch.Tensor:
        rows = looked_up.values().shape[0]
        narrow = looked_up.values().new_zeros((rows, 0)) if key is None else looked_up[key]
        if not self.widened:
            return narrow
        return narrow.new_zeros((rows, self._widths[table])).index_copy(
            1, self.columns[table].to(narrow.device), narrow
        )


def slice_columns(
    model: Model,
    columns: Columns,
    readers: Mapping[str, int | tuple[int, int]] | None = None,
    example: KeyedJaggedTensor | None = None,
) -> Model:
    """A copy of `model` with only `columns` in its tables. `model` stays as it is, and no wide table is copied.

    model:   holds one MaskedEmbeddingBagCollection over tables that are not sharded.
    columns: kept column numbers of every table.
    readers: names of the weights that read the tables' concatenated output (`KeyedTensor.values()`), each with the dimension that runs over the D
             columns, or with (dimension, where in it the columns begin); they are sliced with the tables. None: no weight is sliced, and the tables
             give zeros in the place of closed columns.
    example: features to hold both models against each other on, in evaluation mode.
    raises:  SlicingError if a reader has no such dimension, or the outputs on `example` differ by more than 1e-5; ShardingError for sharded tables.
    """
    path, masked = masked_tables(model)
    wide = masked.ebc
    if not isinstance(wide, EmbeddingBagCollection):
        raise ShardingError(
            f"{path}: is {type(wide).__name__}, and slice_columns takes a plain EmbeddingBagCollection. Load the sharded model's state dict into a "
            "model that is not sharded, and slice that"
        )
    # The copy gets the narrow tables where it would copy the wide ones.
    narrow: Model = copy.deepcopy(
        model, {id(masked): NarrowEmbeddingBagCollection(wide, columns, widened=readers is None)}
    )
    for name, place in (readers or {}).items():
        _slice_reader(narrow, name, place, wide, columns)
    if example is not None:
        _compare(model, narrow, masked, columns, example)
    return narrow


def masked_tables(model: nn.Module) -> tuple[str, MaskedEmbeddingBagCollection]:
    """The one MaskedEmbeddingBagCollection in `model`, with its name there.

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
            f"{type(model).__name__}: has {len(found)} masked collections ({', '.join(name for name, _ in found)}), expected one: "
            "a search shares its target over the tables of one collection.\n"
            "  Put all tables into one EmbeddingBagCollection, and give each part of the model its own keys of the KeyedTensor that it returns."
        )
    return found[0]


def _slice_reader(
    model: nn.Module, name: str, place: int | tuple[int, int], wide: EmbeddingBagCollection, columns: Columns
) -> None:
    dimension, start = place if isinstance(place, tuple) else (place, 0)
    dims = {config.name: config.embedding_dim for config in wide.embedding_bag_configs()}
    tables = [table for _, _, table in output_keys(wide)]
    total = sum(dims[table] for table in tables)
    parameters = dict(model.named_parameters())
    if name not in parameters:
        raise SlicingError(f"readers: the model has no weight {name!r}. Its weights: {', '.join(parameters)}")
    weight = parameters[name]
    if dimension >= weight.dim() or weight.shape[dimension] < start + total:
        raise SlicingError(
            f"readers: {name} has the shape {tuple(weight.shape)}: its dimension {dimension} cannot hold {total} columns from {start} on"
        )
    kept, first = [torch.arange(start)], start
    for table in tables:
        kept.append(columns[table] + first)
        first += dims[table]
    kept.append(torch.arange(first, weight.shape[dimension]))
    module_name, _, attribute = name.rpartition(".")
    module = model.get_submodule(module_name)
    narrow = weight.detach().index_select(dimension, torch.cat(kept).to(weight.device))
    setattr(module, attribute, nn.Parameter(narrow, requires_grad=weight.requires_grad))
    if isinstance(module, nn.Linear) and attribute == "weight":
        module.out_features, module.in_features = narrow.shape


@torch.no_grad()
def _compare(
    wide: nn.Module,
    narrow: nn.Module,
    masked: MaskedEmbeddingBagCollection,
    columns: Columns,
    example: KeyedJaggedTensor,
) -> None:
    before = masked.mask.values
    masked.mask.set(masked.mask.layout.join(columns).to(example.device()))
    try:
        with as_evaluated(wide), as_evaluated(narrow):
            difference = float((wide(example) - narrow(example)).abs().max())
    except RuntimeError as error:
        raise SlicingError(
            f"the narrow model cannot take what its tables give: {error}\n  A layer that reads the tables but is not in `readers`, or has more than "
            "a weight to slice (BatchNorm, LayerNorm), needs the closed columns: leave `readers` out, and they come back as zeros"
        ) from error
    finally:
        masked.mask.set(before)
    if not difference <= 1e-5:
        raise SlicingError(
            f"the narrow model's output differs from the masked model's by {difference:.3g}. Is every weight that reads the tables in `readers`, "
            "with the dimension that runs over their columns?"
        )
