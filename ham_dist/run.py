"""A whole run: pretrain once, then for each target search, slice, retrain and export."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch

from ham_dist.config.schema import RunSettings, Target
from ham_dist.data.format.manifest import Manifest, Truth
from ham_dist.data.synthetic.write import generate
from ham_dist.distributed.checkpoint.writer import CheckpointWriter
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding import gram
from ham_dist.distributed.sharding.model import TABLES
from ham_dist.embedding.sizes import table_sizes
from ham_dist.embedding.table_size import read_sizes
from ham_dist.errors import CheckpointError
from ham_dist.export.package import export_state, origin, own_precision
from ham_dist.io.atomic import write_json
from ham_dist.io.paths import absolute
from ham_dist.methods.budget import Budget
from ham_dist.methods.method import Method, SearchSpace
from ham_dist.methods.registry import METHODS
from ham_dist.report import grids
from ham_dist.report.record import read_result
from ham_dist.report.terminal import print_grids
from ham_dist.stages.pretrain import pretrain
from ham_dist.stages.result import ModelResult, device_name, model_result, result_of
from ham_dist.stages.retrain import retrain
from ham_dist.stages.search import search
from ham_dist.stages.slice import slice_columns
from ham_dist.training.axes import check_axes
from ham_dist.training.checkpoints import Saving, StageCheckpoints
from ham_dist.training.covariance import covariances
from ham_dist.training.evaluation import undefined_auc
from ham_dist.training.preemption import Preemption
from ham_dist.training.progress import StageProgress
from ham_dist.training.run_folder import RunFolder, default_run_dir
from ham_dist.training.run_identity import RunIdentity
from ham_dist.training.run_log import RunLog
from ham_dist.training.samples import Samples, StageName
from ham_dist.training.state import TrainingState, open_supernet, table_groups, warning_of_caches


@dataclass(frozen=True)
class Run:
    """Objects that all stages of a run use."""

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


def run_stages(settings: RunSettings, run_dir: Path | None, *, resume: bool) -> None:
    """Runs or resumes all stages: pretrain, and for each target search, slice, retrain and export.

    Args:
        settings: Settings of the run.
        run_dir: Folder of the run; None for a new folder in runs/.
        resume: Continue from the newest checkpoint in `run_dir`.
    Raises:
        HamError: An error the user can fix.
    """
    settings = _with_absolute_path(settings)
    # Preemption starts after the rendezvous: before it, there is nothing to save, and SIGTERM ends the
    # process.
    with process_group.process_group(settings.ranks) as device, Preemption() as preemption:
        folder = RunFolder(process_group.on_first_rank(lambda: run_dir or default_run_dir(settings)))
        process_group.on_first_rank(lambda: _refuse_target_folder(folder))
        with _started(folder, settings, device_name(device), resume=resume), _open_log(folder) as log:
            _log_differences(folder, log)
            data = _data_folder(settings, folder, log)
            manifest = process_group.together(lambda: Manifest.load(data))
            process_group.on_first_rank(lambda: folder.tie(manifest))
            process_group.on_first_rank(lambda: manifest.check(data, deep=False))
            if undefined := undefined_auc(manifest, "test"):
                log.say(f"warning: {undefined}: the test AUC is not defined, and is null in result.json")
            samples = process_group.together(lambda: Samples(data, manifest, settings, device))
            with CheckpointWriter(
                settings.checkpoint.copy_bytes, timedelta(minutes=settings.ranks.timeout_minutes)
            ) as writer:
                _all_stages(
                    Run(
                        settings,
                        folder,
                        manifest,
                        samples,
                        device,
                        log,
                        Saving(settings.checkpoint, writer, preemption, _identity(folder)),
                    )
                )


@contextmanager
def _started(folder: RunFolder, settings: RunSettings, device: str, *, resume: bool) -> Iterator[None]:
    try:
        process_group.on_first_rank(
            lambda: folder.start(
                settings, resume=resume, world_size=process_group.world_size(), device=device
            )
        )
        yield
    finally:
        folder.release()


def _open_log(folder: RunFolder) -> RunLog:
    """The log of a run or of one target; only rank 0 writes."""
    return process_group.together(lambda: RunLog(folder, is_first=process_group.rank() == 0))


def _with_absolute_path(settings: RunSettings) -> RunSettings:
    """The settings with an absolute data.path, so that the run can be resumed from another folder."""
    if settings.data.path is None:
        return settings
    data = settings.data.model_copy(update={"path": absolute(settings.data.path)})
    return settings.model_copy(update={"data": data})


def _identity(folder: RunFolder) -> RunIdentity:
    identity = process_group.on_first_rank(folder.read_identity)
    assert identity is not None, "a run that has started has an identity"
    return identity


def _log_differences(folder: RunFolder, log: RunLog) -> None:
    """Log settings and versions that changed since earlier starts; only rank 0 knows them."""
    if process_group.rank() > 0:
        return
    for change in folder.changes:
        log.say(f"setting changed: {change.key} = {change.new} (before: {change.old})")
    if versions := folder.other_versions():
        log.say(
            f"warning: versions have changed since the run was started: {', '.join(versions)}. "
            "Results can differ from those with the original versions"
        )


def _refuse_target_folder(folder: RunFolder) -> None:
    if (whole := folder.whole()) is not None:
        raise CheckpointError(
            f"{folder.path}: is the folder of one target of the run in {whole.path}. Resume the whole run: "
            f"`ham-dist train --resume --run-dir {whole.path}`"
        )


def _data_folder(settings: RunSettings, folder: RunFolder, log: RunLog) -> str | Path:
    if settings.data.path is not None:
        return process_group.together(lambda: folder.data_folder(settings))

    def make() -> None:
        log.say(f"data: generating {settings.data.synthetic.rows:,} rows with planted truth in {folder.data}")
        generate(settings.data.synthetic, folder.data)

    process_group.on_first_rank(make)
    return folder.data


def _all_stages(run: Run) -> None:
    """Algorithm 1, once for each target, from one pretrained supernet."""
    process_group.on_first_rank(lambda: _check_axes(run))
    wide = open_supernet(
        run.settings, run.manifest.num_embeddings(), run.device, run.manifest.single_valued()
    )
    if warning := warning_of_caches(run.settings, wide.sharded.plan):
        run.log.say(warning)
    # Made for all targets before training, so that a target that cannot be met is an error at once.
    spaces = {target: _search_space(run, wide, target) for target in run.settings.search.targets}
    checkpoints = run.checkpoints("pretrain", wide)
    pretrained = pretrain(wide, run.samples, checkpoints, run.log)
    before = model_result(wide, run.samples)
    for target, space in spaces.items():
        folder = _target_folder(run, target)
        if not process_group.on_first_rank(folder.result.exists):
            checkpoints.restore_best(pretrained)
            wide.sharded.mask.set(None)
            method = METHODS[run.settings.search.method.name](space, run.settings.search.method)
            with _open_log(folder) if folder is not run.folder else nullcontext(run.log) as log:
                saving = replace(run.saving, identity=_identity(folder))
                of_target = replace(run, folder=folder, log=log, saving=saving)
                _one_target(of_target, target, wide, method, pretrained, before)
            gc.collect()  # Frees the sliced model's tables: sharded modules have reference cycles.
        process_group.on_first_rank(partial(_print_result, folder, run.manifest.truth))


def _check_axes(run: Run) -> None:
    tables = table_groups(run.settings, run.manifest.num_embeddings())[TABLES]
    check_axes(run.settings.model, {table.field: table.embedding_dim for table in tables})


def _one_target(
    run: Run,
    target: Target,
    wide: TrainingState,
    method: Method,
    pretrained: StageProgress,
    before: ModelResult,
) -> None:
    """Search, slice, retrain and export for one target. `result.json` is written last: it marks the end."""
    folder = run.folder
    run.log.say(f"target {target.label}: search by {run.settings.search.method.name}")
    if warning := method.warning(run.settings.search.epochs * run.samples.steps):
        run.log.say(warning)
    columns, searched = search(
        wide, method, run.samples, run.checkpoints("search", wide, method.tensors), run.log
    )
    wide.optimizers.zero_grad()  # frees gradients as large as the tables before retraining
    sliced = slice_columns(wide, columns, run.samples, run.log)
    retrained = retrain(sliced, run.samples, run.checkpoints("retrain", sliced), run.log)
    after = model_result(sliced, run.samples)
    sizes = table_sizes(wide.sharded.tables, sliced.sharded.tables, columns)
    plan = {"supernet": wide.sharded.plan.describe(), "sliced": sliced.sharded.plan.describe()}
    process_group.on_first_rank(lambda: write_json(folder.plan, plan))
    process_group.on_first_rank(lambda: write_json(folder.sizes, [asdict(size) for size in sizes]))
    if not process_group.on_first_rank(folder.bundle.exists):
        verified = export_state(
            sliced,
            run.samples,
            folder.bundle,
            precision=own_precision(run.settings),
            run=origin(run.settings, run.manifest),
        )
        run.log.say(
            f"bundle: {folder.bundle}: probabilities of {verified['rows']:,} records differ "
            f"from the live model's by at most {verified['max_difference']:.1e}"
        )
    stages = {"pretrain": pretrained, "search": searched, "retrain": retrained}
    result = result_of(run.settings, run.manifest, target, before, after, columns, stages, run.device)
    run.log.truncate_after("result", -1)
    run.log.metrics(
        "result",
        0,
        sliced.optimizers.steps,
        test_auc=after.auc,
        test_logloss=after.logloss,
        kept_columns=result["kept_columns"],
    )
    process_group.on_first_rank(lambda: write_json(folder.result, result))


def _search_space(run: Run, wide: TrainingState, target: Target) -> SearchSpace:
    layout = wide.sharded.mask.layout
    return SearchSpace(
        layout=layout,
        budget=Budget(target, layout),
        column_norms=lambda: gram.column_norms(wide.sharded),
        covariances=partial(covariances, wide, partial(run.samples.once, "training")),
        seed=run.settings.seed,
        device=run.device,
        bands=wide.interaction.bands(),
    )


def _target_folder(run: Run, target: Target) -> RunFolder:
    """The run folder of one target, started if it is not the whole run's folder."""
    folder = run.folder.of_target(target, run.settings.search.targets)
    if folder is run.folder:
        return folder
    search_settings = run.settings.search.model_copy(update={"targets": (target,)})
    settings = run.settings.model_copy(update={"search": search_settings})
    process_group.on_first_rank(
        lambda: folder.start(
            settings,
            resume=True,
            world_size=process_group.world_size(),
            device=device_name(run.device),
            run_id=run.saving.identity.id,
        )
    )
    process_group.on_first_rank(lambda: folder.tie(run.manifest))
    return folder


def _print_result(folder: RunFolder, truth: Truth | None) -> None:
    result = read_result(folder)
    if result is not None:
        print_grids([grids.sizes(read_sizes(folder.sizes), truth), grids.quality(result)])
