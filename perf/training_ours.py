"""The sides of bench_training.py in ham_dist's environment: ham_dist, bare TorchRec, and plain torch.

All three share the dense part of the model (ham_dist/models). TorchRec has the same tables and plan. The
loops of the last two are as a user of the library would write them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torch.nn import functional
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.keyed import KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from training_side import INIT_STD, LEARNING_RATE, Task, has_first_order_tables, run_side

from ham_dist.config.schema import RunSettings
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.reader.split import Split, open_split
from ham_dist.distributed.planning.table_optimizers import table_optimizer_of
from ham_dist.distributed.ranks.process_group import process_group
from ham_dist.models.deepfm import DeepFM, DeepFMSettings
from ham_dist.models.registry import INTERACTIONS, build_interaction
from ham_dist.training.evaluation import predict
from ham_dist.training.loop import weight_step
from ham_dist.training.state import open_supernet

CPU = torch.device("cpu")


def settings_of(task: Task) -> RunSettings:
    return RunSettings.model_validate(
        {
            "seed": task.seed,
            "data": {"batch_size": task.batch_size},
            "model": {
                "name": task.model,
                "base_dim": task.embedding_dim,
                "init_std": INIT_STD,
                "mlp": task.mlp,
                **(
                    {"cross_layers": task.cross_layers}
                    if task.model == "dcnv2"
                    else {"lift_dim": task.embedding_dim, "first_order": task.first_order}
                ),
            },
            "optimizer": {
                "tables": task.tables,
                "tables_learning_rate": task.tables_learning_rate,
                "learning_rate": LEARNING_RATE,
            },
            "orthogonality": {"form": "none"},
        }
    )


def choose_model(task: Task) -> None:
    """Registers, in this process, the `deepfm` that the task needs."""
    if not task.has_lift:
        INTERACTIONS["deepfm"] = _DeepFMWithoutLift


class HamDist:
    """ham_dist's own step and reader, as its stages use them."""

    def __init__(self, task: Task) -> None:
        choose_model(task)
        self.settings = settings_of(task)
        self.folder, self.manifest = Path(task.folder), Manifest.load(Path(task.folder))
        self.state = open_supernet(self.settings, task.num_embeddings, CPU, single_valued=task.num_embeddings)

    def train(self) -> int:
        samples = 0
        for batch in self._split("train").batches(
            self.settings.data.batch_size,
            rank=0,
            world_size=1,
            order=(self.settings.seed, 0),
            keep_last=False,
        ):
            weight_step(self.state, batch)
            samples += batch.global_rows
        return samples

    def scores(self) -> np.ndarray:
        batches = self._split("test").batches(
            self.settings.data.evaluation_batch_size, rank=0, world_size=1, order=None, keep_last=True
        )
        return predict(self.state, batches)[0].numpy()

    def _split(self, name: str) -> Split:
        return open_split(self.folder, self.manifest, name, self.settings.data)


class Rows:
    """A split as a short program reads it: all shards in one array of ids and one of labels."""

    def __init__(self, task: Task, split: str) -> None:
        table = pq.read_table(Path(task.folder) / split, use_threads=False)
        self.ids = np.stack([table[field].to_numpy() for field in task.num_embeddings], axis=1)
        self.labels = table["label"].to_numpy().astype(np.float32)
        self.batch_size = task.batch_size

    def shuffled(self, seed: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Ids (B, F) and labels (B,) of whole batches."""
        order = np.random.default_rng(seed).permutation(len(self.labels))
        for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
            places = order[start : start + self.batch_size]
            yield self.ids[places], torch.from_numpy(self.labels[places])

    def in_order(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.labels), self.batch_size):
            yield self.ids[start : start + self.batch_size]


class _Looped:
    """The loop of the two programs below."""

    def __init__(self, task: Task) -> None:
        choose_model(task)
        self.task = task
        self.optimizers: list[torch.optim.Optimizer] = []

    def logits(self, ids: np.ndarray) -> torch.Tensor:
        raise NotImplementedError

    def module(self) -> nn.Module:
        raise NotImplementedError

    def train(self) -> int:
        self.module().train()
        samples = 0
        for ids, labels in Rows(self.task, "train").shuffled(self.task.seed):
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            functional.binary_cross_entropy_with_logits(self.logits(ids), labels).backward()
            for optimizer in self.optimizers:
                optimizer.step()
            samples += len(labels)
        return samples

    @torch.no_grad()
    def scores(self) -> np.ndarray:
        self.module().eval()
        return torch.cat([self.logits(ids) for ids in Rows(self.task, "test").in_order()]).numpy()


class TorchRec(_Looped):
    """Bare TorchRec with ham_dist's tables, plan (each table whole on one rank) and optimizer."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        table_optimizer = table_optimizer_of(settings_of(task).optimizer)
        model = _TorchRecModel(task, padded_first_order=table_optimizer.fused is not None)
        plans = {}
        for name, module in model.named_children():
            if not isinstance(module, EmbeddingBagCollection):
                continue
            if table_optimizer.fused is not None:
                optimizer, options = table_optimizer.fused
                _apply_optimizer_in_backward(
                    optimizer, module.parameters(), {"lr": task.tables_learning_rate, **options}
                )
            place = table_wise(rank=0, compute_kernel="dense" if table_optimizer.fused is None else "fused")
            plans[name] = construct_module_sharding_plan(
                module,
                dict.fromkeys(task.num_embeddings, place),
                local_size=1,
                world_size=1,
                device_type="cpu",
            )
        self.parallel = DistributedModelParallel(
            model, device=CPU, plan=ShardingPlan(plans), sharders=[EmbeddingBagCollectionSharder()]
        )
        with torch.no_grad():
            for name, values in self.parallel.state_dict().items():
                if name.startswith("tables."):
                    values.local_shards()[0].tensor.normal_(std=INIT_STD)
                elif name.startswith("first_order."):
                    values.local_shards()[0].tensor.zero_()
        parameters = dict(in_backward_optimizer_filter(self.parallel.named_parameters()))
        self.optimizers = [
            KeyedOptimizerWrapper(
                parameters, lambda them: torch.optim.Adam(them, lr=LEARNING_RATE, fused=True)
            )
        ]
        self.lengths = torch.ones(len(task.num_embeddings) * task.batch_size, dtype=torch.int32)

    def module(self) -> nn.Module:
        return self.parallel

    def logits(self, ids: np.ndarray) -> torch.Tensor:
        values = torch.from_numpy(ids.T.reshape(-1))
        features = KeyedJaggedTensor(
            list(self.task.num_embeddings), values, lengths=self.lengths[: len(values)], stride=len(ids)
        )
        return self.parallel(features)


class _TorchRecModel(nn.Module):
    def __init__(self, task: Task, *, padded_first_order: bool) -> None:
        super().__init__()
        self.tables = _collection(task, task.embedding_dim)
        self.first_order = (
            _collection(task, 4 if padded_first_order else 1) if has_first_order_tables(task) else None
        )
        self.interaction = build_interaction(
            settings_of(task).model, dict.fromkeys(task.num_embeddings, task.embedding_dim)
        )

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        logits = self.interaction(self.tables(features).values())
        if self.first_order is not None:
            terms = self.first_order(features)
            logits = logits + terms.values()[:, :: terms.length_per_key()[0]].sum(dim=1)
        return logits


def _collection(task: Task, embedding_dim: int) -> EmbeddingBagCollection:
    tables = [
        EmbeddingBagConfig(
            name=field, embedding_dim=embedding_dim, num_embeddings=rows, feature_names=[field]
        )
        for field, rows in task.num_embeddings.items()
    ]
    return EmbeddingBagCollection(tables=tables, device=torch.device("meta"))


class PlainTorch(_Looped):
    """An nn.EmbeddingBag for each field and torch.optim.Adam(fused=True)."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.model = _PlainModel(task)
        self.optimizers = [torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, fused=True)]

    def module(self) -> nn.Module:
        return self.model

    def logits(self, ids: np.ndarray) -> torch.Tensor:
        return self.model(torch.from_numpy(ids.T.copy()))


class _PlainModel(nn.Module):
    def __init__(self, task: Task) -> None:
        super().__init__()
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(rows, task.embedding_dim, mode="sum") for rows in task.num_embeddings.values()
        )
        self.first_order = nn.ModuleList(
            nn.EmbeddingBag(rows, 1, mode="sum")
            for rows in task.num_embeddings.values()
            if has_first_order_tables(task)
        )
        for table in self.tables:
            nn.init.normal_(table.weight, std=INIT_STD)
        for table in self.first_order:
            nn.init.zeros_(table.weight)
        self.interaction = build_interaction(
            settings_of(task).model, dict.fromkeys(task.num_embeddings, task.embedding_dim)
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (B,) of ids (F, B)."""
        bags = ids.unsqueeze(2)  # of one id each
        logits = self.interaction(
            torch.cat([table(bag) for table, bag in zip(self.tables, bags, strict=True)], dim=1)
        )
        for table, bag in zip(self.first_order, bags, strict=False):
            logits = logits + table(bag).squeeze(1)
        return logits


class _Fields(nn.Module):
    """A lift that leaves fields of one width as they are."""

    def __init__(self, fields: int) -> None:
        super().__init__()
        self.fields = fields

    def by_field(self, columns: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(F, B, L) of (B, F * L)."""
        assert mask is None
        return columns.unflatten(1, (self.fields, -1)).transpose(0, 1)

    def folded_into(self, weight: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        assert mask is None
        return weight


class _DeepFMWithoutLift(DeepFM):
    """DeepFM for tables of one width that are not sliced."""

    def __init__(self, dims: Mapping[str, int], settings: DeepFMSettings) -> None:
        super().__init__(dims, settings)
        self.lift = _Fields(len(dims))  # type: ignore[assignment]


def main() -> None:
    with process_group():
        run_side({"ham_dist": HamDist, "torchrec": TorchRec, "torch": PlainTorch})


if __name__ == "__main__":
    main()
