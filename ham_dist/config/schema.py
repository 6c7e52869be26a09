"""The settings of a run. `ham-dist train` writes them all to the run folder's run.toml.

Every default lives here, and those of a method's or a model's own keys in its settings class."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SerializeAsAny, model_validator
from pydantic_core import PydanticKnownError

from ham_dist.config.choice import Choice, either
from ham_dist.config.presets import PRESETS

PositiveInt = Annotated[int, Field(gt=0)]
LayerCount = Annotated[int, Field(gt=0, le=64)]
LayerWidths = Annotated[tuple[Annotated[int, Field(gt=0, le=65_536)], ...], Field(max_length=64)]
"""Bounds far above what a model needs, so that a damaged file cannot ask for endless memory."""
PositiveFloat = Annotated[float, Field(gt=0)]


class Settings(BaseModel):
    """Base of all sections: an unknown key is an error, and a loaded run does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class SyntheticSettings(Settings):
    """Generated data with planted truth: which fields matter, and how many columns each needs, is known."""

    preset: Annotated[Literal["dlrm", "dlrm-39"] | None, Field(exclude=True)] = None
    """Cardinalities, ranks and skew in a word: the DLRM benchmark's 26 tables of 204 million rows; `dlrm-39` puts 13 small ones before them."""
    rows: Annotated[int, Field(gt=0, le=10**12)] = 200_000
    """Rows of all three splits together."""
    planted_ranks: tuple[Annotated[int, Field(ge=0)], ...] = (6, 4, 3, 2, 1, 0, 0, 0)
    """Columns that each field truly needs; 0 makes a field pure noise. One entry a field."""
    num_embeddings: tuple[Annotated[int, Field(ge=2, lt=2**31)], ...] = (
        600,
        400,
        300,
        200,
        100,
        500,
        200,
        50,
    )
    """Rows C_j of each field's table, the unknown row 0 included."""
    skew: Annotated[float, Field(ge=0)] = 0.6
    """Zipf exponent of how often the values of a field occur; 0 is uniform."""
    missing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the values of every field that are missing: id 0, which says nothing of the label."""
    signal: PositiveFloat = 2.0
    """Standard deviation of the true logit over the rows, were none missing: how far the labels can be predicted."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the data; apart from the run's seed, so that runs of several seeds can share one data set."""

    @model_validator(mode="after")
    def _spell_out_preset(self) -> "SyntheticSettings":
        if self.preset is None:
            return self
        if "num_embeddings" in self.model_fields_set:
            raise ValueError(f"preset = {self.preset!r} and num_embeddings are both given; give one of them")
        for name, value in PRESETS[self.preset].items():
            if name not in self.model_fields_set:
                object.__setattr__(
                    self, name, value
                )  # the model is frozen, and a validator may not give another one
        object.__setattr__(self, "preset", None)
        return self

    @model_validator(mode="after")
    def _one_entry_a_field(self) -> "SyntheticSettings":
        if len(self.planted_ranks) != len(self.num_embeddings):
            raise ValueError(
                f"planted_ranks has {len(self.planted_ranks)} entries and num_embeddings {len(self.num_embeddings)}; give one of each a field"
            )
        return self


class DataSettings(Settings):
    """Where the samples come from and how they are cut into batches."""

    path: str | None = None
    """Folder that `ham-dist prepare` wrote; without one the run generates the `synthetic` set into its own run folder."""
    synthetic: SyntheticSettings = SyntheticSettings()
    """The generated set; used where `path` is not given."""
    batch_size: Annotated[int, Field(ge=2)] = 2048
    """Samples of a global training batch, spread over all ranks (HAM paper, section 4.3)."""
    evaluation_batch_size: Annotated[int, Field(ge=2)] = 16_384
    """Samples of a global batch where only scores are wanted."""
    shuffle_rows: PositiveInt = 1_048_576
    """Samples of a split that are in memory at once (about 4 bytes a value). A split with no more is shuffled as a whole, and each rank holds all of
    it; of a larger one this many are shuffled at a time, which the ranks hold together, and each batch is drawn from them."""
    prefetch: PositiveInt = 4
    """Batches that are read and cut ahead of the training, beside it."""


class ModelSettings(Settings):
    """The CTR model over the field embeddings; each model adds keys of its own (ham_dist/models)."""

    name: str
    """The interaction: fm, deepfm, autoint or dcnv2."""
    base_dim: Annotated[int, Field(gt=0, le=1024)] = 16
    """Width of every table of the supernet, capped by its rows: d_j = min(base_dim, C_j); fbgemm-gpu's kernels end at 1024."""
    init_std: PositiveFloat = 0.01
    """Standard deviation of the embedding initialization."""


MODELS = Choice[ModelSettings]("model.name", "dcnv2", "ham_dist.models.registry")
AnyModelSettings = Annotated[SerializeAsAny[ModelSettings], MODELS.validator()]
"""Settings of the model that `name` chooses."""


TABLE_OPTIMIZERS = ["adam", "sgd", "adagrad", "rowwise_adagrad", "fused_adam", "lamb", "partial_rowwise_adam"]
"""Names of the table optimizers; ham_dist/distributed/planning/table_optimizers.py registers each, and adds those of plug-ins."""


def _table_optimizer(name: str) -> str:
    if name not in TABLE_OPTIMIZERS:
        raise PydanticKnownError("literal_error", {"expected": either(TABLE_OPTIMIZERS)})
    return name


class OptimizerSettings(Settings):
    """How weights move in all three stages."""

    tables: Annotated[str, AfterValidator(_table_optimizer)] = "adam"
    """Rule of the tables: `adam` exactly as in the paper (every row, every step; by the dense kernel), or fused into the backward pass `sgd`,
    `adagrad` or `rowwise_adagrad`, and on GPU alone `fused_adam`, `lamb` or `partial_rowwise_adam`."""
    tables_learning_rate: PositiveFloat = 1e-3
    """Learning rate of the tables."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate of Adam on the dense weights."""


ShardingType = Literal["table_wise", "row_wise", "column_wise", "table_row_wise", "grid", "data_parallel"]
"""`table_wise`: whole on one rank; `row_wise`: blocks of rows on all ranks; `column_wise`: blocks of columns on several; `table_row_wise`: blocks of
rows on the ranks of one host; `grid`: blocks of columns on several hosts, each in blocks of rows there; `data_parallel`: a copy on every rank."""


ComputeKernel = Literal["device", "fused_uvm", "fused_uvm_caching"]
"""`device`: TorchRec's `fused` or `dense`, as the table optimizer needs, in the memory of the rank's device; `fused_uvm`: in
host memory, which a GPU reads row by row; `fused_uvm_caching`: the same, with the rows used last cached on the GPU."""


class ShardingSettings(Settings):
    """How tables are spread over the ranks. `ham-dist train --plan-only` shows what comes of it."""

    sharding_type: Literal["auto", ShardingType] = "auto"
    """Sharding type of every table that `sharding_types` does not name. `auto` on GPU: the plan that TorchRec's planner
    estimates to be fastest among those that fit; on CPU: table_wise by size, and row_wise for a table too large for one rank."""
    sharding_types: dict[str, ShardingType] = {}
    """Sharding type of single tables, by field: { user = "row_wise" }."""
    compute_kernel: Literal["auto", ComputeKernel] = "device"
    """Compute kernel of every table that `compute_kernels` does not name. `fused_uvm` and `fused_uvm_caching` exist on GPU,
    with fused table optimizers; `auto` takes `fused_uvm_caching` for the fewest tables, the largest first, where not all fit on
    the device. A rank on CPU has its tables in host memory in any case."""
    compute_kernels: dict[str, ComputeKernel] = {}
    """Compute kernel of single tables, by field: { user = "fused_uvm_caching" }."""
    cache_load_factor: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the rows of a `fused_uvm_caching` table that the GPU has room for (`load_factor` in TorchRec)."""
    memory_share: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Share of a rank's memory that tables, their gradients and their optimizer's state may take; the rest is for batches, activations and the
    dense part. TorchRec's planner keeps 15 % free as well."""


TablePrecision = Literal["float32", "float16", "bfloat16"]
"""How a number of a table is stored."""


class PrecisionSettings(Settings):
    """Arithmetic of the parts of a model."""

    tables: TablePrecision = "float32"
    """How tables are stored; what is looked up is float32, and so is what their rule remembers. Half the bytes need a fused rule. `float16` on CPU
    rounds each step to the nearest number, so that steps below half the distance to the next are lost (w / 4096 and up to twice that); on GPU kernels
    round to either neighbour at random, right on average. `bfloat16` has kernels on GPU alone. docs/sharding.md says what exists where."""
    dense: Literal["float32", "float64", "bfloat16"] = "float32"
    """Of the part above the tables. `float64` also rounds what is summed over ranks, so that a run on CPU comes out the same on any number of
    ranks; it costs time (perf/results/ranks_cpu_2026-11.md). `bfloat16` is that of products in steps on weights and on alpha (autocast): weights,
    BatchNorm, logits, loss and all that is only scored stay float32. Made for GPUs; a CPU without bfloat16 instructions takes longer with it."""


class OrthogonalitySettings(Settings):
    """Soft orthogonality of table columns (HAM paper, Eq. 1)."""

    form: Literal["gram", "cosine", "none"] = "gram"
    """`gram`: Eq. 1; `cosine`: Eq. 1 of the columns at unit length; `none`: off."""
    weight: PositiveFloat = 1e-3
    """lambda: 1e-3 on MovieLens-1M, 1e-6 with `cosine` on Avazu in the paper."""
    application: Literal["coupled", "decoupled"] = "coupled"
    """`coupled`: added to the gradient before the optimizer's rule, to every row at every step, as in the paper; `decoupled`: beside the optimizer,
    as far as its rule would take such a gradient, at a cost that does not grow with the rows."""
    every: PositiveInt = 20
    """Decoupled only: steps from one application to the next, which makes up for the steps between."""
    rows: PositiveInt = 2048
    """Decoupled only: about so many rows of each table at a time, evenly spread over it, in rotation. A row is moved for all steps since its turn."""


class PretrainSettings(Settings):
    """Stage 1: train the wide supernet."""

    max_epochs: PositiveInt = 30
    """Upper bound on epochs."""
    patience: PositiveInt = 2
    """Epochs without a better validation AUC before the stage stops; the best epoch's weights are kept."""


class Target(Settings):
    """What a search must bring the tables down to: a number of columns, or of bytes."""

    columns: PositiveInt | None = None
    """Columns left in all tables together."""
    bytes: PositiveInt | None = None
    """Bytes of all tables under search together, at searched dims and 4 bytes a number (2 with `precision.tables` of half the bytes); first-order
    tables of width 1 come on top. A run's own bundle stores as many, but for `bfloat16` tables: it has them in float32, and takes
    twice as many."""

    @model_validator(mode="after")
    def _one_of_both(self) -> "Target":
        if (self.columns is None) == (self.bytes is None):
            raise ValueError("give a target either `columns` or `bytes`")
        return self

    @property
    def label(self) -> str:
        """`columns-28` or `bytes-1000000`: names the target in folders and logs."""
        return f"columns-{self.columns}" if self.columns is not None else f"bytes-{self.bytes}"


class MethodSettings(Settings):
    """The size-search method; each method adds keys of its own (ham_dist/methods)."""

    name: str
    """The method: ham, or a control that chooses without a search: uniform, random or magnitude."""


METHODS = Choice[MethodSettings]("search.method", "ham", "ham_dist.methods.registry")
AnyMethodSettings = Annotated[SerializeAsAny[MethodSettings], METHODS.validator()]
"""Settings of the method that `name` chooses."""


class SearchSettings(Settings):
    """Stage 2: find the columns to keep."""

    method: AnyMethodSettings = Field(default_factory=METHODS.start)
    """The size-search method: a section [search.method], or its name alone."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = (Target(columns=16),)
    """One search, and one narrow model, for each target; all start from the one pretrained supernet."""
    epochs: PositiveInt = 10
    """Upper bound on epochs of alternating steps."""
    patience: PositiveInt = 3
    """Epochs without a better validation AUC, the column count being near the target, before the search stops early."""


class RetrainSettings(Settings):
    """Stage 3: go on training the narrow model from the searched weights."""

    max_epochs: PositiveInt = 30
    """Upper bound on epochs."""
    patience: PositiveInt = 2
    """Epochs without a better validation AUC before the stage stops; the best epoch's weights are kept."""


class CheckpointSettings(Settings):
    """When a run saves what it goes on from, beside the end of every epoch; may change when it goes on."""

    every_steps: Annotated[int, Field(ge=0)] = 0
    """Steps from one checkpoint within an epoch to the next; 0 counts no steps."""
    every_minutes: Annotated[float, Field(ge=0)] = 10.0
    """Minutes after which the next step is followed by a checkpoint, by the clock of rank 0; 0 asks no clock."""
    keep: PositiveInt = 2
    """Newest checkpoints of a stage that stay, beside those with the best validation AUC: where the newest is damaged, the one before it serves."""
    copy_bytes: Annotated[int, Field(ge=0)] = 2**30
    """Up to so many bytes of a rank's tensors are copied to be written while training goes on; for more, training waits until they are written."""


class RanksSettings(Settings):
    """How ranks keep together; may change when a run goes on."""

    timeout_minutes: Annotated[float, Field(ge=1e-5, le=1e6)] = 120.0
    """How long a rank may keep the others waiting before all end and it is named. Rank 0 alone hashes a bundle, at about a second a gigabyte."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`cuda`: each rank has a GPU of its own. `auto`: so where the host has any GPU, else `cpu`. Fewer GPUs on a host than ranks are an error."""
    prefetch_ids: bool = True
    """Whether the ids of the next two batches travel between ranks, and to the GPU, while a batch is trained on; no number depends on it."""


class RunSettings(Settings):
    """One whole run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of weights, of the order of samples and of methods that draw."""
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
                f'orthogonality.application = "coupled" adds to the gradient of whole tables, which optimizer.tables = "{tables}" never forms '
                '(it steps inside the backward pass); set orthogonality.application = "decoupled", or optimizer.tables = "adam"'
            )
        return self
