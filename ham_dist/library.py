"""The library's door: find, cut and export the columns of anybody's TorchRec model.

model.ebc = mask_columns(model.ebc)
search = Search(model, columns=24)
for train_batch, validation_batch in ...:
    search.step(lambda: loss(model, validation_batch))
    ...                                                 # a step of your own on the weights
narrow = slice_columns(model, search.finish(), readers={"over.0.weight": 1})
export(narrow, "bundle")
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from ham_dist.config.schema import Target
from ham_dist.distributed.ranks import process_group
from ham_dist.embedding.mask import (
    ColumnLayout,
    ColumnMask,
    Columns,
    MaskedEmbeddingBagCollection,
    as_evaluated,
)
from ham_dist.embedding.slicing import SlicedEmbeddingBagCollection, masked_tables, slice_columns
from ham_dist.embedding.tables import TableChunk
from ham_dist.errors import BundleError, SlicingError
from ham_dist.export.alone import write_bundle_alone
from ham_dist.export.bundle import open_bundle
from ham_dist.export.manifest import FieldEntry
from ham_dist.export.precisions import precision_of
from ham_dist.export.writer import Description
from ham_dist.methods.budget import Budget
from ham_dist.methods.ham import HamSettings, HardAuxiliaryMask
from ham_dist.methods.method import SearchSpace

__all__ = ["MaskedEmbeddingBagCollection", "Search", "export", "mask_columns", "slice_columns"]


def mask_columns(ebc: EmbeddingBagCollection) -> MaskedEmbeddingBagCollection:
    """`ebc` with a mask over its columns, all open; it replaces `ebc` in the model, before DistributedModelParallel shards the model.

    Raises:
        SlicingError: It is not an EmbeddingBagCollection, or is sharded already.
    """
    if not isinstance(ebc, EmbeddingBagCollection):
        kind = type(ebc).__name__
        how = {
            "EmbeddingCollection": "Sequence embeddings have no pooled columns to mask; use an EmbeddingBagCollection for the tables to search.",
            "ShardedEmbeddingBagCollection": "Call mask_columns before DistributedModelParallel shards the model.",
            "MaskedEmbeddingBagCollection": "It is masked already: pass it on as it is.",
        }.get(kind, "Pass the model's EmbeddingBagCollection.")
        raise SlicingError(f"mask_columns: got {kind}, expected torchrec's EmbeddingBagCollection. {how}")
    return MaskedEmbeddingBagCollection(ebc, ColumnMask(ColumnLayout.of(ebc)))


class Search:
    """HAM on any model: alpha, one number for each column of its tables (HAM paper, Eq. 2 and 3).

    Args:
        model: Holds one MaskedEmbeddingBagCollection; it may be sharded, but slice_columns takes tables that are not.
        columns: Columns to keep, in all tables together.
        bytes: Bytes to keep, in place of `columns`; a number counts as many bytes as its table's data type has.
        settings: alpha_init, alpha_learning_rate and penalty (default: those of the paper).
    Raises:
        SlicingError: The model has no masked tables, or has several collections of them.
        TargetError: The tables cannot meet the target.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        columns: int | None = None,
        bytes: int | None = None,
        settings: HamSettings | None = None,
    ) -> None:
        self.model = model
        _, masked = masked_tables(model)
        self.mask = masked.mask
        layout = self.mask.layout
        space = SearchSpace(
            layout=layout,
            budget=Budget(Target(columns=columns, bytes=bytes), layout),
            column_norms=_not_known,
            seed=0,
            device=next(model.parameters()).device,
        )
        self.method = HardAuxiliaryMask(space, settings or HamSettings())

    def step(self, loss: Callable[[], torch.Tensor]) -> None:
        """One step on alpha; the mask that it gives is in force afterwards. Weights and BatchNorm's statistics stay as they are.

        loss: makes the mean loss of this rank on a validation batch, by calling the model, which is in evaluation mode then.
        """

        def gradient_at(mask: torch.Tensor) -> torch.Tensor:
            values = mask.clone().requires_grad_()
            with self.mask.differentiable(values), as_evaluated(self.model):
                value = loss()
            (gradient,) = torch.autograd.grad(value, values)
            return process_group.sum_over_ranks(gradient) / process_group.world_size()

        self.method.step(gradient_at)
        self.mask.set(self.method.mask())

    @property
    def used(self) -> int:
        """Columns (or bytes) that are open."""
        return self.method.space.budget.used(self.method.mask())

    def finish(self) -> Columns:
        """Close the search on just the target: the columns with the highest alpha, by table. The mask leaves those open."""
        choice = self.method.choice()
        self.mask.set(choice.to(self.method.space.device))
        return self.mask.layout.split(choice)


def export(
    model: nn.Module,
    out: str | Path,
    *,
    precision: str = "fp32",
    run: Mapping[str, Any] | None = None,
) -> None:
    """Writes the tables of a sliced model, and its other weights, as a bundle: safetensors and JSON, with a sha256 of every file.

    Each call works by itself and waits for no other rank. In a job of several ranks, call it on one of them; if all ranks call it
    with the same `out`, the first to finish writes the bundle, and each other one checks that the bundle holds its weights too.

    Args:
        model: The result of `slice_columns`. `ham_dist.export.bundle.open_bundle(out)` gives its `.tables()` and `.dense()` back.
        out: A folder that does not exist yet.
        precision: Of the tables: "fp32" or "fp16".
        run: Where the bundle comes from, as JSON.
    Raises:
        BundleError: `out` exists, the bundle cannot be written, or it does not hold the model's weights.
    """
    path, narrow = _narrow_tables(model)
    tables = {
        config.name: narrow.ebc.embedding_bags[config.name].weight.detach().cpu()
        for config in narrow.ebc.embedding_bag_configs()
    }
    dense = {
        name: values.detach().cpu()
        for name, values in model.state_dict().items()
        if not name.startswith(f"{path}.")
    }
    fields = [
        FieldEntry(name=name, rows=table.shape[0], width=table.shape[1], multi_valued=True)
        for name, table in tables.items()
    ]

    def verify(written: Path) -> dict[str, bool]:
        if not _holds(written, tables, dense, precision):
            raise BundleError(
                f"{written}: what was written is not what the model holds. Export again, on another disk if it happens twice."
            )
        return {"tables_equal": precision == "fp32"}

    try:
        write_bundle_alone(
            Path(out),
            Description(
                fields,
                model=None,
                precision=precision,
                run={**(run or {}), "tables": narrow.description()},
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
                f"{out}: is there already, with other weights than those of rank {process_group.rank()}.\n"
                "  Delete it, or give another folder; ranks that export to one folder must hold the same weights."
            ) from None


def _narrow_tables(model: nn.Module) -> tuple[str, SlicedEmbeddingBagCollection]:
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, SlicedEmbeddingBagCollection)
    ]
    if len(found) != 1:
        raise BundleError(
            f"export: {type(model).__name__} has {len(found)} SlicedEmbeddingBagCollections, expected 1. Export the result of slice_columns."
        )
    return found[0]


def _holds(
    bundle: Path,
    tables: Mapping[str, torch.Tensor],
    dense: Mapping[str, torch.Tensor],
    precision: str,
) -> bool:
    """Returns True if a bundle holds these weights bit for bit, the tables in `precision`."""
    stored = open_bundle(bundle)
    kind = getattr(torch, precision_of(precision).type)
    wanted = {name: table.to(kind) for name, table in tables.items()}
    return stored.manifest.precision == precision and all(
        found.keys() == expected.keys()
        and all(torch.equal(found[name], values) for name, values in expected.items())
        for found, expected in ((stored.tables(), wanted), (stored.dense(), dense))
    )


def _not_known() -> torch.Tensor:
    raise NotImplementedError("HAM asks for no column norms")
