"""The hard auxiliary mask: one number per column of each table, multiplied into what a lookup returns.

Shape letters: B rows of a batch, D columns of all keys, S columns under search.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torchrec.modules.embedding_configs import data_type_to_dtype
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from ham_dist.embedding.tables import BYTES_PER_NUMBER

Columns = Mapping[str, torch.Tensor]
"""Kept column numbers by table name, ascending, int64; an empty tensor for a table that is removed."""

ClosedColumns = Callable[[torch.Tensor], torch.Tensor]
"""Computes the values that columns have where the mask is 0, (B, D) or (D,), from the columns (B, D)."""


class ColumnLayout:
    """Position of each table's columns in a vector of S numbers, one per column.

    Args:
        dims: Columns under search, by table name.
        num_embeddings: C_j, by table name.
        table_of: Table that each key of the looked-up KeyedTensor reads (default: every key is a table of its
            own).
        number_bytes: Bytes per number of each table (default: 4, float32).
    Attributes:
        slices: Positions of each table's columns, by table name.
        size: S.
        column_bytes: Bytes of one column of each table.
        padding_bytes: Most bytes of each table that belong to none of its columns.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_embeddings: Mapping[str, int],
        table_of: Mapping[str, str] | None = None,
        number_bytes: Mapping[str, int] | None = None,
    ) -> None:
        self.dims = dict(dims)
        self.num_embeddings = dict(num_embeddings)
        per_number = dict.fromkeys(self.dims, BYTES_PER_NUMBER) | dict(number_bytes or {})
        self.column_bytes = {table: self.num_embeddings[table] * per_number[table] for table in self.dims}
        self.padding_bytes = 0
        self.table_of = dict(table_of) if table_of is not None else {table: table for table in self.dims}
        self.slices: dict[str, slice] = {}
        start = 0
        for table, dim in self.dims.items():
            self.slices[table] = slice(start, start + dim)
            start += dim
        self.size = start

    @classmethod
    def of(cls, ebc: EmbeddingBagCollection) -> "ColumnLayout":
        """Returns the layout of any EmbeddingBagCollection; its tables may be shared by several features."""
        configs = ebc.embedding_bag_configs()
        return cls(
            {config.name: config.embedding_dim for config in configs},
            {config.name: config.num_embeddings for config in configs},
            {key: table for key, _, table in output_keys(ebc)},
            {config.name: data_type_to_dtype(config.data_type).itemsize for config in configs},
        )

    def split(self, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the columns that a mask (S,) leaves open, by table."""
        return {table: torch.nonzero(mask[part] > 0).flatten().cpu() for table, part in self.slices.items()}

    def join(self, columns: Columns) -> torch.Tensor:
        """Returns the mask (S,), float32, that leaves only `columns` open; the inverse of `split`."""
        mask = torch.zeros(self.size)
        for table, kept in columns.items():
            mask[self.slices[table]][kept] = 1.0
        return mask


def output_keys(ebc: EmbeddingBagCollection) -> list[tuple[str, str, str]]:
    """Returns (key, feature, table) for each key of the KeyedTensor that `ebc` returns, in the same order."""
    configs = ebc.embedding_bag_configs()
    features = [feature for config in configs for feature in config.feature_names]
    return [
        # TorchRec names the output of a feature that several tables read "feature@table".
        (feature if features.count(feature) == 1 else f"{feature}@{config.name}", feature, config.name)
        for config in configs
        for feature in config.feature_names
    ]


class ColumnMask:
    """The mask that lookups are multiplied by. Not a Module, to stay out of DDP, optimizers and state dicts.

    The contract with models: each looked-up column is multiplied by its mask number exactly once, before
    anything else reads it; while `detached` is set, the tables get no gradient. There are two ways to do so,
    with equal logits and equal gradients of the mask:

    - `MaskedEmbeddingBagCollection.forward` multiplies the looked-up vectors. This works with any model, and
      the model needs no change.
    - A model calls `MaskedEmbeddingBagCollection.look_up`, which does not multiply, and passes `values` to a
      module that multiplies them into the only weights that read the columns: D products per output in place
      of B x D. `ham_dist.models.ctr.CTRModel` and its interactions do so. It calls `applied` in between,
      because a closed column may have another value than 0 while a method computes scores.

    Attributes:
        layout: Position of each table's columns in `values`.
        values: (S,) float32 in the layout's order; None while every column is open (nothing is multiplied).
        detached: True while lookups have no gradient.
        closed: Computes the values c of closed columns: x becomes m x + (1 - m) c. None: zeros.
    """

    def __init__(self, layout: ColumnLayout) -> None:
        self.layout = layout
        self.values: torch.Tensor | None = None
        self.detached = False
        self.closed: ClosedColumns | None = None
        self._places: dict[tuple[tuple[str, ...], tuple[int, ...]], torch.Tensor | None] = {}

    def set(self, values: torch.Tensor | None) -> None:
        """Multiplies by `values` from the next lookup on; None opens every column."""
        self.values = values

    @contextmanager
    def differentiable(self, values: torch.Tensor, closed: ClosedColumns | None = None) -> Iterator[None]:
        """Context in which lookups are multiplied by `values`, with a gradient to `values` only.

        The looked-up vectors are detached from the graph: fused kernels update their tables inside
        backward(), so any gradient that reached them would train the tables on validation data.

        Args:
            values: (S,).
            closed: As in the attribute; its result must have no gradient.
        """
        before = self.values
        self.values, self.detached, self.closed = values, True, closed
        try:
            yield
        finally:
            self.values, self.detached, self.closed = before, False, None

    def __call__(self, looked_up: KeyedTensor) -> KeyedTensor:
        """Returns `looked_up` with closed columns set to 0, or to the values that `closed` computes.

        Columns are matched by key, because the order of the keys depends on how the tables are sharded.
        """
        if self.values is None:
            return looked_up
        values = looked_up.values()
        if self.detached:
            values = values.detach()
        keys, lengths = looked_up.keys(), looked_up.length_per_key()
        return KeyedTensor(keys, lengths, self._masked(values, self._in_order_of(keys, lengths)))

    def applied(self, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the columns (B, S), and the mask that a model has to multiply them by, or None.

        If closed columns have other values than 0, the mask is applied here, and there is none left.

        Args:
            columns: In the layout's order.
        """
        if self.values is None or self.closed is None:
            return columns, self.values
        return self._masked(columns, self.values), None

    def _masked(self, columns: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        masked = columns * mask
        return masked if self.closed is None else masked + (1.0 - mask) * self.closed(columns)

    def _in_order_of(self, keys: Sequence[str], lengths: Sequence[int]) -> torch.Tensor:
        assert self.values is not None
        order = (tuple(keys), tuple(lengths))
        if order not in self._places:
            self._places[order] = self._place(keys, lengths)
        places = self._places[order]
        if places is None:
            return self.values
        # Padding columns read the 0 appended to the mask. One index_select for all keys: with one per key,
        # each would have a gradient as long as the mask.
        return torch.cat([self.values, self.values.new_zeros(1)]).index_select(
            0, places.to(self.values.device)
        )

    def _place(self, keys: Sequence[str], lengths: Sequence[int]) -> torch.Tensor | None:
        """Returns the mask position of each looked-up column; None if they are already in mask order."""
        places: list[int] = []
        for key, stored_dim in zip(keys, lengths, strict=True):
            part = self.layout.slices[self.layout.table_of[key]]
            places += [
                *range(part.start, part.stop),
                *[self.layout.size] * (stored_dim - (part.stop - part.start)),
            ]
        return None if places == list(range(self.layout.size)) else torch.tensor(places)


class MaskedEmbeddingBagCollection(nn.Module):
    """An EmbeddingBagCollection, sharded or not, whose closed columns are 0 in its output.

    It takes the place of the collection in any TorchRec model.

    Attributes:
        ebc: The embedding tables.
        mask: The mask, shared with the search that changes it.
    """

    def __init__(self, ebc: nn.Module, mask: ColumnMask) -> None:
        super().__init__()
        self.ebc = ebc
        self.mask = mask

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Looks up all keys and applies the mask.

        Args:
            features: Ids of B rows.
        Returns:
            KeyedTensor with values (B, sum of the stored dims).
        """
        return self.mask(self.look_up(features))

    def look_up(self, features: KeyedJaggedTensor, sent: object = None) -> KeyedTensor:
        """Looks up all keys without the mask, for a model that applies the mask itself (see `ColumnMask`).

        Args:
            features: Ids of B rows.
            sent: As in the function `look_up`.
        Returns:
            KeyedTensor with values (B, sum of the stored dims); without a gradient while the mask is
            detached.
        """
        # Data-parallel tables have their own DDP: it treats a lookup with a gradient as the start of a
        # training step, and would wait for its backward pass.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.mask.detached):
            return look_up(self.ebc, features, sent)


def look_up(ebc: nn.Module, features: KeyedJaggedTensor, sent: object = None) -> KeyedTensor:
    """Looks up all keys of `ebc`.

    Args:
        ebc: The embedding tables, sharded or not.
        features: Ids of B rows.
        sent: The exchange of these ids between ranks if it has been started; only a sharded `ebc` accepts it.
    Returns:
        KeyedTensor with values (B, sum of the stored dims).
    """
    looked_up: KeyedTensor = ebc(features) if sent is None else ebc(features, sent)
    return looked_up


def ordered_columns(
    looked_up: KeyedTensor, dims: Mapping[str, int], counts: Mapping[str, torch.Tensor] | None = None
) -> torch.Tensor:
    """Returns the columns in use, (B, D), for any key order and any padding in `looked_up`.

    Args:
        looked_up: Vectors of the keys in `dims`.
        dims: Columns in use, by key; the keys of the result are in this order.
        counts: Number of ids in each bag, (B, 1), for keys that hold sums; their columns are divided by it.
    """
    keys, lengths, values = looked_up.keys(), looked_up.length_per_key(), looked_up.values()
    if not counts and list(keys) == list(dims):
        if list(lengths) == list(dims.values()):
            return values
        if len(set(lengths)) == len(set(dims.values())) == 1:
            # All tables have the same dims (for example dim 1 stored as 4): one slice for all of them.
            return values.unflatten(1, (len(lengths), lengths[0]))[:, :, : next(iter(dims.values()))].flatten(
                1
            )
    # One split: the gradient of each `looked_up[key]` would be as large as all columns, and mostly zeros.
    by_key = dict(zip(keys, values.split(lengths, dim=1), strict=True))
    parts = {key: by_key[key][:, :dim] for key, dim in dims.items()}
    return torch.cat(
        [part / counts[key] if counts and key in counts else part for key, part in parts.items()], dim=1
    )


@contextmanager
def as_evaluated(model: nn.Module) -> Iterator[None]:
    """Context in which `model` is in evaluation mode; afterwards each module is back in its former mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
