"""Stage 4, with `retrain.precision`: train the tables on the numbers that a quantized bundle can hold.

It follows retraining, with scales and offsets that are fitted once, to the retrained tables. Trained under
quantization from the searched weights instead, with all learning rates of retraining, DCN-V2 lost more AUC by
int4 than by quantizing its tables afterwards (perf/results/codec_losses_cpu_2026-11.md).
"""

import torch

from ham_dist.config.schema import PretrainSettings, RunSettings
from ham_dist.distributed.planning.table_optimizers import table_optimizer_of
from ham_dist.distributed.sharding.local_table import LocalTable
from ham_dist.distributed.sharding.model import TABLES, ShardedModel
from ham_dist.embedding.mask import as_evaluated
from ham_dist.errors import ConfigError, ShardingError
from ham_dist.export.codecs.codec import Codec, TableRows
from ham_dist.export.codecs.registry import codec_of
from ham_dist.stages.fit import fit
from ham_dist.training.checkpoints import StageCheckpoints
from ham_dist.training.progress import StageProgress
from ham_dist.training.run_log import RunLog
from ham_dist.training.samples import Samples
from ham_dist.training.state import TrainingState
from ham_dist.training.transform import ReplacedTables


class FakeQuantization(ReplacedTables):
    """Lookups read decode(encode(V)); the table optimizer moves V by the gradient of those numbers.

    Scales and offsets are those of V as it is given. They belong to whole columns, so a rank needs all rows
    of the tables that it holds.

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
        self.fitted = {field: codec.fit(_rows(local)) for field, local in model.local.items()}
        """Scales and offsets of this rank's tables."""

    def values_of(self, field: str, local: LocalTable) -> torch.Tensor:
        rows = _rows(local)
        return self.codec.round_trip(rows.rows(0, rows.num_embeddings), self.fitted[field])

    def after_backward(self) -> None:
        self.put_back()


def _rows(local: LocalTable) -> TableRows:
    return TableRows([local.columns.detach().float().cpu()])


def quantize(
    state: TrainingState, samples: Samples, checkpoints: StageCheckpoints, log: RunLog
) -> StageProgress:
    """Trains the tables of a retrained model; they end up with numbers that the codec of the run can hold.

    Dense weights and BatchNorm's running statistics stay the same. The quantized tables of the start can be
    the best ones.
    """
    settings = state.settings
    epochs, rate = settings.retrain.precision_epochs, settings.retrain.precision_learning_rate
    quantization = fake_quantization(state)
    state.transform = quantization

    def set_rates(steps: int) -> None:
        state.optimizers.set_rates(tables=rate * (1 - steps / (epochs * samples.steps)), dense=0.0)

    with as_evaluated(state.interaction):
        progress = fit(
            "quantize",
            state,
            samples,
            PretrainSettings(max_epochs=epochs, patience=epochs),
            checkpoints,
            log,
            start_counts=True,
            before_step=set_rates,
        )
    quantization.replace_for_good()
    state.transform = None
    return progress


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


def fake_quantization(state: TrainingState) -> FakeQuantization:
    """Returns the quantization of a run, fitted to the tables in `state`."""
    return FakeQuantization(state.sharded, codec_of(state.settings.retrain.precision))
