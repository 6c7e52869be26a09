"""A 0/1 number for each column of each table, multiplied into what a lookup returns.

B rows, S columns under search
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torchrec.modules.embedding_configs import data_type_to_dtype
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from ham_dist.embedding.tables import BYTES_PER_NUMBER

Columns = Mapping[str, torch.Tensor]
"""Kept column numbers by table name, ascending, int64; empty for a table that leaves."""


class ColumnLayout:
    """Where each table's columns stand in a vector of S numbers.

    Args:
        dims: Columns under search, by table name.
        rows: C_j, by table name.
        table_of: The table behind each key of the looked-up KeyedTensor (default: each key is its own table).
        number_bytes: Bytes of one number of each table (default: 4, float32).
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        rows: Mapping[str, int],
        table_of: Mapping[str, str] | None = None,
        number_bytes: Mapping[str, int] | None = None,
    ) -> None:
        self.dims = dict(dims)
        self.rows = dict(rows)
        self.number_bytes = dict.fromkeys(self.dims, BYTES_PER_NUMBER) | dict(number_bytes or {})
        self.table_of = dict(table_of) if table_of is not None else {table: table for table in self.dims}
        self.slices: dict[str, slice] = {}
        start = 0
        for table, width in self.dims.items():
            self.slices[table] = slice(start, start + width)
            start += width
        self.size = start

    @classmethod
    def of(cls, ebc: EmbeddingBagCollection) -> "ColumnLayout":
        """The layout of any EmbeddingBagCollection, also one whose tables are shared by several features."""
        configs = ebc.embedding_bag_configs()
        return cls(
            {config.name: config.embedding_dim for config in configs},
            {config.name: config.num_embeddings for config in configs},
            {key: table for key, _, table in output_keys(ebc)},
            {config.name: data_type_to_dtype(config.data_type).itemsize for config in configs},
        )

    def split(self, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """The columns that a (S,) mask leaves open, by table."""
        return {table: torch.nonzero(mask[part] > 0).flatten().cpu() for table, part in self.slices.items()}

    def join(self, columns: Columns) -> torch.Tensor:
        """The (S,) float32 mask that leaves just `columns` open; the inverse of `split`."""
        mask = torch.zeros(self.size)
        for table, kept in columns.items():
            mask[self.slices[table]][kept] = 1.0
        return mask


def output_keys(ebc: EmbeddingBagCollection) -> list[tuple[str, str, str]]:
    """Key, feature and table of each part of what `ebc` returns, in its order."""
    configs = ebc.embedding_bag_configs()
    features = [feature for config in configs for feature in config.feature_names]
    return [
        # TorchRec names the output of a feature that several tables read "feature@table".
        (feature if features.count(feature) == 1 else f"{feature}@{config.name}", feature, config.name)
        for config in configs
        for feature in config.feature_names
    ]


class ColumnMask:
    """The mask in force. Not a Module: it must stay out of DDP, of optimizers and of state dicts.

    The contract with models: each looked-up column is multiplied by its number exactly once before anything else reads it,
    and with `detached` the tables get no gradient. There are two places to do it, with equal logits and mask gradients:

    - `MaskedEmbeddingBagCollection.forward` multiplies the vectors. This suits any model, which then knows of no mask.
    - A model calls `MaskedEmbeddingBagCollection.look_up`, which does not multiply, and passes `values` on to a module
      that multiplies them into the weights that alone read the columns: D numbers a weight instead of B times D.
      `ham_dist.models.ctr.CTRModel` and its interactions do so.

    Attributes:
        values: (S,) float32 in the layout's order, or None while every column is open (then nothing is multiplied).
        detached: True where lookups get no gradient.
    """

    def __init__(self, layout: ColumnLayout) -> None:
        self.layout = layout
        self.values: torch.Tensor | None = None
        self.detached = False
        self._places: dict[tuple[tuple[str, ...], tuple[int, ...]], torch.Tensor | None] = {}

    def set(self, values: torch.Tensor | None) -> None:
        """Multiply by `values` from the next lookup on; None opens every column."""
        self.values = values

    @contextmanager
    def differentiable(self, values: torch.Tensor) -> Iterator[None]:
        """Inside, lookups are multiplied by `values` with a gradient to `values` alone.

        The looked-up vectors are cut off the graph: fused tables step inside backward(), so any gradient that reached them
        would train the tables on validation data.
        """
        before = self.values
        self.values, self.detached = values, True
        try:
            yield
        finally:
            self.values, self.detached = before, False

    def __call__(self, looked_up: KeyedTensor) -> KeyedTensor:
        """`looked_up` with closed columns at zero: by key, as the order of keys depends on how tables are sharded."""
        if self.values is None:
            return looked_up
        values = looked_up.values()
        if self.detached:
            values = values.detach()
        keys, lengths = looked_up.keys(), looked_up.length_per_key()
        return KeyedTensor(keys, lengths, values * self._in_order_of(keys, lengths))

    def _in_order_of(self, keys: Sequence[str], lengths: Sequence[int]) -> torch.Tensor:
        assert self.values is not None
        order = (tuple(keys), tuple(lengths))
        if order not in self._places:
            self._places[order] = self._place(keys, lengths)
        places = self._places[order]
        if places is None:
            return self.values
        # Padding reads the zero behind the last number. One index for all keys: cut by key, each part would have a gradient as long as the mask.
        return torch.cat([self.values, self.values.new_zeros(1)]).index_select(
            0, places.to(self.values.device)
        )

    def _place(self, keys: Sequence[str], lengths: Sequence[int]) -> torch.Tensor | None:
        """Which number of the mask each column of the looked-up vectors takes; None if they come in the mask's own order."""
        places: list[int] = []
        for key, stored_dim in zip(keys, lengths, strict=True):
            part = self.layout.slices[self.layout.table_of[key]]
            places += [
                *range(part.start, part.stop),
                *[self.layout.size] * (stored_dim - (part.stop - part.start)),
            ]
        return None if places == list(range(self.layout.size)) else torch.tensor(places)


class MaskedEmbeddingBagCollection(nn.Module):
    """An EmbeddingBagCollection (sharded or not) whose output has its closed columns at zero. Takes the place of `ebc` in any TorchRec model.

    ebc:  the tables.
    mask: shared with the search that moves it.
    """

    def __init__(self, ebc: nn.Module, mask: ColumnMask) -> None:
        super().__init__()
        self.ebc = ebc
        self.mask = mask

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Masked vectors of all keys, values (B, sum of stored dims)."""
        return self.mask(self.look_up(features))

    def look_up(self, features: KeyedJaggedTensor, sent: object = None) -> KeyedTensor:
        """The vectors without the mask, for a model that multiplies it in itself (see ColumnMask).

        They have no gradient where the mask is detached.

        Args:
            sent: As of the function `look_up`.
        """
        # Data-parallel tables have a DDP of their own, which counts a lookup with a gradient as the begin of a step and waits for its end.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.mask.detached):
            return look_up(self.ebc, features, sent)


def look_up(ebc: nn.Module, features: KeyedJaggedTensor, sent: object = None) -> KeyedTensor:
    """The vectors of all keys of `ebc`.

    Args:
        sent: The exchange of the ids of `features` between ranks, if that is under way; only a sharded `ebc` takes one.
    """
    looked_up: KeyedTensor = ebc(features) if sent is None else ebc(features, sent)
    return looked_up


def ordered_columns(
    looked_up: KeyedTensor, dims: Mapping[str, int], counts: Mapping[str, torch.Tensor] | None = None
) -> torch.Tensor:
    """The columns in use, (B, D), keys in the order of `dims`, whatever the order and the padding in `looked_up`.

    counts: (B, 1) by key, for keys that hold sums: what makes means of them.
    """
    keys, lengths, values = looked_up.keys(), looked_up.length_per_key(), looked_up.values()
    if not counts and list(keys) == list(dims):
        if list(lengths) == list(dims.values()):
            return values
        if len(set(lengths)) == len(set(dims.values())) == 1:
            # All alike, as tables of width 1 in rows of 4 are: one cut for all of them.
            return values.unflatten(1, (len(lengths), lengths[0]))[:, :, : next(iter(dims.values()))].flatten(
                1
            )
    # One split, since the gradient of each `looked_up[key]` would be (B, all columns): its own, and zeros.
    by_key = dict(zip(keys, values.split(lengths, dim=1), strict=True))
    parts = {key: by_key[key][:, :width] for key, width in dims.items()}
    return torch.cat(
        [part / counts[key] if counts and key in counts else part for key, part in parts.items()], dim=1
    )


@contextmanager
def as_evaluated(model: nn.Module) -> Iterator[None]:
    """Inside, `model` is in evaluation mode; afterwards each of its modules is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
