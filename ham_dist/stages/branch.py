"""One branch of a run: search, slice, retrain and export for one target, from the pretrained supernet."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch

from ham_dist.config.schema import RunSettings
from ham_dist.config.target import Target
from ham_dist.data.format.manifest import Manifest
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding import gram
from ham_dist.embedding.mask import Columns
from ham_dist.embedding.sizes import table_sizes
from ham_dist.errors import CheckpointError
from ham_dist.export.codecs.column_bytes import served_layout
from ham_dist.export.package import export_state, origin, own_precision
from ham_dist.io.atomic import write_json
from ham_dist.methods.budget import Budget
from ham_dist.methods.method import Method, SearchSpace
from ham_dist.methods.registry import METHODS
from ham_dist.stages.frontier import save_logits, validation_logits
from ham_dist.stages.quantize import quantize
from ham_dist.stages.result import ModelResult, model_result, result_of, stored_bytes
from ham_dist.stages.retrain import retrain
from ham_dist.stages.rotate import rotate
from ham_dist.stages.search import search
from ham_dist.stages.slice import initial_columns, slice_columns
from ham_dist.training.checkpoints import Saving, StageCheckpoints
from ham_dist.training.covariance import covariances
from ham_dist.training.distillation import Teacher
from ham_dist.training.progress import StageProgress
from ham_dist.training.run_folder import RunFolder
from ham_dist.training.run_log import RunLog
from ham_dist.training.samples import Samples, StageName
from ham_dist.training.state import TrainingState
from ham_dist.training.stopping import EarlyStopper


@dataclass(frozen=True)
class RunBranch:
    """A search and a retraining that start from a run's pretrained supernet.

    Attributes:
        place: Its folder, relative to that of the run; `.` is the run's own folder.
        settings: Settings of the run, with the branch's own [search] (one target) and [retrain].
        is_supernet: True for the supernet itself, as pretrained: nothing is searched or retrained.
        follows: Place of the branch at the end of whose search this search starts; None for the pretrained
            supernet.
    """

    place: str
    settings: RunSettings
    is_supernet: bool = False
    follows: str | None = None


@dataclass(frozen=True)
class Run:
    """Objects that all stages of a run, or of a branch, use."""

    settings: RunSettings
    folder: RunFolder
    manifest: Manifest
    samples: Samples
    device: torch.device
    log: RunLog
    saving: Saving

    def checkpoints(
        self, stage: StageName, state: TrainingState, extra: Callable[[], Mapping[str, torch.Tensor]] = dict
    ) -> StageCheckpoints:
        """Checkpoints of one stage; see StageCheckpoints for the parameters."""
        return StageCheckpoints(self.folder.checkpoints / stage, state, self.saving, self.log, extra)


@dataclass(frozen=True)
class Supernet:
    """The pretrained supernet of a run.

    Attributes:
        state: Its training state, which each branch changes.
        checkpoints: Checkpoints of pretraining.
        progress: Progress of pretraining.
        result: Its quality and cost.
    """

    state: TrainingState
    checkpoints: StageCheckpoints
    progress: StageProgress
    result: ModelResult

    def restore(self) -> None:
        """Load its pretrained weights and optimizer state. The mask does not change."""
        self.checkpoints.restore_best(self.progress)


def search_space(run: Run, wide: TrainingState, settings: RunSettings) -> SearchSpace:
    """Returns the columns to choose from, and the budget of the only target in `settings`.

    Args:
        settings: Settings of the branch.
    Raises:
        TargetError: The tables cannot meet the target.
    """
    layout = wide.sharded.mask.layout
    (target,) = settings.search.targets
    return SearchSpace(
        layout=layout,
        budget=Budget(target, served_layout(layout, target.precision)),
        column_norms=lambda: gram.column_norms(wide.sharded),
        covariances=partial(covariances, wide, partial(run.samples.once, "training")),
        seed=settings.seed,
        device=run.device,
        bands=wide.interaction.bands(),
    )


def do_branch(run: Run, supernet: Supernet, space: SearchSpace, before: Run | None = None) -> None:
    """Search, slice, retrain and export. `result.json` is written last: it marks the end.

    Args:
        run: The run with the settings, folder, log and identity of the branch.
        space: Its search space.
        before: The same of the finished branch at the end of whose search this one starts; None for the
            pretrained supernet.
    """
    settings = run.settings
    (target,) = settings.search.targets
    supernet.state.sharded.mask.set(None)
    wide = replace(supernet.state, settings=settings)
    _restore(run, supernet, wide)
    method = METHODS[settings.search.method.name](space, settings.search.method)
    run.log.say(f"target {target.label}: search by {settings.search.method.name}")
    if warning := method.warning(settings.search.epochs * run.samples.steps):
        run.log.say(warning)
    if before is not None:
        _restore_search(before, wide, method)
    columns, searched = search(
        wide, method, run.samples, run.checkpoints("search", wide, method.tensors), run.log
    )
    wide.optimizers.zero_grad()  # frees gradients as large as the tables before retraining
    sliced = _start_of_retraining(run, supernet, wide, columns)
    checkpoints = run.checkpoints("retrain", sliced)
    retrained = retrain(sliced, run.samples, checkpoints, run.log, _teacher(settings, supernet))
    stages = {"pretrain": supernet.progress, "search": searched, "retrain": retrained}
    if settings.retrain.precision != "fp32":
        stages["quantize"] = quantize(sliced, run.samples, run.checkpoints("quantize", sliced), run.log)
    _finish(run, supernet, sliced, columns, stages, target)


def _teacher(settings: RunSettings, supernet: Supernet) -> Teacher | None:
    """The pretrained supernet with all columns; None without `retrain.distillation`."""
    if not settings.retrain.distillation:
        return None
    supernet.restore()
    supernet.state.sharded.mask.set(None)
    return Teacher(supernet.state, settings.retrain.distillation)


def _restore(run: Run, supernet: Supernet, wide: TrainingState) -> None:
    """Load the pretrained weights; with `search.rotate`, rotate them."""
    supernet.restore()
    if run.settings.search.rotate:
        rotate(wide, run.samples, run.log)


def do_supernet(run: Run, supernet: Supernet) -> None:
    """Export the supernet as pretrained, and write its `result.json`."""
    supernet.restore()
    supernet.state.sharded.mask.set(None)
    layout = supernet.state.sharded.mask.layout
    run.log.say("the supernet as pretrained")
    _finish(
        run,
        supernet,
        supernet.state,
        layout.split(torch.ones(layout.size)),
        {"pretrain": supernet.progress},
        Target(columns=layout.size),
    )


def _restore_search(before: Run, wide: TrainingState, method: Method) -> None:
    """Load the weights, and the method's own tensors, from the end of the search of an earlier branch."""
    wide.transform = method.transform(wide.sharded)
    progress = StageProgress(EarlyStopper(before.settings.search.patience))
    checkpoints = before.checkpoints("search", wide, method.tensors)
    checkpoints.resume(progress)
    if progress.epochs == 0:
        raise CheckpointError(
            f"{checkpoints.folder}: holds no checkpoint, but the search of the next target starts from it.\n"
            "  Start another run with another --run-dir."
        )
    checkpoints.restore_best(progress)


def _start_of_retraining(
    run: Run, supernet: Supernet, wide: TrainingState, columns: Columns
) -> TrainingState:
    """The sliced model over `columns`, with the weights from which retraining starts."""
    start = run.settings.retrain.start
    if start == "scratch":
        return initial_columns(wide, columns, run.log)
    if start == "pretrained":
        mask = wide.sharded.mask.values
        wide.sharded.mask.set(None)
        _restore(run, supernet, wide)
        wide.sharded.mask.set(mask)
        run.log.say("slice: the pretrained weights are restored")
    return slice_columns(wide, columns, run.samples, run.log)


def _finish(
    run: Run,
    supernet: Supernet,
    state: TrainingState,
    columns: Columns,
    stages: Mapping[str, StageProgress],
    target: Target,
) -> None:
    """Measure and export the branch's final model, and write the files about it."""
    folder, wide = run.folder, supernet.state
    save_logits(folder, validation_logits(state, run.samples))
    after = model_result(state, run.samples)
    sizes = table_sizes(wide.sharded.tables, state.sharded.tables, columns)
    plan = {"supernet": wide.sharded.plan.describe(), "sliced": state.sharded.plan.describe()}
    process_group.on_first_rank(lambda: write_json(folder.plan, plan))
    process_group.on_first_rank(lambda: write_json(folder.sizes, [asdict(size) for size in sizes]))
    if not process_group.on_first_rank(folder.bundle.exists):
        verified = export_state(
            state,
            run.samples,
            folder.bundle,
            precision=own_precision(run.settings),
            run=origin(run.settings, run.manifest),
        )
        run.log.say(
            f"bundle: {folder.bundle}: probabilities of {verified['rows']:,} records differ "
            f"from the live model's by at most {verified['max_difference']:.1e}"
        )
    result = result_of(run.settings, run.samples, target, supernet.result, after, columns, stages, run.device)
    if (stored := stored_bytes(state)) is not None:
        result["stored_bytes"] = stored
    run.log.truncate_after("result", -1)
    run.log.metrics(
        "result",
        0,
        state.optimizers.steps,
        **{name: result[name] for name in ("test_auc", "test_logloss") if run.samples.reads_test},
        kept_columns=result["kept_columns"],
    )
    process_group.on_first_rank(lambda: write_json(folder.result, result))
