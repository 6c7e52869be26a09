"""Retraining with quantized tables: lookups read the numbers that a bundle in the codec would have."""

import torch

from ham_dist.config.schema import RunSettings
from ham_dist.distributed.planning.table_optimizers import table_optimizer_of
from ham_dist.distributed.sharding.local_table import LocalTable
from ham_dist.distributed.sharding.model import TABLES, ShardedModel
from ham_dist.errors import ConfigError, ShardingError
from ham_dist.export.codecs.codec import Codec, TableRows
from ham_dist.export.codecs.registry import codec_of
from ham_dist.training.state import TrainingState
from ham_dist.training.transform import ReplacedTables


class FakeQuantization(ReplacedTables):
    """Lookups read decode(encode(V)); the table optimizer moves V by the gradient of those numbers.

    Scales and offsets are fitted to V at every step, as at export, so they have no state of their own. They
    belong to whole columns, so a rank needs all rows of the tables that it holds.

    Args:
        model: The tables.
        codec: The codec.
    Raises:
        ShardingError: The rows of a table are on several ranks.
    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference", CVPR 2018, section 3; the gradient is that of Bengio et al., arXiv 1308.3432
        (straight-through).
    """

    def __init__(self, model: ShardedModel, codec: Codec) -> None:
        for field, placement in model.plan.groups[TABLES].items():
            if any(shard.rows < placement.table.num_embeddings for shard in placement.shards):
                raise ShardingError(
                    f'retrain.precision = "{codec.name}": the rows of {field} are on several ranks, '
                    "but its scales belong to whole columns\n"
                    '  Set sharding.sharding_type = "table_wise" or "column_wise".'
                )
        super().__init__(model)
        self.codec = codec

    def values_of(self, field: str, local: LocalTable) -> torch.Tensor:
        del field
        rows = TableRows([local.columns.float().cpu()])
        return self.codec.round_trip(rows.rows(0, rows.num_embeddings), self.codec.fit(rows))

    def after_backward(self) -> None:
        self.put_back()


def require_quantizable(settings: RunSettings) -> None:
    """Check, before training, that a run can retrain with `retrain.precision`.

    Raises:
        ConfigError: The table optimizer or the method does not allow it.
    """
    name = settings.retrain.precision
    if name == "fp32":
        return
    if table_optimizer_of(settings.optimizer).fused is not None:
        raise ConfigError(
            f'retrain.precision = "{name}": lookups read other numbers than the gradient moves, but '
            f"the table optimizer {settings.optimizer.tables!r} is fused into the backward pass\n"
            '  Set optimizer.tables = "adam".'
        )
    if settings.search.method.name == "pep":
        raise ConfigError(
            f'retrain.precision = "{name}": the zeros of search.method = "pep" are no code of the codec\n'
            "  Use another method."
        )


def fake_quantization(state: TrainingState) -> FakeQuantization | None:
    """Returns the quantization of a run's retraining; None for fp32."""
    name = state.settings.retrain.precision
    return None if name == "fp32" else FakeQuantization(state.sharded, codec_of(name))
