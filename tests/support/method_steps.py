"""A few steps of any search method on a small sharded model, by the functions that the trainer uses."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.config.schema import MethodSettings
from ham_dist.data.reader.batch import Batch
from ham_dist.data.reader.order import rows_of_rank
from ham_dist.distributed.checkpoint import storage
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding.model import ShardedModel
from ham_dist.embedding.mask import Columns
from ham_dist.errors import SlicingError
from ham_dist.library import Search, mask_columns
from ham_dist.methods.method import Method
from ham_dist.methods.registry import METHODS
from ham_dist.models.ctr import CTRModel
from ham_dist.models.interaction import Interaction
from ham_dist.stages import slice as slice_stage
from ham_dist.stages.branch import search_space
from ham_dist.stages.search import _close, loss_of
from ham_dist.training.evaluation import predict
from ham_dist.training.loop import weight_step
from ham_dist.training.progress import StageProgress
from ham_dist.training.run_log import RunLog
from ham_dist.training.samples import Samples
from ham_dist.training.slicing import slice_state
from ham_dist.training.state import TrainingState, open_supernet
from ham_dist.training.stopping import EarlyStopper
from tests.support.plain_model import FIELDS
from tests.support.sharded_model import part_of_batch, settings, whole_tables

KEPT = 12
"""Columns to keep, of the 27 of the supernet."""
STEPS = 4
ROWS = 64
RUN = settings(
    "dcnv2",
    precision={"dense": "float64"},
    search={"targets": [{"columns": KEPT}]},
)
"""Comes out the same on any number of ranks."""
FAST = {"alpha_learning_rate": 0.5, "alpha_init": 0.5, "penalty": 1e-3}
"""So that a few steps move the masks; of these, each method takes the keys that it has."""
RATES = {"irazor": {"alpha_learning_rate": 0.02}, "ham": {"alpha_init": 0.001}}


@dataclass
class Searched:
    """Columns that a method keeps after some steps, and all numbers of its own and of the tables."""

    columns: dict[str, list[int]]
    numbers: dict[str, torch.Tensor]
    tables: dict[str, torch.Tensor]


def fast(name: str) -> MethodSettings:
    """Settings of a method under which a few steps on a small model move its mask."""
    kind = METHODS[name].Settings
    keys = {key: value for key, value in FAST.items() if key in kind.model_fields} | RATES.get(name, {})
    return kind.model_validate(keys)


def batch(seed: int) -> Batch:
    """This rank's part of a global batch, cut as the reader cuts it."""
    low, high = rows_of_rank(ROWS, process_group.rank(), process_group.world_size())
    return part_of_batch(seed, ROWS, low, high)


class _Samples:
    """In place of the samples of a run."""

    def evaluation(self, split: str) -> Iterator[Batch]:
        assert split == "validation"
        yield batch(200)

    def once(self, split: str) -> Iterator[Batch]:
        assert split == "training"
        yield from (batch(step) for step in range(STEPS))


class _Quiet:
    """In place of the log of a run."""

    def say(self, line: str) -> None:
        pass


SAMPLES, LOG = cast(Samples, _Samples()), cast(RunLog, _Quiet())


def opened(name: str) -> tuple[TrainingState, Method]:
    run = RUN
    if METHODS[name].chooses_bands:
        run = RUN.model_copy(update={"model": RUN.model.model_copy(update={"candidates": (2, 4)})})
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    run_of_test: Any = SimpleNamespace(samples=SAMPLES, device=torch.device("cpu"))
    method = METHODS[name](search_space(run_of_test, state, run), fast(name))
    state.transform = method.transform(state.sharded)
    return state, method


def advance(state: TrainingState, method: Method, first: int, last: int, *, weights: bool = True) -> None:
    """Steps `first` to `last` - 1 of a search, or the one pass over data of a method that needs it."""
    if method.reads_data:
        method.score(loss_of(state, batch(100 + step), method.closed) for step in range(STEPS))
    for step in range(first, last if method.searches else first):
        method.step(loss_of(state, batch(100 + step), method.closed))
        state.sharded.mask.set(method.mask())
        if weights:
            weight_step(state, batch(step))


def outcome(state: TrainingState, method: Method) -> Searched:
    columns = method.space.layout.split(method.choice())
    numbers = {name: values.clone() for name, values in method.logged().items()}
    return Searched({table: kept.tolist() for table, kept in columns.items()}, numbers, whole_tables(state))


def searched(names: list[str]) -> dict[str, Searched]:
    """On each rank: an unbroken search by each method."""
    found = {}
    for name in names:
        state, method = opened(name)
        advance(state, method, 0, STEPS)
        found[name] = outcome(state, method)
    return found


def resumed(names: list[str], folder: Path) -> dict[str, Searched]:
    """Whole searches that are saved after half of the steps and loaded into another model and method.

    The numbers of these differ from the saved ones before they are loaded.
    """
    found = {}
    for name in names:
        state, method = opened(name)
        advance(state, method, 0, STEPS // 2)
        storage.save(folder / name, _tensors(state, method), {"steps": state.optimizers.steps})
        state, method = opened(name)
        advance(state, method, STEPS, STEPS + 1)
        state.optimizers.steps = storage.load(folder / name, _tensors(state, method))["steps"]
        advance(state, method, STEPS // 2, STEPS)
        found[name] = outcome(state, method)
    return found


def _tensors(state: TrainingState, method: Method) -> dict[str, Any]:
    return {**state.tensors(), **{f"extra/{name}": values for name, values in method.tensors().items()}}


class UsersModel(nn.Module):
    """A model with the same weights, of a user of the library: unsharded tables, no trainer."""

    def __init__(self, tables: dict[str, torch.Tensor], interaction: Interaction) -> None:
        super().__init__()
        self.ebc = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=field,
                    embedding_dim=values.shape[1],
                    num_embeddings=len(values),
                    feature_names=[field],
                    pooling=PoolingType.SUM,
                )
                for field, values in tables.items()
            ]
        )
        with torch.no_grad():
            for field, values in tables.items():
                self.ebc.embedding_bags[field].weight.copy_(values)
        self.ebc = mask_columns(self.ebc)
        self.model = CTRModel(self.ebc, interaction, None, single_valued=())

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return self.model(features)


def by_library_and_trainer(names: list[str]) -> dict[str, tuple[Searched, Searched]]:
    """Steps of each method alone, at fixed weights, through library.Search and through the trainer."""
    found = {}
    for name in names:
        state, method = opened(name)
        model = UsersModel(whole_tables(state), deepcopy(state.interaction))
        search = Search(model, columns=KEPT, method=fast(name), seed=RUN.seed)

        def loss(step: int, model: nn.Module = model) -> torch.Tensor:
            part = batch(100 + step)
            logits = model(part.sparse_features)
            return functional.binary_cross_entropy_with_logits(logits, part.labels.to(logits.dtype))

        if search.method.reads_data:
            search.score(lambda step=step: loss(step) for step in range(STEPS))  # type: ignore[misc]
        for step in range(STEPS if search.method.searches else 0):
            search.step(lambda step=step: loss(step))  # type: ignore[misc]
        columns = {table: kept.tolist() for table, kept in search.finish().items()}
        tables = {field: bag.weight.detach().clone() for field, bag in model.ebc.ebc.embedding_bags.items()}
        numbers = {key: values.clone() for key, values in search.method.logged().items()}
        advance(state, method, 0, STEPS, weights=False)
        if (factors := method.fold()) is not None:
            slice_stage.fold_mask(state, method.choice(), factors, SAMPLES, LOG)
        found[name] = Searched(columns, numbers, tables), outcome(state, method)
    return found


@dataclass
class Sliced:
    """Probabilities before and after slicing, and the errors when a part of it is broken (None: no error)."""

    soft: torch.Tensor
    after: torch.Tensor
    without_folding: str | None
    other_columns: str | None


def sliced(names: list[str]) -> dict[str, Sliced]:
    """Each method's search and slicing, intact and broken on purpose."""

    def slice_others(state: TrainingState, columns: Columns) -> TrainingState:
        return slice_state(state, _others(state, columns))

    found = {}
    for name in names:
        soft, after = _sliced(name)
        with patch.object(ShardedModel, "scale_columns", lambda self, factors: None):
            without_folding = _error(name)
        other_columns = None
        if METHODS[name].has_budget and not METHODS[name].chooses_bands:
            with patch.object(slice_stage, "slice_state", slice_others):
                other_columns = _error(name)
        found[name] = Sliced(soft, after, without_folding, other_columns)
    return found


def _sliced(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    state, method = opened(name)
    advance(state, method, 0, STEPS)
    state.sharded.mask.set(method.folded_choice())
    soft = predict(state, [batch(200)])[0]
    columns = _close(state, method, SAMPLES, StageProgress(EarlyStopper(patience=1)), LOG)
    sliced = slice_stage.slice_columns(state, columns, SAMPLES, LOG)
    return soft, predict(sliced, [batch(200)])[0]


def _error(name: str) -> str | None:
    try:
        _sliced(name)
    except SlicingError as error:
        return str(error)
    return None


def _others(state: TrainingState, columns: Columns) -> Columns:
    """As many columns of each table, but one of them another, in the first table that has one."""
    dims = state.sharded.mask.layout.dims
    others = dict(columns)
    for table, kept in columns.items():
        removed = sorted(set(range(dims[table])) - set(kept.tolist()))
        if len(kept) and removed:
            others[table] = torch.tensor(sorted([*kept.tolist()[1:], removed[0]]))
            return others
    raise AssertionError("no table has both kept and removed columns")
