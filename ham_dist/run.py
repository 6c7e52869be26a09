"""A whole run: pretrain once, then for each branch (a target) search, slice, retrain and export."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from ham_dist.config.schema import RunSettings
from ham_dist.config.target import Target
from ham_dist.config.targets import epochs_of_falling_search, resolved
from ham_dist.data.format.manifest import Manifest, Truth
from ham_dist.data.synthetic.write import generate
from ham_dist.distributed.checkpoint.writer import CheckpointWriter
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding.model import TABLES
from ham_dist.embedding.table_size import read_sizes
from ham_dist.errors import CheckpointError, Preempted
from ham_dist.io.atomic import write_json
from ham_dist.io.paths import absolute
from ham_dist.methods.method import SearchSpace
from ham_dist.report import grids
from ham_dist.report.record import read_result
from ham_dist.report.terminal import print_grids
from ham_dist.stages.branch import Run, RunBranch, Supernet, do_branch, do_supernet, search_space
from ham_dist.stages.frontier import frontier, save_logits, validation_logits
from ham_dist.stages.pretrain import pretrain
from ham_dist.stages.quantize import require_quantizable
from ham_dist.stages.result import device_name, model_result
from ham_dist.training.axes import check_axes, check_rotation
from ham_dist.training.checkpoints import Saving
from ham_dist.training.evaluation import undefined_auc
from ham_dist.training.frontier import to_json
from ham_dist.training.preemption import Preemption
from ham_dist.training.run_folder import RunFolder, default_run_dir
from ham_dist.training.run_identity import RunIdentity
from ham_dist.training.run_log import RunLog
from ham_dist.training.samples import Samples
from ham_dist.training.state import open_supernet, table_groups, warning_of_caches


class Watch:
    """Receives the end of each branch of a run. This class ends the run with the error of a branch."""

    def done(self, branch: RunBranch, folder: RunFolder, manifest: Manifest) -> None:
        """Called on every rank when `branch` is finished, also if an earlier start had finished it."""

    def ended(self, run: Run, branches: Sequence[RunBranch]) -> None:
        """Called on every rank when all branches are finished."""

    def failed(self, branch: RunBranch, error: Exception) -> None:
        """Called in the handler of an error of `branch`; the run continues if it returns."""
        raise error


class _PrintsResults(Watch):
    def done(self, branch: RunBranch, folder: RunFolder, manifest: Manifest) -> None:
        process_group.on_first_rank(lambda: _print_result(folder, manifest.truth))

    def ended(self, run: Run, branches: Sequence[RunBranch]) -> None:
        if len(branches) > 1:
            process_group.on_first_rank(lambda: _write_frontier(run, branches))


def run_stages(settings: RunSettings, run_dir: Path | None, *, resume: bool) -> None:
    """Runs or resumes all stages: pretrain, and for each target search, slice, retrain and export.

    Args:
        settings: Settings of the run.
        run_dir: Folder of the run; None for a new folder in runs/.
        resume: Continue from the newest checkpoint in `run_dir`.
    Raises:
        HamError: An error the user can fix.
    """
    settings = resolved_targets(with_absolute_path(settings))
    run_branches(settings, run_dir, branches_of(settings), resume=resume, watch=_PrintsResults())


def resolved_targets(settings: RunSettings) -> RunSettings:
    """Returns the settings with explicit targets. Reads the manifest of the data if there are ladders."""
    if settings.search.schedule == "separate" and not any(t.ladder for t in settings.search.targets):
        return settings
    if settings.data.path is None:
        counts = settings.data.synthetic.num_embeddings
        return resolved(settings, {f"field_{number}": count for number, count in enumerate(counts)})
    return resolved(settings, Manifest.load(settings.data.path).num_embeddings())


def branches_of(settings: RunSettings) -> list[RunBranch]:
    """Returns the branches of a run: one for each target, each in a folder of its own if there are several.

    In a falling search, each starts where the search before it ended, and they share the epochs.
    """
    targets = settings.search.targets
    branches: list[RunBranch] = []
    epochs = epochs_of_falling_search(settings.search.epochs, len(targets))
    for target, share in zip(targets, epochs, strict=True):
        place = "." if len(targets) == 1 else target.label
        of_target = with_target(settings, target)
        if settings.search.schedule == "separate":
            branches.append(RunBranch(place, of_target))
            continue
        search = of_target.search.model_copy(update={"epochs": share})
        follows = branches[-1].place if branches else None
        branches.append(RunBranch(place, of_target.model_copy(update={"search": search}), follows=follows))
    return branches


def run_branches(
    settings: RunSettings,
    run_dir: Path | None,
    branches: Sequence[RunBranch],
    *,
    resume: bool,
    test: bool = True,
    watch: Watch | None = None,
) -> None:
    """Pretrains one supernet, or resumes it, and runs the branches that are not finished.

    Args:
        settings: Settings of the run, with an absolute data.path.
        run_dir: Folder of the run; None for a new folder in runs/.
        branches: Branches of the run; their settings differ from `settings` in [search] and [retrain] only.
        resume: Continue from the newest checkpoint in `run_dir`.
        test: Evaluate the models on the test split. If false, it is not read.
        watch: Receives the end of each branch.
    Raises:
        HamError: An error the user can fix.
    """
    for branch in branches:
        require_quantizable(branch.settings)
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
            if test and (undefined := undefined_auc(manifest, "test")):
                log.say(f"warning: {undefined}: the test AUC is not defined, and is null in result.json")
            samples = process_group.together(
                lambda: Samples(data, manifest, settings, device, reads_test=test)
            )
            with CheckpointWriter(
                settings.checkpoint.copy_bytes, timedelta(minutes=settings.ranks.timeout_minutes)
            ) as writer:
                saving = Saving(settings.checkpoint, writer, preemption, _identity(folder))
                run = Run(settings, folder, manifest, samples, device, log, saving)
                _all_stages(run, branches, watch or Watch())


def with_absolute_path(settings: RunSettings) -> RunSettings:
    """The settings with an absolute data.path, so that the run can be resumed from another folder."""
    if settings.data.path is None:
        return settings
    data = settings.data.model_copy(update={"path": absolute(settings.data.path)})
    return settings.model_copy(update={"data": data})


def with_target(settings: RunSettings, target: Target) -> RunSettings:
    """The settings with `target` as the only target."""
    return settings.model_copy(update={"search": settings.search.model_copy(update={"targets": (target,)})})


@contextmanager
def _started(
    folder: RunFolder, settings: RunSettings, device: str, *, resume: bool, run_id: str | None = None
) -> Iterator[None]:
    """Starts or resumes a run in a folder, which stays locked for the block."""
    ranks = process_group.world_size()
    try:
        process_group.on_first_rank(
            lambda: folder.start(settings, resume=resume, world_size=ranks, device=device, run_id=run_id)
        )
        yield
    finally:
        folder.release()


def _open_log(folder: RunFolder) -> RunLog:
    """The log of a run or of one target; only rank 0 writes."""
    return process_group.together(lambda: RunLog(folder, is_first=process_group.rank() == 0))


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


def _all_stages(run: Run, branches: Sequence[RunBranch], watch: Watch) -> None:
    """Algorithm 1, with one search, slicing and retraining per branch, from one pretrained supernet."""
    process_group.on_first_rank(lambda: _check_axes(run, branches))
    wide = open_supernet(
        run.settings, run.manifest.num_embeddings(), run.device, run.manifest.single_valued()
    )
    if warning := warning_of_caches(run.settings, wide.sharded.plan):
        run.log.say(warning)
    # Made for all branches before training, so that a target that cannot be met is an error at once.
    spaces = dict[str, SearchSpace]()
    for branch in branches:
        with _reported(branch, watch):
            spaces[branch.place] = search_space(run, wide, branch.settings)
    checkpoints = run.checkpoints("pretrain", wide)
    pretrained = pretrain(wide, run.samples, checkpoints, run.log)
    supernet = Supernet(wide, checkpoints, pretrained, model_result(wide, run.samples))
    by_place = {branch.place: branch for branch in branches}
    if len(branches) > 1:
        save_logits(run.folder, validation_logits(wide, run.samples))
    for branch in branches:
        if branch.place in spaces:
            with _reported(branch, watch), _branch_folder(run, branch) as folder:
                if not process_group.on_first_rank(folder.result.exists):
                    before = None if branch.follows is None else _finished(run, by_place[branch.follows])
                    _one_branch(run, folder, branch, supernet, spaces[branch.place], before)
                watch.done(branch, folder, run.manifest)
    watch.ended(run, branches)


@contextmanager
def _reported(branch: RunBranch, watch: Watch) -> Iterator[None]:
    """Report an error of a branch. An error of the machine, or a stop, ends the run."""
    try:
        yield
    except (OSError, MemoryError, Preempted):
        raise
    except Exception as error:
        watch.failed(branch, error)


def _check_axes(run: Run, branches: Sequence[RunBranch]) -> None:
    tables = table_groups(run.settings, run.manifest.num_embeddings())[TABLES]
    dims = {table.field: table.embedding_dim for table in tables}
    check_axes(run.settings.model, dims)
    if any(branch.settings.search.rotate for branch in branches if not branch.is_supernet):
        check_rotation(run.settings.model, dims)


def _one_branch(
    run: Run,
    folder: RunFolder,
    branch: RunBranch,
    supernet: Supernet,
    space: SearchSpace,
    before: Run | None,
) -> None:
    with _open_log(folder) if folder is not run.folder else nullcontext(run.log) as log:
        of_branch = replace(_of_branch(run, branch), folder=folder, log=log)
        if branch.is_supernet:
            do_supernet(of_branch, supernet)
        else:
            do_branch(of_branch, supernet, space, before)
    gc.collect()  # Frees the sliced model's tables: sharded modules have reference cycles.


def _of_branch(run: Run, branch: RunBranch) -> Run:
    """The run with the settings, folder and identity of a branch that has started, and the log of the run."""
    folder = run.folder if branch.place == "." else RunFolder(run.folder.path / branch.place)
    saving = replace(run.saving, identity=_identity(folder))
    return replace(run, settings=branch.settings, folder=folder, saving=saving)


def _finished(run: Run, branch: RunBranch) -> Run:
    """The run of a finished branch; raises if it has failed, as its search may have ended anywhere."""
    folder = RunFolder(run.folder.path / branch.place)
    if not process_group.on_first_rank(folder.result.exists):
        raise CheckpointError(
            f"{folder.path}: has not finished, but the falling search of the next target starts where its "
            "search ended.\n  Correct its error, which the log has, and run it again first."
        )
    return _of_branch(run, branch)


@contextmanager
def _branch_folder(run: Run, branch: RunBranch) -> Iterator[RunFolder]:
    """The run folder of one branch; started and locked if it is not the whole run's folder."""
    if branch.place == ".":
        yield run.folder
        return
    folder = RunFolder(run.folder.path / branch.place)
    with _started(
        folder, branch.settings, device_name(run.device), resume=True, run_id=run.saving.identity.id
    ):
        process_group.on_first_rank(lambda: folder.tie(run.manifest))
        yield folder


def _write_frontier(run: Run, branches: Sequence[RunBranch]) -> None:
    tolerance = run.settings.search.tolerance
    models = []
    for branch in branches:
        folder = RunFolder(run.folder.path / branch.place)
        if not folder.validation.exists():
            run.log.say(f"{folder.path}: was finished by an earlier version, so models are not compared")
            return
        result = read_result(folder)
        assert result is not None, "all branches are finished"
        (target,) = branch.settings.search.targets
        columns = sum(result.kept_columns.values())
        models.append((folder, target.label, columns, result.embedding_bytes))
    points = frontier(run.folder, models, tolerance)
    write_json(run.folder.frontier, to_json(points, tolerance))
    print_grids([grids.frontier(points, tolerance)])


def _print_result(folder: RunFolder, truth: Truth | None) -> None:
    result = read_result(folder)
    if result is not None:
        print_grids([grids.sizes(read_sizes(folder.sizes), truth), grids.quality(result)])
