"""The settings of a run. `ham-dist train` writes all of them to run.toml in the run folder.

Every default is defined here, except those of a method's or a model's own keys, which are in its settings
class.
"""

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    SerializeAsAny,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from ham_dist.config.base import PositiveFloat, PositiveInt, Settings
from ham_dist.config.choice import Choice, either
from ham_dist.config.sharding import ShardingSettings
from ham_dist.config.synthetic import SyntheticSettings
from ham_dist.config.target import Target


class DataSettings(Settings):
    """Source of the samples, and batch sizes."""

    path: str | None = None
    """Folder of prepared data, written by `ham-dist prepare`. If it is not set, the run generates the
    `synthetic` data in its own run folder."""
    synthetic: SyntheticSettings = SyntheticSettings()
    """The generated data; used if `path` is not set."""
    batch_size: Annotated[int, Field(ge=2)] = 2048
    """Samples in a global training batch, divided among all ranks (HAM paper, section 4.3)."""
    evaluation_batch_size: Annotated[int, Field(ge=2)] = 16_384
    """Samples in a global batch in evaluation."""
    shuffle_rows: PositiveInt = 1_048_576
    """Size of the shuffle buffer, in samples (about 4 bytes per value). A split of at most this many samples
    is kept in memory on every rank and shuffled completely. A larger split is streamed: each batch is drawn
    at random from a buffer of this many samples, which all ranks hold together."""
    prefetch: PositiveInt = 4
    """Batches that a background thread reads ahead of training."""


MAX_DIM = 1024
"""Largest embedding dim that fbgemm-gpu's kernels support."""


class ModelSettings(Settings):
    """The CTR model on top of the field embeddings; each model adds keys of its own (ham_dist/models)."""

    name: str
    """Model: `fm`, `deepfm`, `autoint` or `dcnv2`."""
    base_dim: Annotated[int, Field(gt=0, le=MAX_DIM)] = 16
    """Embedding dim of every table of the supernet, at most its number of rows: d_j = min(base_dim, C_j).
    fbgemm-gpu's kernels support up to 1024."""
    init_std: PositiveFloat = 0.01
    """Standard deviation of the embedding initialization."""
    candidates: Annotated[tuple[PositiveInt, ...], Field(max_length=16)] = ()
    """Candidate dims of every field, ascending, for `search.method = "autodim"`. If set, each candidate has
    columns, a linear map and a BatchNorm of its own, and every table of the supernet has as many columns as
    all candidates together; `base_dim` is not used."""

    @field_validator("candidates")
    @classmethod
    def _ascending(cls, candidates: tuple[int, ...]) -> tuple[int, ...]:
        if list(candidates) != sorted(set(candidates)) or sum(candidates) > MAX_DIM:
            raise ValueError(f"give ascending dims that add up to at most {MAX_DIM}, for example [2, 4, 8]")
        return candidates

    def dim_of(self, num_embeddings: int) -> int:
        """Returns the embedding dim of a table of the supernet.

        Args:
            num_embeddings: Its number of rows.
        """
        return sum(self.candidates) or min(self.base_dim, num_embeddings)


MODELS = Choice[ModelSettings]("model.name", "dcnv2", "ham_dist.models.registry")
AnyModelSettings = Annotated[SerializeAsAny[ModelSettings], MODELS.validator()]
"""Settings of the model chosen by `name`."""


TABLE_OPTIMIZERS = ["adam", "sgd", "adagrad", "rowwise_adagrad", "fused_adam", "lamb", "partial_rowwise_adam"]
"""Names of the table optimizers. ham_dist/distributed/planning/table_optimizers.py registers each of them,
and adds the names of plug-ins to this list."""


def _table_optimizer(name: str) -> str:
    if name not in TABLE_OPTIMIZERS:
        raise PydanticKnownError("literal_error", {"expected": either(TABLE_OPTIMIZERS)})
    return name


class OptimizerSettings(Settings):
    """Optimizers of the tables and of the dense weights, in all three stages."""

    tables: Annotated[str, AfterValidator(_table_optimizer)] = "adam"
    """Table optimizer. `adam` is exact Adam as in the paper: every row moves at every step (dense kernel).
    The others are fused into the backward pass: `sgd`, `adagrad` and `rowwise_adagrad`, and on GPU only
    `fused_adam`, `lamb` and `partial_rowwise_adam`."""
    tables_learning_rate: PositiveFloat = 1e-3
    """Learning rate of the tables."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate of Adam for the dense weights."""
    tables_weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 (lambda) of the tables under search, in all three stages. With `tables = "adam"`, lambda * V is
    added to the gradient of every row before Adam (coupled L2). With the others, rows are updated as by
    `orthogonality.application = "decoupled"`, every `orthogonality.every` steps. The first-order tables of FM
    and DeepFM do not decay."""


TablePrecision = Literal["float32", "float16", "bfloat16"]
"""Data type in which tables are stored."""


class PrecisionSettings(Settings):
    """Data types of the tables and of the dense part of the model."""

    tables: TablePrecision = "float32"
    """Data type of the stored tables; looked-up vectors and optimizer state are always float32. `float16` and
    `bfloat16` need a fused table optimizer, and `bfloat16` needs a GPU. With `float16` on CPU, each update is
    rounded to the nearest number, so an update of a weight w that is smaller than half the distance to the
    next number (between |w| / 4096 and |w| / 2048) is lost. GPU kernels use stochastic rounding, which is
    correct on average. docs/sharding.md lists the supported combinations."""
    dense: Literal["float32", "float64", "bfloat16"] = "float32"
    """Data type of the dense part of the model. `float64` also rounds sums over ranks, so that a run on CPU
    gives the same result on any number of ranks; it is slower (perf/results/ranks_cpu_2026-11.md). `bfloat16`
    uses autocast for matrix products in steps on the weights and on alpha; weights, BatchNorm, logits, loss
    and evaluation stay float32. It is meant for GPUs; a CPU without bfloat16 instructions is slower with
    it."""


class OrthogonalitySettings(Settings):
    """Soft orthogonality regularizer on the columns of each table (HAM paper, Eq. 1)."""

    form: Literal["gram", "cosine", "none"] = "gram"
    """`gram`: Eq. 1; `cosine`: Eq. 1 on columns normalized to unit length; `none`: no regularizer."""
    weight: PositiveFloat = 1e-3
    """Weight of the regularizer (lambda). The paper uses 1e-3 on MovieLens-1M, and 1e-6 with `cosine` on
    Avazu."""
    application: Literal["coupled", "decoupled"] = "coupled"
    """`coupled`: added to the gradient of every row at every step, before the table optimizer, as in the
    paper. `decoupled`: an update separate from the table optimizer's, of the size that the table optimizer
    would give it, on a sample of the rows, so that the cost does not grow with the number of rows."""
    every: PositiveInt = 20
    """`decoupled`, and L2 with a table optimizer other than `adam`: steps between two applications. Each
    application makes up for all steps since the last one."""
    rows: PositiveInt = 2048
    """Number of rows of each table, approximately, that one such application updates. They are evenly
    spaced, and successive applications take different rows until all were updated. An update of a row makes
    up for all steps since its last one."""


class PretrainSettings(Settings):
    """Stage 1: train the supernet, with all columns."""

    max_epochs: PositiveInt = 30
    """Maximum number of epochs."""
    patience: PositiveInt = 2
    """Epochs without a better validation AUC before the stage stops; the best epoch's weights are kept."""


class MethodSettings(Settings):
    """The size-search method; each method adds keys of its own (ham_dist/methods)."""

    name: str
    """Name of the method. docs/methods.md lists all of them."""


METHODS = Choice[MethodSettings]("search.method", "ham", "ham_dist.methods.registry")
AnyMethodSettings = Annotated[SerializeAsAny[MethodSettings], METHODS.validator()]
"""Settings of the method chosen by `name`."""


class SearchSettings(Settings):
    """Stage 2: find the columns to keep."""

    preset: Literal["paper", "best"] = "paper"
    """Values of `orthogonality.form`, `optimizer.tables_weight_decay`, `retrain.column_dropout` and
    `retrain.column_dropout_epochs`, where they are not set themselves. `paper`: those of the HAM paper.
    `best`: L2 on the tables in place of orthogonality, and ten epochs with column dropout before
    retraining; better on DCN-V2 and DeepFM, worse on FM (docs/evidence.md, preliminary)."""
    method: AnyMethodSettings = Field(default_factory=METHODS.start)
    """Size-search method: a section [search.method], or only its name."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = (Target(columns=16),)
    """Target sizes. Each gets its own sliced model; all start from the same pretrained supernet. `"auto"` is
    short for `[{ ladder = 5 }]`."""
    schedule: Literal["separate", "falling"] = "separate"
    """`separate`: a search of `epochs` for each target, from the pretrained supernet. `falling`: one search
    of `epochs` for all of them, whose target falls from the largest to the smallest; each search starts from
    the weights and the mask at the end of the one before it."""
    epochs: PositiveInt = 10
    """Maximum number of epochs of alternating steps on alpha and on the weights."""
    patience: PositiveInt = 3
    """Epochs without a better validation AUC before the search stops early. Only epochs in which the number
    of columns (or bytes) in use was near the target count as better."""
    rotate: bool = False
    """If true, each table is rotated to its principal axes before the search (over the lookups of the
    training samples), and so are the weights that read it: the logits stay the same. For models that read
    columns by linear maps: `fm`, `deepfm` and `autoint`."""
    validation: Literal["shared", "halved"] = "shared"
    """`shared`: the method's steps and scores, and the validation AUC of all stages, use the whole validation
    split, as in the paper. `halved`: the method reads one half of the split; early stopping and the choice of
    the best epoch, in all three stages, use the other half. The halves depend on the data only."""
    tolerance: Annotated[float, Field(ge=0, le=1)] = 0.0005
    """Loss of validation AUC against the supernet up to which a smaller model is as good. A run with several
    targets marks the smallest model within it. It may be changed when a run is resumed."""


class RetrainSettings(Settings):
    """Stage 3: train the sliced model further."""

    start: Literal["searched", "pretrained", "scratch"] = "searched"
    """Weights from which retraining starts. `searched`: those at the end of the search, as in the paper.
    `pretrained`: those of the pretrained supernet, with its optimizer state; the search only gives the
    columns. `scratch`: initial weights by the run's seed."""
    max_epochs: PositiveInt = 30
    """Maximum number of epochs, after those with column dropout."""
    patience: PositiveInt = 2
    """Epochs without a better validation AUC before the stage stops; the best epoch's weights are kept."""
    column_dropout_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs with column dropout at the start of the stage, all of which are trained. Early stopping starts
    after them."""
    column_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability with which each step of these epochs drops each kept column, for the whole global batch.
    The other columns are multiplied by 1 / (1 - column_dropout). 0: the same epochs without dropout."""
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight w of the pretrained supernet's probabilities in the loss: (1 - w) * log loss of the labels + w *
    cross entropy with them. Each step then takes a forward pass of the supernet, too."""
    precision: Literal["fp32", "int8", "int6", "int4"] = "fp32"
    """Codec of the bundle that the model is trained for, after the stage: lookups read the quantized numbers,
    and the final tables hold them. Needs a table optimizer without a fused kernel, such as adam. fp32: no
    quantization."""
    precision_epochs: PositiveInt = 3
    """Epochs of this training; the best one by validation AUC is kept."""
    precision_learning_rate: PositiveFloat = 3e-4
    """Learning rate of the tables at its first step; it falls linearly to 0. Dense weights stay the same."""

    @model_validator(mode="after")
    def _dropout_needs_epochs(self) -> "RetrainSettings":
        if self.column_dropout and not self.column_dropout_epochs:
            raise ValueError(
                f"column_dropout = {self.column_dropout} has no effect in column_dropout_epochs = 0; "
                "set column_dropout_epochs to the number of epochs with dropout, such as 10, or "
                "column_dropout = 0"
            )
        return self


class CheckpointSettings(Settings):
    """Checkpoints in addition to those at the end of every epoch; may be changed when a run is resumed."""

    every_steps: Annotated[int, Field(ge=0)] = 0
    """Steps between two checkpoints within an epoch; 0: no checkpoints by steps."""
    every_minutes: Annotated[float, Field(ge=0)] = 10.0
    """Minutes between two checkpoints within an epoch, by the clock of rank 0; 0: no checkpoints by time."""
    keep: PositiveInt = 2
    """Number of newest checkpoints that are kept for each stage, in addition to those with the best
    validation AUC. If the newest is damaged, the run resumes from the one before it."""
    copy_bytes: Annotated[int, Field(ge=0)] = 2**30
    """Largest size, in bytes, of a rank's checkpoint that is copied in memory and written in the background.
    For a larger one, training waits until it is written."""


class RanksSettings(Settings):
    """Devices of the ranks and communication between them; may be changed when a run is resumed."""

    timeout_minutes: Annotated[float, Field(ge=1e-5, le=1e6)] = 120.0
    """Minutes that a rank may keep the others waiting. After that, all ranks end with an error that names the
    slow rank. Rank 0 alone hashes a bundle, which takes about a second per gigabyte."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`cuda`: one GPU per rank; fewer GPUs than ranks on a host are an error. `auto`: `cuda` if the host has
    a GPU, else `cpu`."""
    prefetch_ids: bool = True
    """If true, the ids of the next two batches are sent to the other ranks, and copied to the GPU, during a
    training step. It changes speed only, not results."""


class RunSettings(Settings):
    """Settings of a run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the weights, of the order of samples, and of methods that choose at random."""
    data: DataSettings = DataSettings()
    model: AnyModelSettings = Field(default_factory=MODELS.start)
    optimizer: OptimizerSettings = OptimizerSettings()
    sharding: ShardingSettings = ShardingSettings()
    precision: PrecisionSettings = PrecisionSettings()
    orthogonality: OrthogonalitySettings = OrthogonalitySettings()
    pretrain: PretrainSettings = PretrainSettings()
    search: SearchSettings = Field(default_factory=SearchSettings)
    retrain: RetrainSettings = RetrainSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    ranks: RanksSettings = RanksSettings()

    @model_validator(mode="after")
    def _coupled_needs_the_whole_gradient(self) -> "RunSettings":
        tables = self.optimizer.tables
        if (
            tables != "adam"
            and self.orthogonality.form != "none"
            and self.orthogonality.application == "coupled"
        ):
            raise ValueError(
                f'orthogonality.application = "coupled" needs the gradient of whole tables, which '
                f'optimizer.tables = "{tables}" does not compute (it updates rows in the backward pass); '
                'set orthogonality.application = "decoupled", or optimizer.tables = "adam"'
            )
        return self
