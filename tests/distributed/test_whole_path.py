"""Pretraining, search, slicing, retraining and bundle with tables of several kinds, against plain torch."""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from ham_dist.config.schema import RunSettings
from ham_dist.config.target import Target
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding.model import TABLES
from ham_dist.embedding.mask import ColumnLayout, Columns
from ham_dist.embedding.orthogonality import penalty
from ham_dist.export.bundle import open_bundle
from ham_dist.export.manifest import FieldEntry
from ham_dist.export.verify import probabilities
from ham_dist.export.writer import Description, write_bundle
from ham_dist.methods.budget import Budget
from ham_dist.methods.ham import HamSettings, HardAuxiliaryMask
from ham_dist.methods.method import SearchSpace
from ham_dist.stages.search import loss_of
from ham_dist.training.evaluation import predict
from ham_dist.training.loop import weight_step
from ham_dist.training.optimizers import MOMENTS
from ham_dist.training.slicing import slice_interaction, slice_state, slice_weight
from ham_dist.training.state import open_supernet
from tests.support.plain_model import FIELDS, SINGLE_VALUED, PlainModel
from tests.support.ranks import run_on_ranks
from tests.support.search_space import with_gradient
from tests.support.sharded_model import MODELS, local_batch, plain_batch, settings, whole_tables
from tests.support.sharding_types import KINDS, WHOLE

PATHS = {
    "table_wise": {"sharding_type": "table_wise"},
    **{name: KINDS[name] for name in ("row_wise", "column_wise", "data_parallel", "mixed")},
}
KEPT = 12
"""Columns to keep, of the 27 of the supernet."""
PRETRAINED, SEARCHED, RETRAINED, VALIDATED, SCORED = range(3), range(3, 6), range(6, 9), range(10, 13), 20
"""Seeds of the batches."""
SEARCH = {"method": {"name": "ham", "alpha_learning_rate": 1.0, "alpha_init": 0.001}}
"""So fast that three steps close columns and open some again."""


@dataclass
class Outcome:
    """What a path came to. `kept` are the column numbers; `masks` those that the search trained under."""

    start: dict[str, torch.Tensor]
    losses: list[float]
    masks: list[torch.Tensor]
    kept: dict[str, list[int]]
    tables: dict[str, torch.Tensor]
    dense: dict[str, torch.Tensor]
    scores: torch.Tensor


def search_method(run: RunSettings, layout: ColumnLayout) -> HardAuxiliaryMask:
    space = SearchSpace(
        layout,
        Budget(Target(columns=KEPT), layout),
        lambda: torch.ones(layout.size),
        0,
        torch.device("cpu"),
    )
    assert isinstance(run.search.method, HamSettings)
    return HardAuxiliaryMask(space, run.search.method)


def sharded_path(run: RunSettings, bundle: Path) -> Outcome:
    """On each rank: all stages by ham_dist's own steps."""
    state = open_supernet(run, FIELDS, torch.device("cpu"), SINGLE_VALUED)
    start, losses, masks = whole_tables(state), [], []

    def step(seed: int) -> None:
        losses.append(float(process_group.sum_over_ranks(weight_step(state, local_batch(seed)))))

    for seed in PRETRAINED:
        step(seed)
    method = search_method(run, state.sharded.mask.layout)
    for validated, seed in zip(VALIDATED, SEARCHED, strict=True):
        method.step(loss_of(state, local_batch(validated)))
        state.sharded.mask.set(method.mask())
        masks.append(method.mask())
        step(seed)
    kept = method.space.layout.split(method.choice())
    state.sharded.mask.set(method.choice())
    state = slice_state(state, kept)
    for seed in RETRAINED:
        step(seed)
    fields = [
        FieldEntry(
            name=field,
            num_embeddings=rows,
            embedding_dim=len(kept[field]),
            multi_valued=field == "genres",
            keeps_slot=not len(kept[field]),
        )
        for field, rows in FIELDS.items()
        if field in state.interaction.dims
    ]
    write_bundle(
        bundle,
        Description(fields, run.model),
        chunks=state.sharded.chunks(TABLES),
        dense=state.interaction.state_dict(),
    )
    numbers = {field: columns.tolist() for field, columns in kept.items()}
    return Outcome(
        start,
        losses,
        masks,
        numbers,
        whole_tables(state),
        state.interaction.state_dict(),
        predict(state, [local_batch(SCORED)])[0],
    )


def sharded_paths(cases: dict[str, RunSettings], folder: Path) -> dict[str, Outcome]:
    return {name: sharded_path(run, folder / name) for name, run in cases.items()}


class PlainPath:
    """The same stages with nn.EmbeddingBag, autograd and torch.optim.Adam."""

    def __init__(self, run: RunSettings, start: dict[str, torch.Tensor]) -> None:
        self.run, self.model = run, PlainModel(run, start)
        self.base_dims = {field: table.shape[1] for field, table in start.items()}
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.losses: list[float] = []

    def regularizer(self) -> torch.Tensor:
        weights = {field: bag.weight for field, bag in zip(self.model.fields, self.model.bags, strict=True)}
        return sum(
            (penalty(values.T @ values, "gram", self.base_dims[field]) for field, values in weights.items()),
            torch.zeros(()),
        )

    def step(self, seed: int, mask: torch.Tensor | None = None) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        loss = self.model.loss(*plain_batch(seed), mask)
        (loss + self.run.orthogonality.weight * self.regularizer()).backward()
        self.optimizer.step()
        self.losses.append(float(loss.detach()))

    def mask_gradient(self, seed: int, mask: torch.Tensor) -> torch.Tensor:
        self.model.eval()
        values = mask.clone().requires_grad_()
        return torch.autograd.grad(self.model.loss(*plain_batch(seed), values), values)[0]

    def scores(self, seed: int) -> torch.Tensor:
        self.model.eval()
        with torch.no_grad():
            return self.model.interaction(self.model.columns(plain_batch(seed)[0]))

    def cut(self, kept: Columns) -> None:
        """Tables, dense weights and Adam's moments to the columns that stay."""
        wide, moments = (
            self.model,
            {name: self.optimizer.state[weight] for name, weight in self.model.named_parameters()},
        )
        tables = {
            field: bag.weight.detach()[:, kept[field]]
            for field, bag in zip(FIELDS, wide.bags, strict=True)
            if len(kept[field])
        }
        self.model = PlainModel(self.run, tables)
        self.model.interaction = slice_interaction(wide.interaction, self.run.model, kept)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        of_table = {
            f"tables.{number}.weight": (f"tables.{list(FIELDS).index(field)}.weight", field)
            for number, field in enumerate(tables)
        }
        for name, weight in self.model.named_parameters():
            before, field = of_table.get(name, (name, None))
            state = moments[before]
            if not state:
                continue  # A bias before BatchNorm does not move.
            dense = before.removeprefix("interaction.")
            self.optimizer.state[weight] = {"step": state["step"].clone()} | {
                moment: state[moment][:, kept[field]].clone()
                if field
                else slice_weight(wide.interaction, dense, state[moment], kept)
                for moment in MOMENTS
            }


def plain_path(run: RunSettings, start: dict[str, torch.Tensor]) -> Outcome:
    plain, masks = PlainPath(run, start), []
    for seed in PRETRAINED:
        plain.step(seed)
    method = search_method(run, ColumnLayout(plain.base_dims, FIELDS))
    for validated, seed in zip(VALIDATED, SEARCHED, strict=True):
        method.step(with_gradient(partial(plain.mask_gradient, validated)))
        masks.append(method.mask())
        plain.step(seed, method.mask())
    kept = method.space.layout.split(method.choice())
    plain.cut(kept)
    for seed in RETRAINED:
        plain.step(seed)
    numbers = {field: columns.tolist() for field, columns in kept.items()}
    tables = {
        field: bag.weight.detach() for field, bag in zip(plain.model.fields, plain.model.bags, strict=True)
    }
    return Outcome(
        start,
        plain.losses,
        masks,
        numbers,
        tables,
        plain.model.interaction.state_dict(),
        plain.scores(SCORED),
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_stage_equals_plain_torch_however_tables_lie(ranks: int, model: str, tmp_path: Path) -> None:
    """To 3e-5 in the weights, 1e-5 a stage as in the tests of one stage.

    Sums run in another order, and Adam divides small gradients by their own size. Columns and masks are the
    same; the bundle has the tables' bits.
    """
    kinds = (
        PATHS
        if ranks < 4
        else {
            name: kind | {"sharding_types": kind.get("sharding_types", {}) | WHOLE}
            for name, kind in PATHS.items()
        }
    )
    cases = {name: settings(model, sharding=sharding, search=SEARCH) for name, sharding in kinds.items()}
    results = run_on_ranks(ranks, sharded_paths, cases, tmp_path)
    plain = plain_path(cases["mixed"], results[0]["mixed"].start)
    changes = [after - before for before, after in pairwise([torch.ones_like(plain.masks[0]), *plain.masks])]
    assert any((change < 0).any() for change in changes), "columns close"
    assert any((change > 0).any() for change in changes), "and open again"
    assert sum(map(len, plain.kept.values())) == KEPT
    records = {
        field: (values, torch.cat([starts, torch.tensor([len(values)])]))
        for field, (values, starts) in zip(FIELDS, plain_batch(SCORED)[0], strict=True)
    }
    for name in cases:
        found = results[0][name]
        assert found.kept == plain.kept, name
        assert all(
            torch.equal(ours, theirs) for ours, theirs in zip(found.masks, plain.masks, strict=True)
        ), name
        torch.testing.assert_close(
            torch.tensor(found.losses), torch.tensor(plain.losses), rtol=0, atol=3e-6, msg=name
        )
        assert found.tables.keys() == plain.tables.keys()
        for field, table in found.tables.items():
            torch.testing.assert_close(table, plain.tables[field], rtol=0, atol=3e-5, msg=f"{name}: {field}")
        for key, values in plain.dense.items():
            torch.testing.assert_close(found.dense[key], values, rtol=0, atol=3e-5, msg=f"{name}: {key}")
        torch.testing.assert_close(found.scores, plain.scores, rtol=0, atol=3e-5, msg=name)
        bundle = open_bundle(tmp_path / name)
        bundled = bundle.tables()
        assert bundled.keys() == found.tables.keys()
        assert all(torch.equal(table, found.tables[field]) for field, table in bundled.items()), name
        torch.testing.assert_close(
            probabilities(bundle.model(), [records]), torch.sigmoid(found.scores), rtol=0, atol=1e-6, msg=name
        )
        for other in results[1:]:
            assert (other[name].losses, other[name].kept) == (found.losses, found.kept)
