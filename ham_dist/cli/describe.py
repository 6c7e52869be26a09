"""Describes a folder of prepared data, a run, a bundle, a delta or a package, as tables to print."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import JsonValue
from rich.console import RenderableType

from ham_dist.data.format.manifest import SPLITS, Manifest
from ham_dist.data.format.warnings import share_of, warnings_of
from ham_dist.data.statistics import HEADS, DatasetStatistics, FieldStatistics
from ham_dist.errors import DataError
from ham_dist.export.delta_manifest import DELTA, DeltaManifest, read_delta_manifest
from ham_dist.export.manifest import FORMAT as BUNDLE_FORMAT
from ham_dist.export.manifest import BundleManifest, read_manifest
from ham_dist.export.packages.description import DESCRIPTION, PackageDescription, read_description
from ham_dist.export.patches import Patch
from ham_dist.io.console import make_table
from ham_dist.io.untrusted import read_json
from ham_dist.report.record import read_result
from ham_dist.training.run_folder import RunFolder

MANIFEST = "manifest.json"


def holds_data(path: Path) -> bool:
    """Returns True if `path` is a folder of prepared data, and not a run or a bundle."""
    return not RunFolder(path).is_run and (path / MANIFEST).exists() and not _is_bundle(path / MANIFEST)


def describe(path: Path) -> Iterator[RenderableType]:
    """Yields lines and tables that describe the folder `path`; prepared data is described from its manifest.

    Raises:
        DataError: `path` does not exist, is none of these folders, or is damaged.
        BundleError: The bundle is damaged.
        ConfigError: The run's settings cannot be read.
    """
    if RunFolder(path).is_run:
        yield from _run(RunFolder(path))
    elif (path / DELTA).exists():
        yield from _delta(path, read_delta_manifest(path))
    elif (path / DESCRIPTION).exists():
        yield from _package(path, read_description(path))
    elif not (path / MANIFEST).exists():
        what = (
            "holds neither a manifest.json (prepared data, a bundle), a delta.json, a package.json "
            "nor a run (run.toml with identity.json, environment.json or checkpoints)"
            if path.exists()
            else "there is no such folder"
        )
        raise DataError(f"{path}: {what}")
    elif _is_bundle(path / MANIFEST):
        yield from _bundle(path, read_manifest(path))
    else:
        yield from _data(path, Manifest.load(path))


def _is_bundle(manifest: Path) -> bool:
    try:
        content = read_json(manifest)
    except (OSError, ValueError) as error:
        raise DataError(f"{manifest}: is damaged: {error}. Copy the folder again from its source") from error
    return isinstance(content, dict) and content.get("format") == BUNDLE_FORMAT


def _data(path: Path, manifest: Manifest) -> Iterator[RenderableType]:
    yield f"{path}: prepared data, {manifest.name}, seed {manifest.seed}"
    yield make_table(
        ("split", "rows", "positive", "shards"),
        (
            (
                name,
                f"{split.rows:,}",
                share_of(split.positives, split.rows) if split.rows else "",
                str(len(split.shards)),
            )
            for name, split in manifest.splits.items()
        ),
    )
    rejected = sum(manifest.rejected.reasons.values())
    yield (
        f"raw lines {manifest.rows_in:,}; "
        f"dropped {manifest.rows_dropped:,} samples that are neither positive nor negative;"
        f" rejected {rejected:,} line{'' if rejected == 1 else 's'}"
    )
    planted = manifest.truth.planted_ranks if manifest.truth else None
    names = ("field", "table rows", "values per sample", *(["planted columns"] if planted else []))
    yield make_table(
        names,
        (
            (
                field.name,
                f"{field.rows:,}",
                "several" if field.multi_valued else "one",
                *([str(planted[field.name])] if planted else []),
            )
            for field in manifest.fields
        ),
    )
    yield from (f"warning: {text}" for text in warnings_of(manifest))


def describe_statistics(statistics: DatasetStatistics) -> Iterator[RenderableType]:
    """Yields the statistics of prepared data, as lines and tables."""
    if statistics.rejected:
        yield make_table(
            ("reason", "rejected lines"),
            ((reason, f"{count:,}") for reason, count in statistics.rejected.items()),
        )
    megabytes = f"{statistics.bytes / 1e6:,.2f} MB"
    yield f"tables of embedding dim {statistics.dim} as {statistics.precision}: {megabytes}."
    yield "Ids in the training split, and the share of its values that are one of the most frequent ids:"
    yield make_table(
        ("field", "table rows", "MB", "ids seen", "seen once", *(f"top {share}" for share in HEADS)),
        (
            (
                field.name,
                f"{field.rows:,}",
                f"{field.bytes / 1e6:,.2f}",
                f"{field.ids_seen:,}",
                f"{field.ids_seen_once:,}",
                *(_share(field, field.head[share], "train") for share in HEADS),
            )
            for field in statistics.fields
        ),
    )
    # A vocabulary has ids for the values of the training split only: other values are unknown, never unseen.
    unseen = () if all(field.ids_from_training for field in statistics.fields) else SPLITS[1:]
    yield (
        "Share of the values of each split that are unknown (id 0)"
        + (
            ", and for fields without a vocabulary, of those whose id is not in the training split (unseen):"
            if unseen
            else ":"
        )
    )
    yield make_table(
        ("field", *(f"id 0, {split}" for split in SPLITS), *(f"unseen, {split}" for split in unseen)),
        (
            (
                field.name,
                *(_share(field, field.zero[split], split) for split in SPLITS),
                *(
                    "" if field.ids_from_training else _share(field, field.unseen[split], split)
                    for split in unseen
                ),
            )
            for field in statistics.fields
        ),
    )
    yield from (f"warning: {alarm}" for alarm in statistics.alarms)


def _share(field: FieldStatistics, share: float, split: str) -> str:
    """A share of a split's values, as text."""
    values = field.values.get(split)
    return f"{share:.1%}" if values is None else share_of(round(share * values), values)


def _run(folder: RunFolder) -> Iterator[RenderableType]:
    settings = folder.read_settings()
    dataset = settings.data.path or "generated data"
    method = settings.search.method.name
    yield f"{folder.path}: a run, {settings.model.name} on {dataset}, seed {settings.seed}, {method}"
    targets = {
        target.label: folder.of_target(target, settings.search.targets) for target in settings.search.targets
    }
    yield make_table(
        ("target", "state", "test AUC", "test log loss", "embedding bytes", "dense parameters"),
        ((label, *_result(target)) for label, target in targets.items()),
    )


def _result(folder: RunFolder) -> tuple[str, ...]:
    result = read_result(folder)
    if result is None:
        return ("not done", "", "", "", "")
    numbers = (
        "not defined" if result.test_auc is None else f"{result.test_auc:.4f}",
        "not defined" if result.test_logloss is None else f"{result.test_logloss:.4f}",
        f"{result.embedding_bytes:,}",
        f"{result.dense_parameters:,}",
    )
    return ("done", *numbers)


def _bundle(path: Path, manifest: BundleManifest) -> Iterator[RenderableType]:
    model = manifest.model.name if manifest.model else "tables for a model of your own"
    size = sum(file.size for file in manifest.files.values())
    yield f"{path}: a bundle, {model}, {manifest.precision}, {size:,} bytes in {len(manifest.files)} files"
    tables = {table.field: table for table in (*manifest.first_order, *manifest.tables)}
    yield make_table(
        ("field", "table rows", "columns", "precision"),
        (
            (
                field.name,
                f"{field.num_embeddings:,}",
                str(field.embedding_dim),
                tables[field.name].codec if field.name in tables else "",
            )
            for field in manifest.fields
        ),
    )
    yield from _measured(manifest.verified or {})
    if manifest.run:
        yield "from the run " + ", ".join(f"{name} {value}" for name, value in manifest.run.items())


def _delta(path: Path, delta: DeltaManifest) -> Iterator[RenderableType]:
    size = sum(file.size for file in delta.files.values())
    yield f"{path}: a delta, {size:,} bytes, from the bundle {delta.old[:12]} to {delta.new[:12]}"
    yield make_table(
        ("file", "in the delta", "rows", "changed"),
        (
            (name, part.kind, f"{part.rows:,}", f"{part.changed:,}")
            if isinstance(part, Patch)
            else (name, part.kind, "", "")
            for name, part in delta.parts.items()
        ),
    )


def _package(path: Path, package: PackageDescription) -> Iterator[RenderableType]:
    yield (
        f"{path}: a package, {package.package}, of the bundle {package.bundle[:12]}, "
        f"written by ham_dist {package.ham_dist}"
    )
    yield make_table(
        ("model", "largest difference of a probability"),
        ((name, f"{number:.2g}") for name, number in package.verified.max_difference.items()),
    )
    yield f"compared on {package.verified.records:,} records; allowed: {package.verified.tolerance:.2g}"


def _measured(verified: Mapping[str, JsonValue]) -> Iterator[str]:
    """The loss of quantized tables, if the manifest has it; any JSON may stand there."""
    names = ("rows", "auc_difference", "log_loss_difference", "max_difference")
    numbers = [verified.get(name) for name in names]
    if all(isinstance(number, int | float) for number in numbers):
        rows, auc, log_loss, probability = numbers
        yield (
            f"against the live model, on {rows:,} records of {verified.get('records')}: "
            f"AUC {auc:+.2g}, log loss {log_loss:+.2g}, a probability by up to {probability:.2g}"
        )
