"""Commands for bundles: export, verify and apply-delta."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ham_dist.cli.printing import describe_folder, say
from ham_dist.errors import BundleError


def export(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="New folder for the bundle.")],
    precision: Annotated[
        str | None,
        typer.Option(
            help="Codec: fp32, fp16, int8, int6, int4 (default: that of the run's target, or fp32)."
        ),
    ] = None,
    table_bytes: Annotated[
        int | None,
        typer.Option(
            "--bytes",
            min=1,
            help="Most bytes of all tables: each field gets the codec that fits and costs least, "
            "by the log loss on validation records.",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Largest allowed change of the validation AUC by int8, int6 and int4 "
            "(default: 0.0001, 0.0002, 0.0005); of the log loss, 5 times that share.",
        ),
    ] = None,
    records: Annotated[
        str | None,
        typer.Option(
            help="Labelled records to compare on, prepared or raw, for a run whose data is gone. "
            "The model is then read from the run's bundle.",
        ),
    ] = None,
    within: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="For a run with several targets: export its smallest model whose validation AUC is at most "
            "this much below the supernet's.",
        ),
    ] = None,
    delta_from: Annotated[
        Path | None,
        typer.Option(
            metavar="OLD",
            help="Write only the changes to the bundle OLD of the same fields, kept columns and codecs "
            "(default: the codecs of OLD). `ham-dist apply-delta` makes the bundle of both.",
        ),
    ] = None,
) -> None:
    """Write the sliced model of a run as a bundle for serving.

    The bundle's probabilities are compared with the model's before the bundle is moved to OUT.

    int8, int6 and int4 change the model, so their loss on validation records is measured, and refused if it
    is too large. The figures are in the bundle's manifest.json.

    \b
    Example:
      ham-dist export runs/first/columns-28 --out bundles/first --precision fp16
      ham-dist export runs/first/columns-28 --out bundles/small --bytes 2000000
      ham-dist export runs/first --within 0.0005 --out bundles/smallest
      ham-dist export runs/second --delta-from bundles/first --out deltas/second
    """
    from ham_dist.backend import require_backend

    require_backend()
    from ham_dist.distributed.ranks.process_group import launched
    from ham_dist.export.package import export_run

    if precision is not None and table_bytes is not None:
        raise BundleError(
            f"--precision {precision} --bytes {table_bytes}: --bytes chooses a codec for each field. "
            "Give one of the two"
        )
    if delta_from is not None and launched():
        raise BundleError(
            f"--delta-from {delta_from}: compares two folders in one process, but torchrun started several.\n"
            "  Export without torchrun, on one rank."
        )
    if within is not None:
        from ham_dist.training.frontier import choose_within
        from ham_dist.training.run_paths import RunPaths

        target = choose_within(RunPaths(run_dir), within)
        say(f"smallest model within {within:g}: {target}")
        run_dir = run_dir / target

    def export_to(folder: Path, default: str | Mapping[str, str] | None) -> None:
        export_run(
            run_dir,
            folder,
            precision or default,
            table_bytes=table_bytes,
            tolerance=tolerance,
            records=records,
        )

    if delta_from is None:
        export_to(out, None)
        describe_folder(out)
        return
    from ham_dist.export.delta import export_delta

    size = export_delta(delta_from, out, export_to)
    say(f"{out}: {size.bytes:,} bytes; the whole bundle has {size.full:,}")
    say(f"rows of tables in it: {size.changed:,}")


def verify(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.")],
) -> None:
    """Read all of a bundle and check it: sizes, sha256 of every file, and that all weights are finite.

    Opening a bundle does not read its tables, so verify each copy once, before it is used.

    \b
    Example:
      ham-dist verify bundles/first
    """
    from ham_dist.export.bundle import verify_files

    manifest = verify_files(bundle).manifest
    size = sum(file.size for file in manifest.files.values())
    say(f"{bundle}: {len(manifest.files)} files with {size:,} bytes are as they were written")


def apply_delta(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The bundle that the delta was written for.")],
    delta: Annotated[Path, typer.Argument(metavar="DELTA", help="Folder of the delta.")],
    out: Annotated[Path, typer.Option(help="New folder for the bundle.")],
) -> None:
    """Make a bundle from an earlier one and a delta that `ham-dist export --delta-from` wrote.

    Every file of the new bundle has the sha256 of the full export, or nothing is written. OLD is not changed.

    \b
    Example:
      ham-dist apply-delta bundles/first deltas/second --out bundles/second
    """
    from ham_dist.export.delta import apply_delta as apply

    apply(old, delta, out)
    describe_folder(out)
