"""Quality and cost of a run's models, the content of result.json."""

import resource
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ham_dist.config.schema import RunSettings
from ham_dist.config.target import Target
from ham_dist.distributed.ranks import process_group
from ham_dist.embedding.mask import Columns
from ham_dist.embedding.table_size import sparse_bytes
from ham_dist.training.evaluation import evaluate, undefined_auc
from ham_dist.training.progress import StageProgress
from ham_dist.training.samples import Samples
from ham_dist.training.state import TrainingState
from ham_dist.training.transform import ZeroPattern

SUPERNET = "supernet"
"""Method in the result of the supernet itself."""


@dataclass(frozen=True)
class ModelResult:
    """Quality and cost of one model.

    Attributes:
        auc: AUC on the held-out split (`Samples.held_out`); None if all of its labels are equal.
        logloss: Mean log loss on that split.
        embedding_parameters: Parameters in its tables, at searched dims.
        embedding_bytes: Bytes of those parameters.
        dense_parameters: Parameters outside the tables.
    """

    auc: float | None
    logloss: float
    embedding_parameters: int
    embedding_bytes: int
    dense_parameters: int


def model_result(state: TrainingState, samples: Samples) -> ModelResult:
    """Evaluates a model on the held-out split and counts its parameters. A collective."""
    quality = evaluate(state, samples.evaluation(samples.held_out))
    numbers = {
        table: table.num_embeddings * table.embedding_dim
        for table in (*state.sharded.tables, *state.sharded.first_order_tables)
    }
    return ModelResult(
        auc=quality.auc,
        logloss=quality.log_loss,
        embedding_parameters=sum(numbers.values()),
        embedding_bytes=sum(count * table.number_bytes for table, count in numbers.items()),
        dense_parameters=sum(parameter.numel() for parameter in state.interaction.parameters()),
    )


def stored_bytes(state: TrainingState) -> dict[str, int] | None:
    """Returns the bytes of all tables in each sparse form, if training keeps zeros in them; else None.

    First-order tables, which have no zeros, count in full. A collective.
    """
    if not isinstance(state.transform, ZeroPattern):
        return None
    counts = state.transform.counts()
    total: Counter[str] = Counter()
    for table in state.sharded.tables:
        total.update(
            sparse_bytes(table.num_embeddings, table.embedding_dim, counts[table.field], table.number_bytes)
        )
    for table in state.sharded.first_order_tables:
        size = table.num_embeddings * table.embedding_dim * table.number_bytes
        total.update(dict.fromkeys(total, size))
    return dict(total)


def result_of(
    settings: RunSettings,
    samples: Samples,
    target: Target,
    before: ModelResult,
    after: ModelResult,
    columns: Columns,
    stages: Mapping[str, StageProgress],
    device: torch.device,
) -> dict[str, Any]:
    """Returns the content of result.json for one target. A collective: every rank must call it.

    Without the test split (`Samples.reads_test`), test figures are null, and the log loss is that of the
    validation split.

    Args:
        before: Result of the supernet.
        after: Result of the sliced and retrained model.
        columns: Kept columns of every table.
        stages: Progress by stage: pretrain, search, retrain; only pretrain for the supernet itself.
    """
    manifest, tested = samples.manifest, samples.reads_test
    *_, last = stages.values()
    return {
        "model": settings.model.name,
        "method": settings.search.method.name if "search" in stages else SUPERNET,
        "dataset": manifest.name,
        "seed": settings.seed,
        "target": target.model_dump(exclude_none=True),
        "kept_columns": {table: len(kept) for table, kept in columns.items()},
        "test_auc": after.auc if tested else None,
        "test_auc_undefined": undefined_auc(manifest, "test") if tested else "the test split was not read",
        "test_logloss": after.logloss if tested else None,
        "validation_auc": last.stopper.best,
        **({} if tested else {"validation_logloss": after.logloss}),
        "embedding_parameters": after.embedding_parameters,
        "embedding_bytes": after.embedding_bytes,
        "dense_parameters": after.dense_parameters,
        "supernet": {
            **asdict(before),
            **({} if tested else {"auc": None, "logloss": None}),
            "validation_auc": stages["pretrain"].stopper.best,
        },
        "epochs": {stage: progress.epochs for stage, progress in stages.items()},
        "weight_steps": {
            stage: progress.samples // settings.data.batch_size for stage, progress in stages.items()
        },
        "seconds": {stage: progress.seconds for stage, progress in stages.items()},
        "samples_per_second": {
            stage: progress.samples / progress.training_seconds if progress.samples else None
            for stage, progress in stages.items()
        },
        "peak_memory_bytes": max(process_group.gather_objects(_peak_memory(device))),
        "world_size": process_group.world_size(),
        "device": device_name(device),
    }


def device_name(device: torch.device) -> str:
    """Returns `cpu`, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _peak_memory(device: torch.device) -> int:
    """Peak memory of this rank in bytes: allocated on its GPU, or resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
