"""Public functions: search, slice and export the columns of any TorchRec model.

model.ebc = mask_columns(model.ebc)
search = Search(model, columns=24)
for train_batch, validation_batch in ...:
    search.step(lambda: loss(model, validation_batch))
    ...                                                 # your own step on the weights
sliced = slice_columns(model, search.finish(), readers={"over.0.weight": 1})
export(sliced, "bundle")
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from ham_dist.config.base import RowWeights
from ham_dist.config.schema import MethodSettings
from ham_dist.config.target import BundlePrecision, Target
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.ranks.closed_columns import closed_columns
from ham_dist.embedding.mask import (
    ColumnLayout,
    ColumnMask,
    Columns,
    MaskedEmbeddingBagCollection,
    as_evaluated,
)
from ham_dist.embedding.slicing import SlicedEmbeddingBagCollection, masked_tables, slice_columns
from ham_dist.embedding.tables import TableChunk
from ham_dist.errors import BundleError, ConfigError, ShardingError, SlicingError
from ham_dist.export.alone import write_bundle_alone
from ham_dist.export.bundle import open_bundle
from ham_dist.export.codecs.codec import TableRows
from ham_dist.export.codecs.column_bytes import served_layout
from ham_dist.export.codecs.floats import FloatCodec
from ham_dist.export.codecs.registry import codec_of
from ham_dist.export.manifest import FieldEntry
from ham_dist.export.writer import Description
from ham_dist.methods.budget import Budget
from ham_dist.methods.method import MaskLoss, Method, SearchSpace
from ham_dist.methods.registry import METHODS
from ham_dist.training.covariance import covariances_of, moment

__all__ = ["MaskedEmbeddingBagCollection", "Search", "export", "mask_columns", "slice_columns"]


def mask_columns(ebc: EmbeddingBagCollection) -> MaskedEmbeddingBagCollection:
    """Returns `ebc` with a mask over its columns, in which all columns are open.

    Put it in the place of `ebc` in the model before DistributedModelParallel shards the model.

    Raises:
        SlicingError: `ebc` is not an EmbeddingBagCollection, or is already sharded or masked.
    """
    if not isinstance(ebc, EmbeddingBagCollection):
        kind = type(ebc).__name__
        how = {
            "EmbeddingCollection": "Sequence embeddings have no pooled columns to mask; "
            "use an EmbeddingBagCollection for the tables to search.",
            "ShardedEmbeddingBagCollection": "Call mask_columns before DistributedModelParallel "
            "shards the model.",
            "MaskedEmbeddingBagCollection": "It is already masked: use it as it is.",
        }.get(kind, "Pass the model's EmbeddingBagCollection.")
        raise SlicingError(f"mask_columns: got {kind}, expected torchrec's EmbeddingBagCollection. {how}")
    return MaskedEmbeddingBagCollection(ebc, ColumnMask(ColumnLayout.of(ebc)))


class Search:
    """A search on any model, by any method; by default HAM, which learns one number alpha per column.

    Args:
        model: Model with one MaskedEmbeddingBagCollection. It may be sharded, but slice_columns needs a model
            that is not.
        columns: Number of columns to keep, in all tables together.
        bytes: Number of bytes to keep, instead of `columns`; each number counts with the size of its table's
            data type, or in `precision`.
        precision: Codec in which bytes are counted, if the model will be exported in it.
        method: Name of the method, or its settings, for example `HamSettings(penalty=1e-4)`.
        seed: Seed for methods that draw random numbers; the same on every rank.
    Raises:
        ConfigError: There is no such method, or it needs the trainer.
        SlicingError: The model has no masked tables, or several collections of them.
        TargetError: The tables cannot meet the target.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        columns: int | None = None,
        bytes: int | None = None,
        precision: BundlePrecision | None = None,
        method: str | MethodSettings = "ham",
        seed: int = 0,
    ) -> None:
        self.model = model
        _, self._masked = masked_tables(model)
        self.mask = self._masked.mask
        layout, target = self.mask.layout, Target(columns=columns, bytes=bytes, precision=precision)
        space = SearchSpace(
            layout=layout,
            budget=Budget(target, served_layout(layout, target.precision)),
            column_norms=lambda: _column_norms(self._masked),
            covariances=lambda weights: _covariances(self._masked, weights),
            seed=seed,
            device=next(model.parameters()).device,
        )
        settings = _settings_of(method)
        self.method = METHODS[settings.name](space, settings)
        if type(self.method).transform is not Method.transform:
            raise ConfigError(
                f"Search: method = {settings.name!r} trains a function of the tables together with the "
                "weights, expected a method that only chooses columns.\n"
                "  Use another method, or train with `ham-dist train`."
            )
        self._scored = False

    def step(self, loss: Callable[[], torch.Tensor]) -> None:
        """Takes one step of the method and applies the resulting mask.

        Weights and BatchNorm statistics do not change.

        Args:
            loss: Calls the model on a validation batch and returns the mean loss of this rank. The model is
                in evaluation mode during the call. A method may call it several times.
        """
        self.method.step(self._loss_of(loss))
        self.mask.set(self.method.mask())

    def score(self, losses: Iterable[Callable[[], torch.Tensor]]) -> None:
        """Lets a method that does not search read data once, if it `reads_data`.

        Args:
            losses: As in `step`, one function per batch; all batches have the same number of rows.
        """

        def counted() -> Iterator[MaskLoss]:
            for loss in losses:
                self._scored = True
                yield self._loss_of(loss)

        self.method.score(counted())

    @property
    def used(self) -> int:
        """Number of columns (or bytes) in use."""
        return self.method.used()

    def finish(self) -> Columns:
        """Ends the search: opens only the columns that the method chooses, which meet the target.

        The factors of a soft mask are multiplied into the tables.

        Returns:
            The indices of the kept columns, by table.
        Raises:
            ConfigError: The method reads data once, and `score` was not called, or without any batch.
            ShardingError: The mask is soft, and the tables are sharded.
        """
        if self.method.reads_data and not self._scored:
            raise ConfigError(
                f"Search: method = {self.method.settings.name!r} has seen no data, expected a call of score\n"
                "  Call search.score(losses) with a loss function per batch before finish()."
            )
        choice = self.method.choice()
        if (factors := self.method.fold()) is not None:
            _scale_columns(self._masked, factors)
        self.mask.set(choice.to(self.method.space.device))
        return self.mask.layout.split(choice)

    def _loss_of(self, loss: Callable[[], torch.Tensor]) -> MaskLoss:
        closed = closed_columns(self.method.closed, self.method.space.seed)

        def mean(values: torch.Tensor) -> torch.Tensor:
            with self.mask.differentiable(values, closed), as_evaluated(self.model):
                return loss()

        def gradient_at(mask: torch.Tensor) -> torch.Tensor:
            values = mask.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(mean(values), values)
            return process_group.sum_over_ranks(gradient) / process_group.world_size()

        @torch.no_grad()
        def at(mask: torch.Tensor) -> float:
            return float(process_group.sum_over_ranks(mean(mask))) / process_group.world_size()

        return MaskLoss(gradient_at, at, rows=1)


def export(
    model: nn.Module,
    out: str | Path,
    *,
    precision: str = "fp32",
    run: Mapping[str, Any] | None = None,
) -> None:
    """Writes the tables and the other weights of a sliced model as a bundle.

    A bundle has safetensors and JSON files, and the sha256 of every file. `open_bundle(out)` of
    `ham_dist.export.bundle` reads its `.tables()` and `.dense()`.

    A call does not wait for other ranks. In a job of several ranks, call it on one of them. If all ranks call
    it with the same `out`, the first to finish writes the bundle, and the others check that it has the same
    weights as theirs.

    Args:
        model: Result of `slice_columns`.
        out: Folder to create; it must not exist.
        precision: Codec of the tables: "fp32", "fp16", "int8", "int6" or "int4". The loss of accuracy of the
            last three is not measured here; compare the model's AUC with `Bundle.tables` of the bundle.
        run: Origin of the bundle, as JSON values.
    Raises:
        BundleError: `out` exists (unless another rank wrote the same weights to it), the bundle cannot be
            written, or it does not hold the model's weights.
    """
    path, sliced = _sliced_tables(model)
    tables = {
        config.name: sliced.ebc.embedding_bags[config.name].weight.detach().cpu()
        for config in sliced.ebc.embedding_bag_configs()
    }
    dense = {
        name: values.detach().cpu()
        for name, values in model.state_dict().items()
        if not name.startswith(f"{path}.")
    }
    fields = [
        FieldEntry(name=name, num_embeddings=table.shape[0], embedding_dim=table.shape[1], multi_valued=True)
        for name, table in tables.items()
    ]

    def verify(written: Path) -> dict[str, bool]:
        if not _holds(written, tables, dense, precision):
            raise BundleError(
                f"{written}: the written weights differ from the model's. "
                "Export again; if it happens again, use another disk."
            )
        return {"tables_equal": precision == "fp32"}

    try:
        write_bundle_alone(
            Path(out),
            Description(
                fields,
                model=None,
                precision=precision,
                run={**(run or {}), "tables": sliced.description()},
            ),
            chunks=[TableChunk(name, 0, table) for name, table in tables.items()],
            dense=dense,
            verify=verify,
        )
    except BundleError:
        if process_group.world_size() == 1 or not Path(out).is_dir():
            raise
        if not _holds(Path(out), tables, dense, precision):
            raise BundleError(
                f"{out}: already exists, with other weights than those of rank {process_group.rank()}.\n"
                "  Delete it, or give another folder. "
                "Ranks that export to one folder must have the same weights."
            ) from None


def _sliced_tables(model: nn.Module) -> tuple[str, SlicedEmbeddingBagCollection]:
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, SlicedEmbeddingBagCollection)
    ]
    if len(found) != 1:
        raise BundleError(
            f"export: {type(model).__name__} has {len(found)} SlicedEmbeddingBagCollections, expected 1. "
            "Export the result of slice_columns."
        )
    return found[0]


def _holds(
    bundle: Path,
    tables: Mapping[str, torch.Tensor],
    dense: Mapping[str, torch.Tensor],
    precision: str,
) -> bool:
    """Returns True if a bundle has exactly these weights, with the tables in `precision`."""
    stored = open_bundle(bundle)
    expected_tables = {name: _as_stored(table, precision) for name, table in tables.items()}
    return stored.manifest.precision == precision and all(
        found.keys() == expected.keys()
        and all(torch.equal(found[name], values) for name, values in expected.items())
        for found, expected in ((stored.tables(), expected_tables), (stored.dense(), dense))
    )


def _as_stored(table: torch.Tensor, precision: str) -> torch.Tensor:
    """A table as `Bundle.tables` returns it."""
    codec = codec_of(precision)
    if isinstance(codec, FloatCodec):
        return table.to(codec.dtype)
    rows = table.float()
    return codec.round_trip(rows, codec.fit(TableRows([rows])))


def _settings_of(method: str | MethodSettings) -> MethodSettings:
    if isinstance(method, MethodSettings):
        return method
    if method not in METHODS:
        raise ConfigError(
            f"Search: method = {method!r} is not a size-search method, "
            f"expected one of {', '.join(METHODS)}.\n"
            "  Pass its name, or its settings."
        )
    return METHODS[method].Settings.model_validate({})


def _tables(masked: MaskedEmbeddingBagCollection) -> dict[str, torch.Tensor]:
    """The weights of the tables by name, if they are not sharded."""
    if not isinstance(masked.ebc, EmbeddingBagCollection):
        raise ShardingError(
            f"Search: the method reads or changes whole tables, but they are sharded "
            f"({type(masked.ebc).__name__}).\n"
            "  Search before DistributedModelParallel shards the model, or use another method, such as ham."
        )
    return {name: bag.weight.detach() for name, bag in masked.ebc.embedding_bags.items()}


def _column_norms(masked: MaskedEmbeddingBagCollection) -> torch.Tensor:
    """Norms of the columns, (S,) float32 on CPU."""
    tables = _tables(masked)
    return torch.cat([tables[table].float().norm(dim=0).cpu() for table in masked.mask.layout.dims])


def _covariances(masked: MaskedEmbeddingBagCollection, weights: RowWeights) -> dict[str, torch.Tensor]:
    if weights != "rows":
        raise ConfigError(
            f"Search: weights = {weights!r} needs the training samples, expected 'rows'.\n"
            "  Use weights = 'rows', or `ham-dist train`, which reads the samples."
        )
    return covariances_of({table: moment(values).cpu() for table, values in _tables(masked).items()})


def _scale_columns(masked: MaskedEmbeddingBagCollection, factors: torch.Tensor) -> None:
    for table, values in _tables(masked).items():
        values.mul_(factors[masked.mask.layout.slices[table]].to(values))
