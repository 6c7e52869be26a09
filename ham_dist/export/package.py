"""Exporting a trained model: writing its bundle from all ranks, and comparing it with the live model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import torch

from ham_dist.config.schema import ModelSettings, RunSettings
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.reader.batch import Batch
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding.model import FIRST_ORDER, TABLES
from ham_dist.embedding.table_size import read_sizes
from ham_dist.errors import BundleError, CheckpointError
from ham_dist.export.choice import CodecLosses, choose_codecs
from ham_dist.export.codecs.registry import codec_of
from ham_dist.export.compact import Ids
from ham_dist.export.manifest import FieldEntry
from ham_dist.export.parts import OpenTable
from ham_dist.export.quality import MEASURED_ROWS, Labelled, LabelledIds, measure_bundle
from ham_dist.export.reencode import reencode_bundle
from ham_dist.export.unknown import shares_of
from ham_dist.export.verify import verify_bundle
from ham_dist.export.writer import Description, write_bundle
from ham_dist.models.interaction import Interaction
from ham_dist.models.registry import build_interaction
from ham_dist.stages.quantize import fake_quantization
from ham_dist.training.checkpoints import load_best_weights
from ham_dist.training.evaluation import predict
from ham_dist.training.run_folder import RunFolder
from ham_dist.training.samples import Samples, validation_of
from ham_dist.training.state import TrainingState, open_sliced

HELD_ROWS = 4096
"""Validation records on which a bundle that is not measured is compared with the live model."""

Verify: TypeAlias = Callable[[Path], Mapping[str, Any]]
Choose: TypeAlias = Callable[[Sequence[OpenTable]], Mapping[str, str]]


def export_state(
    state: TrainingState,
    samples: Samples,
    out: Path,
    *,
    precision: str | Mapping[str, str],
    run: Mapping[str, Any],
    table_bytes: int | None = None,
    tolerance: float | None = None,
) -> dict[str, Any]:
    """Write the model in `state` as a bundle. Every rank calls it and writes the rows that it holds.

    Quantized tables are measured on validation records (`quality.measure_bundle`).

    Args:
        precision: Codec of all tables, or that of each field; not used with `table_bytes`.
        run: Origin of the bundle, as `origin` returns it.
        table_bytes: Most bytes of all tables, which get a codec for each field; None for one codec.
        tolerance: Largest allowed difference of the validation AUC; None for that of the codecs.
    Returns:
        Result of comparing it with the live model, as in its manifest; the same on every rank.
    Raises:
        BundleError: The bundle cannot be written or differs from the live model; nothing is left on the disk.
    """
    manifest = samples.manifest
    fields = _fields(state, manifest)
    unknown = process_group.on_first_rank(lambda: shares_of(str(samples.folder), manifest, fields))
    dense = {
        name: values.float() if values.is_floating_point() else values
        for name, values in state.interaction.state_dict().items()
    }
    choose: Choose | None = None
    if table_bytes is not None or is_measured(precision):
        records = validation_records(state, samples)
        verify = _measured(records, tolerance)
        if table_bytes is not None:
            interaction = with_weights(state.settings.model, state.interaction.dims, dense)
            choose = choosing(interaction, records, table_bytes)
    else:
        verify = _same_probabilities(state, samples, precision)
    return write_bundle(
        out,
        Description(fields, state.settings.model, precision, manifest.recipe, run, unknown),
        chunks=state.sharded.chunks(TABLES),
        first_order_chunks=state.sharded.chunks(FIRST_ORDER),
        dense=dense,
        vocabulary=f"{samples.folder}/vocabulary" if manifest.recipe is not None else None,
        vocabulary_sha256={field.name: field.vocabulary.sha256 for field in manifest.fields},
        verify=verify,
        choose=choose,
    )


def is_measured(precision: str | Mapping[str, str]) -> bool:
    """Returns True if a bundle with these codecs is compared by its AUC and log loss."""
    codecs = [precision] if isinstance(precision, str) else precision.values()
    return any(codec_of(name).tolerance.auc is not None for name in codecs)


def _same_probabilities(state: TrainingState, samples: Samples, precision: str | Mapping[str, str]) -> Verify:
    """Compares probabilities on the first validation records. A collective, while its result is none."""
    logits, _ = predict(state, [samples.part("validation", HELD_ROWS)])
    live = torch.sigmoid(logits)
    held = ids_of(samples.whole("validation", HELD_ROWS))
    copied = precision == own_precision(state.settings)
    return lambda partial: verify_bundle(partial, [held], live, state.sharded.device, copied=copied)


def _measured(records: Labelled, tolerance: float | None) -> Verify:
    return lambda partial: measure_bundle(partial, records, tolerance)


def choosing(interaction: Interaction, records: Labelled, limit: int) -> Choose:
    """Returns the argument `choose` of `write_bundle` for tables of at most `limit` bytes."""
    return lambda tables: choose_codecs(CodecLosses(tables, interaction, records), tables, limit)


def with_weights(
    model: ModelSettings, dims: Mapping[str, int], dense: Mapping[str, torch.Tensor]
) -> Interaction:
    """Returns a copy of an interaction on CPU, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        interaction = build_interaction(model, dict(dims))
    interaction.load_state_dict({name: values.cpu() for name, values in dense.items()})
    return interaction.eval().requires_grad_(False)


def validation_records(state: TrainingState, samples: Samples) -> Labelled:
    """Returns the first MEASURED_ROWS validation records with the live model's logits. A collective.

    Of a halved validation split it is the half that models are evaluated on.
    """
    size = state.settings.data.evaluation_batch_size
    steps = -(-MEASURED_ROWS // size)
    # One batch at a time: of each, `predict` returns the rows in the order of the split.
    logits = [predict(state, [batch])[0] for batch in islice(samples.evaluation("validation"), steps)]

    def batches() -> Iterator[LabelledIds]:
        split = validation_of(samples.folder, samples.manifest, state.settings)["validation"]
        whole = split.batches(size, rank=0, world_size=1, order=None, keep_last=True)
        return ((ids_of(batch), batch.labels) for batch in islice(whole, steps))

    return Labelled("the validation split", batches, torch.cat(logits).cpu())


def target_precision(settings: RunSettings) -> str:
    """Returns the precision that the only target of a run names; fp32 if it names none."""
    (target,) = settings.search.targets
    return target.precision or "fp32"


def own_precision(settings: RunSettings) -> str:
    """Returns the smallest precision that represents every number of a run's tables."""
    return "fp16" if settings.precision.tables == "float16" else "fp32"


def export_run(
    run_dir: Path,
    out: Path,
    precision: str | Mapping[str, str] | None = None,
    *,
    table_bytes: int | None = None,
    tolerance: float | None = None,
    records: str | None = None,
) -> dict[str, Any]:
    """Write the sliced model of a finished run as a bundle, from its best retraining checkpoint.

    Runs on one rank or on each of several.

    Args:
        precision: Codec of all tables, or that of each field; not used with `table_bytes`. None: that of the
            run's target, or fp32.
        table_bytes, tolerance: As for `export_state`.
        records: Labelled records to measure on, for a run whose data is gone: the model is then that of the
            run's own bundle, as `reencode_bundle` writes it. None: the run's data and checkpoint.
    Returns:
        As for `export_state`.
    Raises:
        CheckpointError: `run_dir` holds no finished run, or its data is not what it was trained on.
        BundleError: As for `export_state`; or with `records`, the run has no bundle.
        DataError: `records` cannot be read.
    """
    folder = RunFolder(run_dir)
    if not folder.is_run:
        raise CheckpointError(
            f"{run_dir}: is not a run folder (it has no identity.json, environment.json or checkpoints). "
            f"`ham-dist train --run-dir {run_dir}` creates one"
        )
    if not folder.sizes.exists():
        within = sorted(str(path.parent) for path in run_dir.glob(f"*/{folder.sizes.name}"))
        advice = (
            f"It holds a run for each target: export one of {', '.join(within)}"
            if within
            else f"`ham-dist train --resume --run-dir {(folder.whole() or folder).path}` finishes it"
        )
        raise CheckpointError(f"{run_dir}: has no sliced model yet. {advice}")
    settings = folder.read_settings()
    precision = precision or target_precision(settings)
    measured = is_measured(precision) or table_bytes is not None or records is not None
    if tolerance is not None and not measured:
        raise BundleError(
            f"--tolerance {tolerance:g}: {precision} tables are not measured by their AUC. "
            "Omit it, or give a quantized precision"
        )
    if out.exists():
        raise BundleError(
            f"{out}: already exists; bundles are never overwritten. Delete it, or give another folder"
        )
    with process_group.process_group(settings.ranks) as device:
        if records is not None:
            return process_group.on_first_rank(
                lambda: reencode_bundle(
                    folder.bundle, out, precision, records, table_bytes=table_bytes, tolerance=tolerance
                )
            )
        data = process_group.together(lambda: _data_folder(folder, settings))
        manifest = process_group.together(lambda: Manifest.load(data))
        process_group.on_first_rank(lambda: folder.check_data(manifest))
        samples = process_group.together(lambda: Samples(data, manifest, settings, device))
        columns = {
            size.field: torch.tensor(size.kept_columns, dtype=torch.int64)
            for size in process_group.together(lambda: read_sizes(folder.sizes))
        }
        state = open_sliced(settings, manifest.num_embeddings(), columns, device, manifest.single_valued())
        identity = process_group.on_first_rank(folder.read_identity)
        load_best_weights(folder.checkpoints / "retrain", state, identity)
        if settings.retrain.precision != "fp32":
            quantization = fake_quantization(state)
            load_best_weights(folder.checkpoints / "quantize", state, identity)
            quantization.replace_for_good()
        return export_state(
            state,
            samples,
            out,
            precision=precision,
            run=origin(settings, manifest),
            table_bytes=table_bytes,
            tolerance=tolerance,
        )


def _data_folder(folder: RunFolder, settings: RunSettings) -> str | Path:
    try:
        return folder.data_folder(settings)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}\n"
            "  Or export the run's own bundle: --records FILE, labelled records (prepared or raw, not test)"
        ) from None


def origin(settings: RunSettings, manifest: Manifest) -> dict[str, Any]:
    """Returns the origin of a bundle: data set, method, seed and targets of its run."""
    return {
        "dataset": manifest.name,
        "method": settings.search.method.name,
        "seed": settings.seed,
        "targets": [target.model_dump(exclude_none=True) for target in settings.search.targets],
    }


def _fields(state: TrainingState, manifest: Manifest) -> list[FieldEntry]:
    dims = state.interaction.dims
    first_order = {table.field for table in state.sharded.first_order_tables}
    return [
        FieldEntry(
            name=field.name,
            num_embeddings=field.rows,
            embedding_dim=dims.get(field.name, 0),
            multi_valued=field.multi_valued,
            keeps_slot=dims.get(field.name) == 0,
        )
        for field in manifest.fields
        if field.name in dims or field.name in first_order
    ]


def ids_of(batch: Batch) -> dict[str, Ids]:
    """Returns the ids of a batch by field, as an exported model takes them."""
    return {
        field: (values.values().long(), values.offsets().long())
        for field, values in batch.sparse_features.to_dict().items()
    }
