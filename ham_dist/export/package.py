"""Exporting a trained model: writing its bundle from all ranks, and comparing it with the live model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ham_dist.config.schema import RunSettings
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.reader.batch import Batch
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding.model import FIRST_ORDER, TABLES
from ham_dist.embedding.table_size import read_sizes
from ham_dist.errors import BundleError, CheckpointError
from ham_dist.export.codecs.registry import codec_of
from ham_dist.export.compact import Ids
from ham_dist.export.manifest import FieldEntry
from ham_dist.export.unknown import shares_of
from ham_dist.export.verify import verify_bundle
from ham_dist.export.writer import Description, write_bundle
from ham_dist.training.checkpoints import load_best_weights
from ham_dist.training.evaluation import predict
from ham_dist.training.run_folder import RunFolder
from ham_dist.training.samples import Samples
from ham_dist.training.state import TrainingState, open_sliced

HELD_ROWS = 4096
"""Records of the held-out split (`Samples.held_out`) on which a bundle is compared with the live model."""


def export_state(
    state: TrainingState, samples: Samples, out: Path, *, precision: str, run: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the model in `state` as a bundle. Every rank calls it and writes the rows that it holds.

    Args:
        run: Origin of the bundle, as `origin` returns it.
    Returns:
        Rows compared, largest difference of a probability from the live model's, and the tolerance; the same
        on every rank.
    Raises:
        BundleError: The bundle cannot be written or differs from the live model; nothing is left on the disk.
    """
    manifest = samples.manifest
    logits, _ = predict(state, [samples.part(samples.held_out, HELD_ROWS)])
    live = torch.sigmoid(logits)
    held = _ids(samples.whole(samples.held_out, HELD_ROWS))
    fields = _fields(state, manifest)
    unknown = process_group.on_first_rank(lambda: shares_of(str(samples.folder), manifest, fields))
    return write_bundle(
        out,
        Description(fields, state.settings.model, precision, manifest.recipe, run, unknown),
        chunks=state.sharded.chunks(TABLES),
        first_order_chunks=state.sharded.chunks(FIRST_ORDER),
        dense={
            name: values.float() if values.is_floating_point() else values
            for name, values in state.interaction.state_dict().items()
        },
        vocabulary=f"{samples.folder}/vocabulary" if manifest.recipe is not None else None,
        vocabulary_sha256={field.name: field.vocabulary.sha256 for field in manifest.fields},
        verify=lambda partial: verify_bundle(
            partial, [held], live, state.sharded.device, copied=precision == own_precision(state.settings)
        ),
    )


def own_precision(settings: RunSettings) -> str:
    """Returns the smallest precision that represents every number of a run's tables."""
    return "fp16" if settings.precision.tables == "float16" else "fp32"


def export_run(run_dir: Path, out: Path, precision: str) -> dict[str, Any]:
    """Write the sliced model of a finished run as a bundle, from its best retraining checkpoint.

    Runs on one rank or on each of several.

    Raises:
        CheckpointError: `run_dir` holds no finished run, or its data is not what it was trained on.
        BundleError: As for `export_state`.
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
    codec_of(precision)
    if out.exists():
        raise BundleError(
            f"{out}: already exists; bundles are never overwritten. Delete it, or give another folder"
        )
    settings = folder.read_settings()
    with process_group.process_group(settings.ranks) as device:
        data = process_group.together(lambda: folder.data_folder(settings))
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
        return export_state(state, samples, out, precision=precision, run=origin(settings, manifest))


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


def _ids(batch: Batch) -> dict[str, Ids]:
    return {
        field: (values.values().long(), values.offsets().long())
        for field, values in batch.sparse_features.to_dict().items()
    }
