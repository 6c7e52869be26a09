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
from typing import Any, Literal

import torch
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from ham_dist.config.schema import SearchSettings, Target
from ham_dist.distributed.ranks import process_group
from ham_dist.embedding.mask import (
    ColumnLayout,
    ColumnMask,
    Columns,
    MaskedEmbeddingBagCollection,
    as_evaluated,
)
from ham_dist.embedding.slicing import NarrowEmbeddingBagCollection, masked_tables, slice_columns
from ham_dist.embedding.tables import BYTES_PER_NUMBER, TableChunk
from ham_dist.errors import BundleError
from ham_dist.export.bundle import open_bundle
from ham_dist.export.manifest import FieldEntry
from ham_dist.export.writer import Description, write_bundle
from ham_dist.methods.budget import Budget
from ham_dist.methods.ham import HardAuxiliaryMask
from ham_dist.methods.method import SearchSpace

__all__ = ["MaskedEmbeddingBagCollection", "Search", "export", "mask_columns", "slice_columns"]


def mask_columns(ebc: EmbeddingBagCollection) -> MaskedEmbeddingBagCollection:
    """`ebc` with a mask over its columns, all open; takes its place in the model. Do it before DistributedModelParallel shards the model."""
    return MaskedEmbeddingBagCollection(ebc, ColumnMask(ColumnLayout.of(ebc)))


class Search:
    """HAM on any model: alpha, one number for each column of its tables (HAM paper, Eq. 2 and 3).

    model:    holds one MaskedEmbeddingBagCollection; it may be sharded, but slice_columns takes tables that are not.
    columns:  to keep, in all tables together; or bytes, at 4 bytes a number.
    settings: alpha_start, alpha_learning_rate and push are read; the paper's by default.
    raises:   TargetError if the tables cannot meet the target.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        columns: int | None = None,
        bytes: int | None = None,
        settings: SearchSettings | None = None,
    ) -> None:
        self.model = model
        _, masked = masked_tables(model)
        self.mask = masked.mask
        layout = self.mask.layout
        space = SearchSpace(
            layout=layout,
            budget=Budget(Target(columns=columns, bytes=bytes), layout, BYTES_PER_NUMBER),
            column_norms=_not_known,
            seed=0,
            device=next(model.parameters()).device,
        )
        self.method = HardAuxiliaryMask(space, settings or SearchSettings())

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
    precision: Literal["fp32", "fp16"] = "fp32",
    run: Mapping[str, Any] | None = None,
) -> None:
    """Write the tables of a sliced model, and the rest of its weights, as a bundle: safetensors and JSON, with a sha256 of every file.

    model:  what `slice_columns` gave. `ham_dist.export.bundle.open_bundle(out)` gives its `.tables()` and `.dense()` back.
    run:    what the bundle should say of where it comes from, as JSON.
    raises: BundleError if it cannot be written, or its fp32 tables are not the model's bit for bit.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, NarrowEmbeddingBagCollection)
    ]
    if len(found) != 1:
        raise BundleError(
            f"{type(model).__name__}: has {len(found)} NarrowEmbeddingBagCollections, and one is wanted. Export what slice_columns gave"
        )
    path, narrow = found[0]
    tables = {
        config.name: narrow.ebc.embedding_bags[config.name].weight.detach().cpu()
        for config in narrow.ebc.embedding_bag_configs()
    }
    fields = [
        FieldEntry(name=name, rows=table.shape[0], width=table.shape[1], multi_valued=True)
        for name, table in tables.items()
    ]

    def verify(partial: Path) -> dict[str, bool]:
        stored = open_bundle(partial).tables()
        if precision == "fp32" and not all(
            torch.equal(stored[name], table) for name, table in tables.items()
        ):
            raise BundleError(
                f"{partial}: what was written is not what the model holds. Export again, on another disk if it happens twice"
            )
        return {"tables_equal": precision == "fp32"}

    write_bundle(
        Path(out),
        Description(
            fields, model=None, precision=precision, run={**(run or {}), "tables": narrow.description()}
        ),
        chunks=[TableChunk(name, 0, table) for name, table in tables.items()],
        dense={
            name: values for name, values in model.state_dict().items() if not name.startswith(f"{path}.")
        },
        verify=verify,
    )


def _not_known() -> torch.Tensor:
    raise NotImplementedError("HAM asks for no column norms")
